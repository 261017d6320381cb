"""Student steps per second against a plain transcription of the published recipe, side by side.

    make bench-distill

The recipe (benchmarks/recipe.py) encodes text and pictures in every step and makes every score and
every set of features in a pass of its own. All sides train the same small random SD3 model on the
same pictures, with the same losses and number of fake-score steps, all with gradient checkpointing
and, where the processor is fast at it, in bfloat16, as the recipe's scripts and our configs have
it. The recipe is not compiled, as published; this trainer by default and with `compile = true`.
Memory is compared with LoRA training of the same model as diffusers' scripts do it: one diffusion
loss, peft, AdamW, the same batches. No ComfyUI needed.

On a graphics card, where a small model would only show how fast kernels are launched (this is as
wide as SD3.5 Medium, with a third of its blocks):

    make bench-distill BENCH="--device cuda --width 1536 --batch-tokens 8192"
"""

import argparse
import gc
import random
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from distill_data import (
    SMALL,
    AllSteps,
    Prepared,
    Scale,
    made_up,
    pictures,
    prepare,
    small_sd3,
)
from paired import (
    MIB,
    Times,
    arguments,
    clock,
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

from swd_core.distill.diffusers_models import SD3Model
from swd_core.distill.interface import DistillConfig
from swd_core.distill.precision import fast_autocast
from swd_core.distill.trainer import Trainer

RANK, LR = 16, 1e-5
ENCODING, STEP = "recipe", "recipe's step, prepared data"
OURS, COMPILED = "this trainer, prepared data", "this trainer, prepared data, compile = true"
LORA, DISTILL = "plain LoRA training", "this trainer"
FAST = "this trainer, compile = true"


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
        self.intervals, self.place = scale.intervals, {"device": scale.device, "dtype": scale.dtype}
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
        real = real.to(**self.place)
        noise, moment = torch.randn_like(real), torch.full((count,), 500.0, device=real.device)
        context, pooled = text.context.to(**self.place), text.pooled.to(**self.place)
        with fast_autocast(real.device):
            velocity = self.model(
                0.5 * (real + noise), context, pooled, moment, return_dict=False
            )[0]  # fmt: skip
        loss = F.mse_loss(velocity.float(), (noise - real).float())
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1


def stepper(run: Trainer | Recipe | PlainLora) -> Callable[[], None]:
    """One student step with its fake-score steps; the k-th of every side has the same batches."""
    if isinstance(run, Trainer):
        return run.train_step
    return lambda: run.student_step(random.Random(run.step))


def peak(run: Trainer | PlainLora) -> float:
    """MiB of all tensors at most: those that stay, and those of four steps done for a second time.

    Counted by torch, not the process's memory: that holds the compiler and what malloc keeps too.
    """
    gc.collect()  # another's modules refer to each other

    def steps() -> None:
        run.step = 0
        if isinstance(run, Trainer):
            run.forget_drawn()
        for _ in range(4):
            stepper(run)()

    steps()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        steps()
        return torch.cuda.max_memory_allocated() / MIB
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


def text(times: Times, memory: dict[str, float], weights: int, a: argparse.Namespace) -> str:
    encoding = 1 - ratio(times, STEP, ENCODING).median
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
        f"one, {a.batch_tokens} patches a batch, all losses"
        f"{', in seconds of the processor' if a.processor else ''}"
        f"{', on ' + torch.cuda.get_device_name() if a.device != 'cpu' else ''}. "
        f"The model has {weights / 1e6:.3g} million weights. "
        f"Encoding takes {encoding:.0%} of the recipe's step here: what preparation gains is that "
        "share, which is smaller where the model is larger beside its encoders.\n\n"
    )
    head = ["", "student steps/s", "times the recipe's", "goal", "times its step's", "goal"]
    body += table(head, rows)
    found = [[LORA, f"{memory[LORA]:.0f}", "", ""]]
    for name in list(memory)[1:]:
        share = memory[name] / memory[LORA]
        goal = spread([share]).against(1.25)
        found.append([name, f"{memory[name]:.0f}", f"{share:.2f}", goal])
    head = ["tensors of model and training", "MiB at most", "of plain LoRA training", "goal"]
    return f"{body}\n\n{table(head, found)}"


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--fake-steps", type=int, default=5)
    p.add_argument("--batch-tokens", type=int, default=512, help="patches in a batch")
    p.add_argument(
        "--processor", action="store_true",
        help="count the processor's seconds, not the clock's: where others share the machine",
    )  # fmt: skip
    p.add_argument(
        "--no-compile", action="store_true", help="leave out compile = true, which takes minutes"
    )
    p.add_argument("--width", type=int, default=Scale.width, help="of the model, a multiple of 64")
    p.add_argument("--layers", type=int, default=Scale.layers, help="of the model")
    p.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="a card gets a section of its own"
    )
    a = arguments(p)
    on_card = a.device != "cpu"
    if a.processor and on_card:
        p.error("--processor counts nothing of what a graphics card does; leave it out.")
    scale = replace(SMALL if a.small else Scale(a.width, a.layers), device=a.device)
    drawn = made_up(scale)
    memory = {
        LORA: peak(PlainLora(scale, drawn, a)),
        DISTILL: peak(trainer(scale, drawn, a)),
    }
    if not a.no_compile:
        memory[FAST] = peak(trainer(scale, drawn, a, compiled=True))
    log.info("Memory, MiB at most: %s", memory)
    every = pictures(scale)
    data = prepare(every, scale)
    sides = {
        ENCODING: stepper(recipe(scale, every, a)),
        STEP: stepper(recipe(scale, data, a)),
        OURS: stepper(trainer(scale, data, a)),
    }
    if not a.no_compile:
        sides[COMPILED] = stepper(trainer(scale, data, a, compiled=True))

    measure = time.process_time if a.processor else clock
    weights = sum(p.numel() for p in small_sd3(replace(scale, device="meta")).parameters())
    place = ", on a graphics card" if on_card else ""
    part = "-card" if on_card else ""

    def warm_up() -> None:
        for name, side in sides.items():
            start = measure()
            side()
            log.info("%s: %.1f s for the first step", name, measure() - start)

    def show(times: Times) -> None:
        title = f"Distillation against the published recipe{place}"
        log.info(section("distill", title, text(times, memory, weights, a), a, part=part))

    paired(sides, a.runs, show, measure, warm_up=warm_up)


if __name__ == "__main__":
    main()
