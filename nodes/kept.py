"""What nodes of the host keep from step to step: it has the size of the step and ends with it."""

from typing import Any

from . import _host


def begin_anew(guider: Any, model_options: dict[str, Any]) -> None:
    """Has them keep nothing of the steps before, as at the start of a run.

    Args:
        model_options: of the run.
    """
    cache = model_options.get("transformer_options", {}).get("easycache")
    if hasattr(cache, "prepare_timesteps"):  # EasyCache, LazyCache; their own reset is half of one
        fresh = cache.clone().prepare_timesteps(guider.inner_model.model_sampling)
        fresh.total_steps_skipped = cache.total_steps_skipped  # the host's log names the run's
        vars(cache).update(vars(fresh))
    _host.end_patches(guider.model_patcher)
