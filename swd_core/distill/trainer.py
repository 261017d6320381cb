"""Distils a teacher into a scale-wise student (arXiv 2503.16397, section 4): MMD + DMD + GAN."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..sampling import Noise, ScaleState, sample_scalewise
from ..transfer import sent
from .adapters import adapter, adapter_parameters, adapter_state, frozen
from .ahead import ahead
from .checkpoint import load_checkpoint, save_checkpoint
from .conditioning import Conditioning
from .discriminator import discriminator_head
from .draws import Draws
from .interface import Batches, DistillConfig, DistillModel
from .objective import Loss, Objective
from .precision import fast_autocast
from .scalewise import Interval, student_input
from .taught import Taught
from .world import World

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """What the data gives of a batch: its `steps` up to the one that is trained, latents of that
    and of the one before, the text, and whether the student's own picture is to go on instead."""

    steps: list[Interval]
    real: Tensor
    previous: Tensor | None
    text: Conditioning
    simulated: bool


@dataclass
class Trainer:
    """The alternating optimisation of fake score, discriminator head and student.

    Args:
        extra: losses beside the config's, by name.
        between: called before every batch, and every group of pictures that `taught` makes; what it
            raises ends the training there. `step` and `fake_done`, the fake score's steps of the
            next one, then say what is done, and saving and resuming give what an uninterrupted
            training gives.
        taught: what the losses compare with instead of the batches' own pictures.
        last: how many steps there are in all, if that is known: no batch is drawn beyond.
    """

    model: DistillModel
    batches: Batches
    config: DistillConfig
    step: int = 0
    seconds: float = 0.0
    world: World = field(default_factory=World)
    extra: Mapping[str, Loss] = field(default_factory=dict)
    between: Callable[[], None] = lambda: None
    fake_done: int = 0
    taught: Taught | None = None
    last: int | None = None
    _sums: dict[str, list[float]] = field(default_factory=dict)
    _unread: list[tuple[dict[str, Tensor], Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.seed)
        module = self.model.module
        self.device = next(module.parameters()).device
        self.process = self.model.process
        self.head = discriminator_head(self.model.width).to(self.device)
        self.objective = Objective(self.model, self.head, self.batches, self.config, self.extra)
        self.student = adapter_parameters(module, "student")
        self.fake = [*adapter_parameters(module, "fake"), *self.head.parameters()]
        self.optimiser = self._adamw(self.student, self.config.lr)
        self.optimiser_fake = self._adamw(self.fake, self.config.lr_fake)
        self.average = [p.detach().clone() for p in self.student]
        self._coming: Iterator[tuple[Draws, Batch]] | None = None

    def _adamw(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """With the published betas and weight decay, which are torch's own: .9, .999 and 1e-2."""
        fused = self.device.type in ("cpu", "cuda")  # needs no copies of all parameters
        return torch.optim.AdamW(parameters, lr=lr, fused=fused)

    @property
    def fake_steps(self) -> int:
        """Steps of the fake score to one of the student."""
        return self.config.fake_steps if self.objective.needs_fake else 0

    def train_step(self, factor: float = 1.0) -> None:
        """The fake score's steps and then the student's, at `factor` times its rate."""
        self.optimiser.param_groups[0]["lr"] = self.config.lr * factor
        while self.fake_done < self.fake_steps:
            self._fake_step()
            self.fake_done += 1
        self._student_step()
        self.settle()
        self._take(self.optimiser)
        self.step, self.fake_done = self.step + 1, 0
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.student], 1 - decay)

    def _student_step(self) -> None:
        """The gradients of one step of the student."""
        sums: dict[str, Tensor] = {}
        with frozen(self.fake):
            for draws, batch in self._batches():
                with self.autocast():
                    real, x0, text = self._generate(batch, draws)
                # At most one part's graph is there beside the student's own.
                seen = x0.detach().requires_grad_()
                for part in self.objective.parts:
                    with self.autocast():
                        losses = part(real, seen, text, draws)
                    self._backward(losses, sums)
                x0.backward(seen.grad)
        self._clip(self.student, sums)

    def autocast(self) -> AbstractContextManager:
        return fast_autocast(self.device) if self.config.autocast else nullcontext()

    def _batches(self) -> Iterator[tuple[Draws, Batch]]:
        """Those of the next optimiser step, each with what else is drawn for it."""
        self._coming = self._coming or self._ahead(self._upcoming())
        for _ in range(self.config.accumulate):
            self.between()
            yield next(self._coming)

    def _upcoming(self) -> Iterator[tuple[Draws, Batch]]:
        """All batches from here to the last step's.

        All randomness of a step comes from the seed and its number: resuming needs no other state.
        """
        step, done = self.step, self.fake_done
        while self.last is None or step < self.last:
            rng = random.Random(self.config.seed * 1_000_003 + step)
            seeds = [rng.getrandbits(62) for _ in range(self.fake_steps + 1)]
            for seed in seeds[done:]:
                draws = Draws(seed, self.world)
                for _ in range(self.config.accumulate):
                    yield draws, self._draw(draws)
            step, done = step + 1, 0

    def _ahead(self, upcoming: Iterator[tuple[Draws, Batch]]) -> Iterator[tuple[Draws, Batch]]:
        """Those, each drawn while the device works on the one before.

        A processor draws when it is needed: once a second thread computes as well, OpenMP has its
        threads sleep between any two calls, and a step takes a fifth longer.
        """
        return upcoming if self.device.type == "cpu" else ahead(upcoming)

    def forget_drawn(self) -> None:
        """Drops what is drawn ahead: the next batch is that of `step` and `fake_done`."""
        self._coming = None

    def _draw(self, draws: Draws, steps: list[Interval] | None = None) -> Batch:
        """The next batch of `draws`.

        Args:
            steps: the beginning of the schedule up to the step that is trained; drawn if None.
        """
        rng, share = draws.rng, self.config.backward_simulation
        if steps is None:
            steps = self.batches.steps(rng)
            steps = steps[: 1 + rng.randrange(len(steps))]
        total = self.count(steps[-1].size) * self.world.size
        with self.autocast():
            drawn = self.batches.draw(steps[-1], total, rng, self.world.part(total))
        simulated = bool(share) and rng.random() < share and len(steps) > 1
        return Batch(steps, *drawn, simulated)

    def _clip(self, parameters: list[nn.Parameter], losses: dict[str, Tensor]) -> None:
        """Averages the gradients over the processes and limits their length."""
        self.world.average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip or math.inf)
        self._unread.append((losses, norm))

    def _take(self, optimiser: torch.optim.Optimizer) -> None:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def settle(self) -> None:
        """Reads the losses since the last call: once for all of them, as the device is waited for.

        Raises:
            FloatingPointError: if one of them, or the length of a gradient, is not finite.
        """
        groups, self._unread = self._unread, []
        if not groups:
            return
        flat = [v.float() for losses, norm in groups for v in (*losses.values(), norm)]
        numbers = iter(torch.stack(flat).tolist())
        for losses, _ in groups:
            values = {name: next(numbers) for name in losses}
            if not math.isfinite(sum(values.values()) + next(numbers)):
                shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
                then = (
                    "The last checkpoint is whole: go on from it with a lower rate (distill "
                    "--resume --changed), or train anew under another name."
                    if self.step
                    else "Nothing was trained yet, so no rate is to blame: look at the weights of "
                    "the losses, the guidance, and what the data holds."
                )
                raise FloatingPointError(
                    f"The loss or its gradient is not finite at step {self.step} ({shown}). {then}"
                )
            for name, value in values.items():
                self._sums.setdefault(name, []).append(value)

    def _backward(self, losses: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
        """Adds the losses' gradients to the leaves', and their values to `sums`."""
        share = 1 / self.config.accumulate
        if losses:
            (sum(losses.values()) * share).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach() * share

    def _generate(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Conditioning]:
        """Real latents of a batch, the student's prediction for them, their text."""
        steps, begun, previous, text, simulated = batch
        interval, real, count = steps[-1], begun, len(begun)
        if self.taught is not None:
            total = count * self.world.size
            part = self.world.part(total)
            real, text = self.taught.draw(self.step, interval, total, part, draws, self.between)
        with adapter(self.model.module, "student"):
            if simulated:
                with torch.no_grad():
                    previous = self.sample(
                        steps[:-1], text, begun, lambda _, shape: self._noise(shape, draws)
                    )
            x_t = self.input(interval, begun, previous, draws)
            sigma = torch.full((count,), interval.sigma, device=self.device)
            x0 = self.model.predict(x_t, sigma, text)
        return real, x0, text

    def count(self, size: tuple[int, int]) -> int:
        """Pictures of a size in one process's batch."""
        cells = size[0] * size[1]
        return max(2, self.config.batch_tokens * self.model.patch**2 // cells)

    def input(
        self, interval: Interval, real: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        """What the student sees: x_t (B, C, H, W) of an interval."""
        noise = self._noise(real.shape, draws)
        return student_input(interval, real, previous, noise, self.process)

    def sample(
        self, steps: Sequence[Interval], text: Conditioning, like: Tensor, noise: Noise
    ) -> Tensor:
        """x0 (B, C, H, W) after `steps` of sampling with the active adapter."""

        def denoise(x: Tensor, sigma: float) -> Tensor:
            return self.model.predict(x, torch.full((len(x),), sigma, device=x.device), text)

        sigmas, sizes = [step.sigma for step in steps], [step.size for step in steps]
        return sample_scalewise(
            denoise, sigmas, sizes, ScaleState(), noise, process=self.process, like=like
        ).x0

    def _noise(self, shape: Sequence[int], draws: Draws) -> Tensor:
        return sent(draws.noise(shape), self.device)

    def _fake_step(self) -> None:
        """One step of the fake score (a diffusion loss on the student's output) and of the head."""
        sums: dict[str, Tensor] = {}
        for draws, batch in self._batches():
            with torch.no_grad(), self.autocast():
                real, x0, text = self._generate(batch, draws)
            sigma, (noisy, noisy_real) = self.objective.renoise((0.0, 1.0), draws, x0, real)
            with self.autocast():
                losses = self.objective.fake(x0, noisy, sigma, text)
            self._backward(losses, sums)
            if self.config.gan:
                with self.autocast():
                    loss = self.objective.real(noisy_real, sigma, text)
                self._backward({"head": loss}, sums)
        noted = {"fake": sum(sums.values())}
        if self.config.gan:
            noted["head"] = sums["head"] / self.config.gan_head
        self._clip(self.fake, noted)
        self._take(self.optimiser_fake)

    def means(self) -> dict[str, float]:
        """Mean of each loss since the last call, to six digits."""
        means = {name: float(f"{sum(v) / len(v):.6g}") for name, v in self._sums.items()}
        self._sums.clear()
        return means

    def save(self, path: Path, **more: Any) -> None:
        """Writes what `resume` needs.

        Raises:
            FloatingPointError: if it is not finite. OSError, RuntimeError: if there is no room.
        """
        self.settle()
        save_checkpoint(
            path,
            {
                "student": [p.detach() for p in self.student],
                "fake": [p.detach() for p in self.fake],
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "optimiser_fake": self.optimiser_fake.state_dict(),
                "step": self.step,
                "fake_done": self.fake_done,
                "seconds": self.seconds,
                "config": asdict(self.config),
                "sums": self._sums,
                **more,
            },
        )

    def resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        if state is not None:
            self.take_up(state)

    def take_up(self, state: dict[str, Any]) -> None:
        """Goes on from what `save` wrote."""
        self.forget_drawn()
        with torch.no_grad():
            for name in ("student", "fake", "average"):
                for now, saved in zip(getattr(self, name), state[name], strict=True):
                    now.copy_(saved)
        self.optimiser.load_state_dict(state["optimiser"])
        self.optimiser_fake.load_state_dict(state["optimiser_fake"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.optimiser_fake.param_groups[0]["lr"] = self.config.lr_fake  # it may have changed
        # So may how many of the fake score's steps there are.
        self.fake_done = min(int(state.get("fake_done", 0)), self.fake_steps)
        self._sums = state.get("sums", {})
        spent = f", {self.seconds / 60:.1f} min" if self.seconds else ""  # counted by some callers
        log.info("resumed at step %d%s", self.step, spent)

    def averaged_student(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The EMA of the student's adapter: layer name -> (down, up)."""
        names = adapter_state(self.model.module, "student")
        values = iter(self.average)
        return {name: (next(values), next(values)) for name in names}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Runs the body with the student's averaged weights in its adapter."""
        kept = [p.detach().clone() for p in self.student]
        with torch.no_grad():
            torch._foreach_copy_(self.student, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.student, kept)
