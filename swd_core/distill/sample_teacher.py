"""Pictures made by the teacher, with their prompts as captions: the paper's training data."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..files import parse_json, write_text
from ..noise import draw_noise
from ..pictures import picture_of, write_png
from ..schedule import CELL
from .config import Settings, check_size
from .sources import read_prompts
from .teachers import device_of, load_pipeline
from .world import World

RECORD = "swd_teacher"  # in a picture's metadata: what it was made with


def sample_teacher(
    settings: Settings, on_picture: Callable[[int, int], None], world: World | None = None
) -> int:
    """Fills [data] source with NNNNNN.png and .txt; pictures that are there are kept.

    [teacher] batch pictures are made together, always the same ones, since the last bits may depend
    on it: where some of them are there, all are made once more and the others kept.

    Args:
        on_picture: called with (pictures there, pictures in all), of this process's.
        world: the processes, of several machines too, that share the work and the folder; a batch
            is of its numbers, whoever makes it.

    Returns:
        how many were made now.

    Raises:
        ValueError: if the schedule's sizes can't be made of [data] size, or pictures that are there
            were made with other settings, or would be written over and are not the teacher's.
    """
    check_size(settings)
    t, folder = settings.teacher, Path(settings.data.source)
    prompts = read_prompts(Path(t.prompts))
    jobs = [p for p in prompts for _ in range(t.per_prompt)]
    folder.mkdir(parents=True, exist_ok=True)
    own = [i for i in range(len(jobs)) if (world or World()).has(i // t.batch)]
    waiting = [i for i in own if not _is_done(folder, i, jobs[i])]
    firsts = dict.fromkeys(i - i % t.batch for i in waiting)
    batches = [list(range(i, min(i + t.batch, len(jobs)))) for i in firsts]
    made_with = _made_with(settings)
    _check_kept(folder, set(own) - set(waiting), made_with)
    _check_replaced(folder, waiting)
    missing = set(waiting)
    make = _scene_teacher if settings.family.embedded else _diffusers_teacher
    done = len(own) - len(waiting)
    on_picture(done, len(own))
    for i, picture in make(settings, jobs, batches) if waiting else ():
        if i not in missing:
            continue
        path = folder / f"{i:06}.png"
        try:
            write_png(picture, path, {RECORD: json.dumps(made_with)}, overwrite=True)
            path = path.with_suffix(".txt")
            write_text(path, jobs[i])
        except OSError as error:
            raise OSError(
                f"{path} can't be written ({error}). What is finished stays: make room and start "
                "the same command again."
            ) from error
        done += 1
        on_picture(done, len(own))
    return len(waiting)


def _is_done(folder: Path, number: int, prompt: str) -> bool:
    picture, caption = folder / f"{number:06}.png", folder / f"{number:06}.txt"
    return picture.is_file() and caption.is_file() and caption.read_bytes() == prompt.encode()


def _made_with(settings: Settings) -> dict[str, Any]:
    """What a prompt's picture depends on, by the names it has in a config."""
    m, t = settings.model, settings.teacher
    tokens = settings.data.text_tokens if settings.family.architecture.text_tokens else 0
    return {
        "[model] family": m.family, "[model] base": m.base, "[data] size": settings.data.size,
        "[data] text_tokens": tokens, "[teacher] steps": t.steps,
        "[teacher] guidance": t.guidance, "[teacher] seed": t.seed,
    }  # fmt: skip


def _check_kept(folder: Path, kept: Iterable[int], wanted: dict[str, Any]) -> None:
    """Raises ValueError if a picture says that it was made with other settings than these."""
    others: dict[str, int] = {}
    for number in kept:
        before = _record(folder / f"{number:06}.png")
        if isinstance(before, dict):
            for name in before.keys() & wanted.keys():
                if before[name] != wanted[name]:
                    change = f"{name} {before[name]!r}, now {wanted[name]!r}"
                    others[change] = others.get(change, 0) + 1
    if others:
        raise ValueError(
            f"{max(others.values())} pictures in {folder} were made with other settings "
            f"({'; '.join(sorted(others))}). Name another folder in [data] source, or delete them."
        )


def _record(picture: Path) -> Any:
    """What a picture was made with; None for one of the user's own, or a broken one."""
    try:
        with Image.open(picture) as image:
            return parse_json(image.info[RECORD], RECORD)
    except (OSError, SyntaxError, ValueError, KeyError, Image.DecompressionBombError):
        return None


def _check_replaced(folder: Path, numbers: Iterable[int]) -> None:
    """Raises ValueError if one of these pictures or captions is there and not the teacher's."""
    for picture in (folder / f"{number:06}.png" for number in numbers):
        there = [path for path in (picture, picture.with_suffix(".txt")) if path.exists()]
        if there and _record(picture) is None:
            raise ValueError(
                f"{there[0]} is not of this teacher, and nothing is written over it. Name another "
                "folder in [data] source."
            )


@torch.inference_mode()
def _scene_teacher(
    settings: Settings, jobs: list[str], batches: list[list[int]]
) -> Iterator[tuple[int, Image.Image]]:
    """Euler steps with classifier-free guidance on the embedded teacher."""
    from ..scenes.student import SceneStudent

    t = settings.teacher
    base = Path(settings.model.base) if settings.model.base else None
    teacher = SceneStudent.load(base, lora=None)
    side = settings.data.size // CELL
    for batch in batches:
        text = teacher.encode([jobs[i] for i in batch])
        denoise = teacher.denoiser(text, guidance=t.guidance)
        x = draw_noise(t.seed, batch, 0, (16, side, side))
        sigmas = torch.linspace(1, 0, t.steps + 1).tolist()
        for sigma, after in zip(sigmas, sigmas[1:], strict=False):
            x0 = denoise(x, sigma)
            x = x0 + (x - x0) * (after / sigma)
        for i, pixels in zip(batch, teacher.decode(x), strict=True):
            yield i, picture_of(pixels)


def _diffusers_teacher(
    settings: Settings, jobs: list[str], batches: list[list[int]]
) -> Iterator[tuple[int, Image.Image]]:
    """The family's own diffusers pipeline with its own scheduler."""
    t, device = settings.teacher, device_of(settings)
    pipe = load_pipeline(settings, device)
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        pipe.enable_model_cpu_offload(device=device)
    pipe.vae.enable_slicing()  # picture by picture: a VAE takes more memory than what it decodes
    kind = settings.family.architecture
    names = kind.diffusers
    argument, none = names.guidance
    options: dict[str, Any] = {argument: t.guidance - 1 + none}
    if kind.text_tokens:  # as many as training reads; SD3's pipeline has 256 by default
        options["max_sequence_length"] = settings.data.text_tokens
    for batch in batches:
        if names.negative is not None and t.guidance > 1:
            options["negative_prompt"] = [names.negative] * len(batch)
        found = pipe(
            prompt=[jobs[i] for i in batch],
            height=settings.data.size,
            width=settings.data.size,
            num_inference_steps=t.steps,
            **options,
            # As torch takes a seed: of so many bits.
            generator=[
                torch.Generator().manual_seed((t.seed * 1_000_003 + i) % 2**64) for i in batch
            ],
        )
        yield from zip(batch, found.images, strict=True)
