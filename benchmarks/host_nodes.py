"""SwD Sample against what the host's own nodes offer.

    make bench-host-nodes

SamplerLCMUpscale is core's sampler that grows the picture (right for SDXL alone, and by its own
ramp of sizes). The chain is one SamplerCustomAdvanced for each scale, with LatentUpscale between,
at the sizes and noise levels of our schedule. Random weights, 1024 pixels, four steps.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

import on_host
import torch
from paired import Times, arguments, log, paired, parser, ratio, section, spread, table
from torch import Tensor

SWD, CHAIN, LCM = "SwD Sample", "chain of the host's nodes", "SamplerLCMUpscale"


def call(module: str, node: str, *inputs: Any, **named: Any) -> Any:
    """The first output of a host node, of the old or the new kind."""
    node = getattr(importlib.import_module(module), node)
    run = node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)
    out = run(*inputs, **named)
    return getattr(out, "args", out)[0]


def custom(node: str, *inputs: Any, **named: Any) -> Any:
    return call("comfy_extras.nodes_custom_sampler", node, *inputs, **named)


def chain(model: Any, cond: list, sizes: list[tuple[int, int]], sigmas: Tensor, channels: int):
    """One run of the host for each scale, as a graph of its own nodes would have it."""
    latent = on_host.empty_latent(8 * sizes[0][0], channels)
    sampler, guider = custom("KSamplerSelect", "lcm"), custom("BasicGuider", model, cond)
    for step, (height, width) in enumerate(sizes):
        if step:
            latent = call(
                "nodes", "LatentUpscale", latent, "bicubic", 8 * width, 8 * height, "disabled"
            )
        noise = custom("RandomNoise", on_host.SEED + step)
        part = torch.stack([sigmas[step], sigmas[-1]])
        latent = custom("SamplerCustomAdvanced", noise, guider, sampler, part, latent)
    return latent


def growing(model: Any, cond: list, first: int, sigmas: Tensor, channels: int) -> dict:
    """Core's sampler to twice the first side in as many steps; records each step's cells."""
    noise, guider = custom("RandomNoise", on_host.SEED), custom("BasicGuider", model, cond)
    sampler = call(
        "comfy_extras.nodes_advanced_samplers", "SamplerLCMUpscale", 2.0, len(sigmas) - 2, "bicubic"
    )
    latent = on_host.empty_latent(8 * first, channels)
    return custom("SamplerCustomAdvanced", noise, guider, sampler, sigmas, latent)


def family(a: argparse.Namespace, name: str) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """The sides of a family, and what its title says; the sides' latents have the same size."""
    side = 256 if a.small else 1024
    if name == "sdxl":
        width = 32 if a.small else 128
        model, channels = on_host.sdxl_like(width), 4
        cond = on_host.sdxl_conditioning(width=side, height=side)
        title = f"SDXL-like UNet, {width} channels, float32"
        schedule, sigmas = on_host.schedule_for(model, "sdxl-4")
    else:
        blocks, channels = 2, 16
        model = on_host.sd35_medium(blocks, 2 if a.small else 24)
        cond, title = (
            on_host.sd35_conditioning(),
            f"SD3.5 Medium's width, {blocks} blocks, bfloat16",
        )
        schedule, sigmas = on_host.schedule_for(model, "sd35-medium-4")
    latent = on_host.empty_latent(side, channels)
    sizes = schedule.sizes(side // 8, side // 8, 4)
    sides: dict[str, Callable[[], Any]] = {
        SWD: lambda: on_host.sample(model, cond, latent, schedule),
        CHAIN: lambda: chain(model, cond, sizes, sigmas, channels),
    }
    cells = [str(w) for _, w in sizes]
    lines = [title, f"latent sides {', '.join(cells)}"]
    if name == "sdxl":
        sides[LCM] = lambda: growing(model, cond, sizes[0][1], sigmas, channels)
        ramp = [round(sizes[0][1] * (1 + step / 3)) for step in range(4)]
        work = sum(s * s for s in ramp) / sum(h * w for h, w in sizes)
        lines.append(f"SamplerLCMUpscale's {', '.join(map(str, ramp))}: {work:.2f} times the cells")
    return sides, lines


def text(found: list[tuple[Times, list[str]]]) -> str:
    parts = []
    for times, lines in found:
        rows = [[name, spread(v), ratio(times, SWD, name)] for name, v in times.items()]
        runs = f"Median of {len(times[SWD])} paired runs."
        head = ["", "seconds", "SwD Sample's time of it"]
        parts.append(f"{'; '.join(lines)}. {runs}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def main() -> None:
    a = arguments(parser(__doc__))
    on_host.pack()
    found: list[tuple[Times, list[str]]] = []

    with torch.inference_mode():
        for name in ("sdxl", "sd35"):
            sides, lines = family(a, name)
            found.append(({}, lines))

            def show(times: Times, lines: list[str] = lines) -> None:
                found[-1] = (times, lines)
                title = "Against the host's own nodes, 1024 px"
                log.info(section("host-nodes", title, text(found), a, on_host.host_version()))

            paired(sides, a.runs, show)


if __name__ == "__main__":
    main()
