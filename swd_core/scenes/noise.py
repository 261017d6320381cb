"""Fractal noise, curves and soft masks that landscapes are made of."""

from functools import lru_cache

import numpy as np

Array = np.ndarray
FIELD = 512


@lru_cache(maxsize=16)
def field(number: int, exponent: float) -> Array:
    """One of a fixed set of tiling noises (512, 512), amplitude f^-exponent, variance 1."""
    white = np.random.default_rng(number).normal(size=(FIELD, FIELD))
    frequency = np.hypot(np.fft.fftfreq(FIELD)[:, None], np.fft.rfftfreq(FIELD)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(white) / frequency**exponent, s=(FIELD, FIELD))
    return (noise / noise.std()).astype(np.float32)


def sampled(noise: Array, v: Array, u: Array) -> Array:
    """A tiling field (n, n) at fractional rows v and columns u, linearly between its samples."""
    row, column = np.floor(v), np.floor(u)
    a, b = (v - row).astype(np.float32), (u - column).astype(np.float32)
    i, j = row.astype(np.int64) % FIELD, column.astype(np.int64) % FIELD
    below, right = (i + 1) % FIELD, (j + 1) % FIELD
    top = noise[i, j] * (1 - b) + noise[i, right] * b
    return top * (1 - a) + (noise[below, j] * (1 - b) + noise[below, right] * b) * a


def curve(rng: np.random.Generator, size: int, exponent: float) -> Array:
    """A random line (size,) of range about -1..1; exponent 1 is jagged, 2 is smooth."""
    waves = np.arange(1, 2 * size // 2)
    white = rng.normal(size=waves.size) + 1j * rng.normal(size=waves.size)
    line = np.fft.irfft(np.concatenate([[0], white / waves**exponent]), n=2 * size)[:size]
    line = line - line.mean()
    return (line / np.abs(line).max()).astype(np.float32)


def smoothstep(x: Array, low: float, high: float) -> Array:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a, b, part) -> Array:
    """a where part is 0, b where it is 1."""
    return a + (b - a) * part


def colour(rgb, rng: np.random.Generator | None = None, spread: float = 8.0) -> Array:
    """A colour (3,) in float32, somewhat off if there is an `rng`."""
    rgb = np.asarray(rgb, dtype=np.float32)
    if rng is None:
        return rgb
    shift = rng.normal() * spread + rng.normal(size=3) * spread / 2
    return np.clip(rgb + shift, 0, 255).astype(np.float32)


def lay(image: Array, mask: Array, paint: Array) -> None:
    """Lays paint (3,) or (H, W, 3) on an image (H, W, 3) where mask (H, W) says, in place."""
    image += (paint - image) * mask[..., None]


def below(line: Array, size: int, softness: float = 0.5) -> Array:
    """Mask (size, size) of what lies below a line (size,) of rows, with smooth edges."""
    rows = np.arange(size, dtype=np.float32)[:, None]
    return np.clip((rows - line[None]) / (2 * softness) + 0.5, 0, 1)


def around(size: int, y: float, x: float, reach: int) -> tuple[slice, slice]:
    """The slices of an image (size, size) within `reach` of a point, for `np.mgrid`, too."""
    bounds = ((max(0, int(p) - reach), min(size, int(p) + reach + 1)) for p in (y, x))
    rows, columns = (slice(low, high) for low, high in bounds)
    return rows, columns
