"""Student steps per second against a plain transcription of the published recipe, side by side.

    make bench-distill

The recipe (benchmarks/recipe.py) encodes text and pictures in every step and makes every score and
every set of features in a pass of its own. All sides train the same small random SD3 model on the
same pictures, with the same losses and number of fake-score steps, all with gradient checkpointing
and, where the processor is fast at it, in bfloat16, as the recipe's scripts and our configs have
it. The recipe is not compiled, as published; this trainer by default and with `compile = true`.
Memory is compared with LoRA training of the same model as diffusers' scripts do it: one diffusion
loss, peft, AdamW, the same batches. No ComfyUI needed.
"""

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from diffusers.training_utils import cast_training_params
from paired import (
    MIB,
    Times,
    arguments,
    log,
    paired,
    parser,
    ratio,
    section,
    spread,
    table,
)
from recipe import Recipe, lora
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from swd_core.distill.diffusers_models import SD3Model
from swd_core.distill.interface import DistillConfig
from swd_core.distill.precision import fast_autocast, has_fast_bfloat16
from swd_core.distill.scalewise import Interval, intervals
from swd_core.distill.trainer import Trainer

SIGMAS = (1.0, 0.8959, 0.7371, 0.6022)
TOKENS, COUNT, RANK, LR = 77, 8, 16, 1e-5
DTYPE = torch.bfloat16 if has_fast_bfloat16() else torch.float32
ENCODING, STEP = "recipe", "recipe's step, prepared data"
OURS, COMPILED = "this trainer, prepared data", "this trainer, prepared data, compile = true"
LORA, DISTILL = "plain LoRA training", "this trainer"
FAST = "this trainer, compile = true"


@dataclass(frozen=True)
class Scale:
    """How large everything is; sides in latent cells, the last one the pictures' own."""

    width: int = 384
    layers: int = 8
    sides: tuple[int, ...] = (16, 20, 24, 32)
    vae: tuple[int, ...] = (64, 128, 256, 256)
    text_layers: int = 12

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(side, side) for side in self.sides]

    @property
    def intervals(self) -> list[Interval]:
        return intervals(self.sizes, SIGMAS)


SMALL = Scale(64, 2, (4, 6, 8, 10), (32, 32, 32, 32), 2)


def small_sd3(scale: Scale) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    width = scale.width
    return SD3Transformer2DModel(
        sample_size=32, num_layers=scale.layers, attention_head_dim=64,
        num_attention_heads=width // 64, in_channels=16, joint_attention_dim=width,
        caption_projection_dim=width, pooled_projection_dim=width, pos_embed_max_size=32,
        qk_norm="rms_norm",
    ).to(DTYPE)  # fmt: skip


class Encoders:
    """A VAE of SD3's shape at half its width, and a CLIP text encoder."""

    def __init__(self, scale: Scale) -> None:
        torch.manual_seed(1)
        self.vae = AutoencoderKL(
            block_out_channels=scale.vae, latent_channels=16, layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).eval().to(DTYPE)  # fmt: skip
        config = CLIPTextConfig(
            hidden_size=scale.width, intermediate_size=4 * scale.width,
            num_attention_heads=scale.width // 64, num_hidden_layers=scale.text_layers,
            projection_dim=scale.width,
        )  # fmt: skip
        self.clip = CLIPTextModelWithProjection(config).eval().to(DTYPE)

    @torch.no_grad()
    def text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.clip(ids)
        return output.last_hidden_state, output.text_embeds

    @torch.no_grad()
    def latents(self, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        small = F.interpolate(pictures, size=(size[0] * 8, size[1] * 8), mode="area")
        return self.vae.encode((small * 2 - 1).to(DTYPE)).latent_dist.mode()


@dataclass
class EveryStep:
    """The recipe's data: pictures and token ids, encoded anew for every batch."""

    encoders: Encoders
    pictures: Tensor
    ids: Tensor
    seconds: float = 0.0

    def draw(self, interval: Interval, count: int, rng: random.Random) -> Any:
        start = time.perf_counter()
        chosen = torch.tensor([rng.randrange(len(self.ids)) for _ in range(count)])
        pictures = self.pictures[chosen]
        previous = None
        if interval.previous:
            previous = self.encoders.latents(pictures, interval.previous)
        real = self.encoders.latents(pictures, interval.size)
        text = self.encoders.text(self.ids[chosen])
        self.seconds += time.perf_counter() - start
        return real, previous, text

    def unconditional(self, count: int) -> Any:
        start = time.perf_counter()
        text = self.encoders.text(torch.zeros(count, TOKENS, dtype=torch.long))
        self.seconds += time.perf_counter() - start
        return text


@dataclass
class Prepared:
    """Latents of every size and the texts' (context, pooled); `empty` is the empty prompt's."""

    latents: dict[tuple[int, int], Tensor]
    text: tuple[Tensor, Tensor]
    empty: tuple[Tensor, Tensor]

    def draw(self, interval: Interval, count: int, rng: random.Random) -> Any:
        chosen = torch.tensor([rng.randrange(len(self.text[0])) for _ in range(count)])
        previous = self.latents[interval.previous][chosen] if interval.previous else None
        return self.latents[interval.size][chosen], previous, tuple(t[chosen] for t in self.text)

    def unconditional(self, count: int) -> Any:
        context, pooled = self.empty
        return context.expand(count, -1, -1), pooled.expand(count, -1)


@dataclass
class AllSteps:
    """Either of the two as the trainer's `Batches`, in one process."""

    data: EveryStep | Prepared
    intervals: list[Interval]

    def steps(self, rng: random.Random) -> list[Interval]:
        return self.intervals

    def draw(self, interval: Interval, count: int, rng: random.Random, part: slice) -> Any:
        return self.data.draw(interval, count, rng)

    def unconditional(self, count: int) -> Any:
        return self.data.unconditional(count)


def pictures(scale: Scale) -> EveryStep:
    generator = torch.Generator().manual_seed(2)
    side = 8 * scale.sides[-1]
    ids = torch.randint(0, 49000, (COUNT, TOKENS), generator=generator)
    return EveryStep(Encoders(scale), torch.rand(COUNT, 3, side, side, generator=generator), ids)


def prepare(data: EveryStep, scale: Scale) -> Prepared:
    """The same, encoded once."""
    latents = {size: data.encoders.latents(data.pictures, size) for size in scale.sizes}
    return Prepared(latents, data.encoders.text(data.ids), data.unconditional(1))


def made_up(scale: Scale) -> Prepared:
    """Numbers of the same shapes: memory doesn't depend on them."""
    latents = {size: torch.randn(COUNT, 16, *size) for size in scale.sizes}
    text = torch.randn(COUNT, TOKENS, scale.width), torch.randn(COUNT, scale.width)
    return Prepared(latents, text, tuple(t[:1] for t in text))


def recipe(scale: Scale, batches: Any, a: argparse.Namespace) -> Recipe:
    return Recipe(
        small_sd3(scale), batches, scale.intervals, RANK, a.batch_tokens, a.fake_steps, LR
    )


def trainer(
    scale: Scale, batches: Any, a: argparse.Namespace, *, compiled: bool = False
) -> Trainer:
    model = SD3Model(small_sd3(scale), rank=RANK, checkpointing=True, compile=compiled)
    config = DistillConfig(
        fake_steps=a.fake_steps, batch_tokens=a.batch_tokens, lr=LR, lr_fake=LR, autocast=True,
        guidance=7.0,
    )  # fmt: skip
    return Trainer(model, AllSteps(batches, scale.intervals), config)


class PlainLora:
    """One diffusion loss and one step of AdamW, on batches of the trainer's sizes in turn."""

    def __init__(self, scale: Scale, data: Prepared, a: argparse.Namespace) -> None:
        self.data, self.tokens, self.step = data, a.batch_tokens, 0
        self.intervals = scale.intervals
        self.model = small_sd3(scale).requires_grad_(False)
        self.model.add_adapter(lora(RANK))
        cast_training_params(self.model)
        self.model.enable_gradient_checkpointing()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=LR)

    def student_step(self, rng: random.Random) -> None:
        interval = self.intervals[self.step % len(self.intervals)]
        count = max(2, self.tokens * 4 // (interval.size[0] * interval.size[1]))
        real, _, text = self.data.draw(interval, count, rng)
        real, noise = real.to(DTYPE), torch.randn_like(real, dtype=DTYPE)
        context, pooled = (t.to(DTYPE) for t in text)
        with fast_autocast():
            velocity = self.model(
                0.5 * (real + noise), context, pooled, torch.full((count,), 500.0),
                return_dict=False,
            )[0]  # fmt: skip
        loss = F.mse_loss(velocity.float(), (noise - real).float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1


def stepper(run: Trainer | Recipe | PlainLora) -> Callable[[], None]:
    """One student step with its fake-score steps; the k-th of every side draws the same batches."""
    return lambda: run.student_step(random.Random(run.step))


def peak(run: Trainer | PlainLora) -> float:
    """MiB of all tensors at most: those that stay, and those of four steps done for a second time.

    Counted by torch, not the process's memory: that holds the compiler and what malloc keeps too.
    """

    def steps() -> None:
        run.step = 0
        for _ in range(4):
            stepper(run)()

    steps()
    if isinstance(run, Trainer):
        stay = [*run.model.module.parameters(), *run.head.parameters(), *run.average]
        optimisers = [run.optimiser, run.optimiser_fake]
    else:
        stay, optimisers = [*run.model.parameters()], [run.optimiser]
    states = [values for o in optimisers for values in o.state.values()]
    stay += [t for values in states for t in values.values() if isinstance(t, Tensor)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        steps()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    taken = max(accumulate(e.nbytes() for e in events))
    return (sum(t.numel() * t.element_size() for t in stay) + taken) / MIB


def text(times: Times, encoding: float, memory: dict[str, float], a: argparse.Namespace) -> str:
    step = {name: [1 / t for t in values] for name, values in times.items()}
    rows = []
    for name, values in step.items():
        gains = [ratio(times, other, name) for other in (ENCODING, STEP)]
        goals = [g.against(goal, most=False) for g, goal in zip(gains, (3, 1.3), strict=True)]
        ours = name in (OURS, COMPILED)
        cells = [cell for pair in zip(gains, goals, strict=True) for cell in pair]
        rows.append([name, spread(values), *(cells if ours else [""] * 4)])
    body = (
        f"Median of {len(times[OURS])} paired student steps, {a.fake_steps} fake-score steps to "
        f"one, {a.batch_tokens} patches a batch, all losses. Encoding takes {encoding:.0%} of the "
        "recipe's step here: what preparation gains is that share, which is smaller where the "
        "model is larger beside its encoders.\n\n"
    )
    head = ["", "student steps/s", "times the recipe's", "goal", "times its step's", "goal"]
    body += table(head, rows)
    found = [[LORA, f"{memory[LORA]:.0f}", "", ""]]
    for name in (DISTILL, FAST):
        share = memory[name] / memory[LORA]
        goal = spread([share]).against(1.25)
        found.append([name, f"{memory[name]:.0f}", f"{share:.2f}", goal])
    head = ["tensors of model and training", "MiB at most", "of plain LoRA training", "goal"]
    return f"{body}\n\n{table(head, found)}"


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--fake-steps", type=int, default=5)
    p.add_argument("--batch-tokens", type=int, default=512, help="patches in a batch")
    a = arguments(p)
    scale = SMALL if a.small else Scale()
    drawn = made_up(scale)
    memory = {
        LORA: peak(PlainLora(scale, drawn, a)),
        DISTILL: peak(trainer(scale, drawn, a)),
        FAST: peak(trainer(scale, drawn, a, compiled=True)),
    }
    log.info("Memory, MiB at most: %s", memory)
    every = pictures(scale)
    data = prepare(every, scale)
    sides = {
        ENCODING: stepper(recipe(scale, every, a)),
        STEP: stepper(recipe(scale, data, a)),
        OURS: stepper(trainer(scale, data, a)),
        COMPILED: stepper(trainer(scale, data, a, compiled=True)),
    }

    def warm_up() -> None:
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            log.info("%s: %.1f s for the first step", name, time.perf_counter() - start)
        every.seconds = 0.0

    def show(times: Times) -> None:
        encoding = every.seconds / sum(times[ENCODING])
        title = "Distillation against the published recipe"
        log.info(section("distill", title, text(times, encoding, memory, a), a))

    paired(sides, a.runs, show, warm_up=warm_up)


if __name__ == "__main__":
    main()
