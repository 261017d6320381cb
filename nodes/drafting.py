"""Drafts on the host: run in batches that fit the memory, and carried in a LATENT."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import comfy.model_base
import comfy.model_management
import torch
from torch import Tensor

from ..swd_core.drafts import Draft, Drafts, join
from ..swd_core.growing import GrowthState
from ..swd_core.growth import AnySchedule, GrowthSchedule
from ..swd_core.noise import plain_seed
from ..swd_core.stretches import Stretch
from . import _host, _host_latent, _host_model
from .checks import check_run, refuse_momentum
from .fitting import one_at_a_time
from .growth_sampler import sampler_of
from .preview import LiveSheet
from .prompts import Texts

log = logging.getLogger(__name__)
KEY = "swd_drafts"


def model_name(model: Any) -> str:
    """The family that drafts are bound to."""
    return _host_model.model_family(model) or type(model.model).__name__


def begin(
    model: Any,
    latent_image: Any,
    schedule: AnySchedule,
    seed: int,
    count: int,
    method: str,
    vae: Any = None,
    prompts: Mapping[str, bool] | None = None,
) -> Drafts:
    """`count` images of each prompt before their first step.

    Args:
        vae: for schedules that lift through pixels and have none with them.
        prompts: the name of each, and whether it is its text; one without a name if not given.

    Raises:
        ValueError: if the latent is a batch, or does not fit the model.
    """
    _check_batches(model)
    latent = _host_latent.check_latent(latent_image, model)
    samples, mask = latent["samples"], latent.get("noise_mask")
    if samples.shape[0] != 1:
        raise ValueError(
            f"The latent is a batch of {samples.shape[0]}; drafts start from one. Set its batch "
            "size to 1: count says how many drafts there are."
        )
    [first] = _host_latent.image_indices(latent)
    return Drafts(
        schedule,
        model_name(model),
        tuple(samples.shape[-2:]),
        tuple(
            Draft(plain_seed(seed), first + i, prompt=name, known=known)
            for name, known in (prompts or {"": True}).items()
            for i in range(count)
        ),
        method=method,
        latent=samples if bool(samples.any()) or mask is not None or samples.ndim != 4 else None,
        mask=mask,
        stretches=_stretches_of(model, schedule, tuple(samples.shape[2:]), vae),
    )


def _check_batches(model: Any) -> None:
    """Raises ValueError if a batch of the model is one video."""
    if isinstance(model.model, comfy.model_base.SVD_img2vid):
        raise ValueError(
            "To Stable Video Diffusion a batch is the frames of one video, so that it has no "
            "drafts. Use SwD Sample, which takes all its frames."
        )


def _stretches_of(model: Any, schedule: AnySchedule, size: tuple[int, ...], vae: Any) -> int:
    """How many a growing run has; 0 for a student."""
    if not isinstance(schedule, GrowthSchedule):
        return 0
    _host_model.check_prediction(model, schedule)
    return len(_run_of(model, schedule, size, vae))


def _run_of(
    model: Any, schedule: AnySchedule, size: tuple[int, ...], vae: Any
) -> tuple[Stretch, ...]:
    """The whole run over a latent's size, (height, width) or (frames, height, width)."""
    levels = _host_model.schedule_sigmas(model, schedule).tolist()
    return sampler_of(schedule, "bicubic", vae=vae).stretches(model, levels, size)


@dataclass(frozen=True)
class Sampling:
    """What a stretch needs of the host. texts: the conditioning of each draft's prompt."""

    model: Any
    texts: Texts
    cfg: float
    vae: Any = None

    def check(self, drafts: Drafts) -> None:
        _check_batches(self.model)
        drafts.check_model(model_name(self.model))
        if drafts.samples is not None:
            _host_latent.check_channels(drafts.samples, self.model)
        _host_model.check_prediction(self.model, drafts.schedule)
        refuse_momentum(
            self.model.model_options, "the steps of one run, which a finished draft has not seen"
        )
        for _, negative in self.texts.values():
            _host.check_cfg(self.cfg, negative, self.model)

    def run(
        self,
        drafts: Drafts,
        until: int,
        batch: int,
        each: Callable[[Drafts], None],
        known: Callable[[Drafts], Drafts | None] = lambda part: None,
    ) -> Drafts:
        """Goes on to the end of step `until`, at most `batch` images of a prompt at a time.

        A batch that runs out of memory is halved and tried again; what is done stays done. What the
        host can't run in batches runs one by one.

        Args:
            each: called with each batch when it is done. known: gives what a batch came to when it
                was run before, or None.
        """
        self.check(drafts)
        done, todo, size = [], drafts, min(batch, len(drafts.images))
        for texts in self.texts.values():
            read = [text for text in (texts[:1] if self.cfg == 1 else texts) if text]
            if any(one_at_a_time(self.model, text) for text in read):
                size = 1
        ahead = self._stretches(drafts)[drafts.step : until]
        sizes = [stretch.size for stretch in ahead for _ in range(stretch.steps)]
        live = LiveSheet(self.model, drafts, sizes)
        while todo.images:
            part = todo.choose(range(min(size, _alike(todo))))
            first = len(drafts.images) - len(todo.images)
            try:
                finished = known(part)
                if finished is None:
                    tell = _told(live, first, ahead[0].step)
                    finished = self._run_batch(part, ahead, until, tell)
                else:
                    live.show(first, len(sizes) - 1, finished.scales[-1])
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not _host.out_of_memory(error):
                    raise
                finished = None
            if finished is None:  # only here, where no traceback holds the batch's tensors any more
                log.warning(
                    "Out of memory with %d images at a time; going on with %d.", size, size // 2
                )
                size //= 2
                comfy.model_management.soft_empty_cache()
                continue
            done.append(finished)
            each(finished)
            todo = todo.choose(range(len(part.images), len(todo.images)))
        return join(done)

    def share(self, drafts: Drafts) -> float:
        """What each draft has cost so far, by latent cells, of a whole run's cost, 0..1.

        Of a growing run the whole is as many steps at full size, without growing.
        """
        run = self._stretches(drafts)
        costs = [part.steps * math.prod(part.size) for part in run]
        steps, full = sum(part.steps for part in run), math.prod(run[-1].size)
        return sum(costs[: drafts.step]) / (steps * full if drafts.stretches else sum(costs))

    def _stretches(self, drafts: Drafts) -> tuple[Stretch, ...]:
        """Of the whole run.

        Raises:
            ValueError: if it isn't the one that the drafts are of.
        """
        size = drafts.size if drafts.latent is None else tuple(drafts.latent.shape[2:])
        found = _run_of(self.model, drafts.schedule, size, self.vae)
        if len(found) != drafts.last:
            raise ValueError(
                f"The drafts are of a run over {drafts.last} sizes, which with this model has "
                f"{len(found)}. Load the model they were made with, or draft them again."
            )
        return found

    def _run_batch(
        self,
        drafts: Drafts,
        ahead: Sequence[Stretch],
        until: int,
        callback: Callable[..., None],
    ) -> Drafts:
        """Drafts of one prompt, run at once."""
        count = len(drafts.images)
        channels = self.model.get_model_object("latent_format").latent_channels
        shape = (
            (channels, *drafts.size) if drafts.latent is None else tuple(drafts.latent.shape[1:])
        )
        noise = torch.zeros((count, *shape))  # for its shape: the sampler draws the drafts' own
        latent = (
            noise if drafts.latent is None else drafts.latent.expand(count, *shape).contiguous()
        )
        states: list[GrowthState] = []
        begin = (x if x is None else x.to(self.model.load_device) for x in drafts.held)
        sampler = sampler_of(
            drafts.schedule,
            drafts.method,
            noise=drafts.noise,
            state=GrowthState(*begin, drafts.step),
            until=until,
            on_state=states.append,
            vae=self.vae,
        )
        sigmas = _host_model.schedule_sigmas(self.model, drafts.schedule)
        positive, negative = self.texts[drafts.images[0].prompt]
        guider = _host.cfg_guider(self.model, positive, negative, self.cfg)
        check_run(guider, drafts.schedule, noise, sigmas.tolist())
        _host.make_room_for(guider, max((stretch.size for stretch in ahead), key=math.prod))
        _host.seed_patches(drafts.images[0].seed)
        guider.sample(
            noise,
            latent,
            sampler,
            sigmas,
            denoise_mask=drafts.mask,
            callback=callback,
            disable_pbar=_host.pbar_disabled(),
            seed=drafts.images[0].seed,
        )
        # Fetched at the end: each copy off a graphics card waits for what it still computes.
        scales = tuple(_host.to_output_device(_shown(state, drafts)) for state in states)
        samples = decodable(scales[-1], self.model)
        kept = drafts.stretches or drafts.schedule.eta
        x_t = _host.to_output_device(states[-1].x_t) if kept else None
        return replace(drafts, scales=(*drafts.scales, *scales), samples=samples, x_t=x_t)


def _shown(state: GrowthState, drafts: Drafts) -> Tensor:
    """A whole run's picture is what its solver ends with, which may not be its last x0."""
    return state.x_t if state.stretches == drafts.last else state.x0


def _alike(drafts: Drafts) -> int:
    """How many images from the first on are of its prompt."""
    _, first = next(groupby(drafts.images, key=lambda draft: draft.prompt))
    return len(list(first))


def _told(live: LiveSheet, image: int, first: int) -> Callable[..., None]:
    """The callback of a batch that begins with that image and runs the steps from `first` on."""
    return lambda step, x0, x_t, _: live.show(image, step - first, x0)


def to_latent(drafts: Drafts) -> dict[str, Any]:
    """A LATENT that decodes as it is and carries what going on needs."""
    return {"samples": drafts.samples, KEY: drafts}


def from_latent(latent: Any) -> Drafts:
    """The drafts that a LATENT carries; those of its rows, where the host picked some of them.

    Raises:
        ValueError: if it carries none, its pictures are no longer the drafts, or it has a mask.
    """
    samples = _host_latent.plain_samples(latent)
    drafts = latent.get(KEY)
    if not isinstance(drafts, Drafts):
        raise ValueError(
            "This latent is not a draft. Connect the drafts of SwD Drafts or Load SwD Drafts; "
            "the host's own Save Latent and Load Latent keep the picture only."
        )
    if latent.get("noise_mask") is not None:
        raise ValueError(
            "A mask was set on these drafts, where it would do nothing. Set it on the latent that "
            "goes into SwD Drafts."
        )
    if samples is drafts.samples:
        return drafts
    rows = []
    for row in samples:
        same = (i for i, known in enumerate(drafts.samples) if torch.equal(row, known.to(row)))
        rows.append(next(same, None))
    if None in rows:
        raise ValueError(
            "These drafts were changed on the way (enlarged, sampled or blended). Connect the "
            "drafts straight to the finishing node."
        )
    return drafts.choose(rows)


def every_scale(drafts: Drafts, model: Any) -> list[dict[str, Tensor]]:
    """A LATENT (N, C, h, w) for each step that ran."""
    return [{"samples": decodable(x0, model)} for x0 in drafts.scales]


def decodable(x0: Tensor, model: Any) -> Tensor:
    """x0 in the VAE's units: worked out where the host does it, as a card divides differently."""
    there = x0.to(model.load_device, torch.float32)
    return _host.to_output_device(model.model.process_latent_out(there))
