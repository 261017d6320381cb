"""The drafts' nodes around one small model, and a model that counts or has no room."""

import torch
from chain import hosted

SEED = 12345
FAMILIES = {"sd35-medium": "sd35-medium-4", "flux": "flux-4", "sdxl": "sdxl-4"}


class Bench:
    """The nodes around one small model, with 256 x 192 pixels as the finished size."""

    def __init__(self, pack, small, model, family):
        self.pack, self.model = pack, model
        extra = {"guidance": 4.5} if family == "flux" else {}
        self.cond = small.conditioning(family, 1, **extra)
        inputs = {"preset": FAMILIES[family], "custom_sizes": "", "custom_sigmas": ""}
        self.schedule = pack["SwDScaleSchedule"].execute(model=model, **inputs).args[0]
        self.empty = {"samples": torch.zeros(1, 4, 24, 32)}

    def drafts(self, several=(), **options):
        inputs = {
            "latent_image": self.empty, "seed": SEED, "count": 5, "stop_after": 1, "batch": 16,
            "cfg": 1.0, "upscale_method": "bicubic", **options,
        }  # fmt: skip
        inputs = {"model": self.model, "positive": self.cond, "schedule": self.schedule, **inputs}
        return hosted(self.pack["SwDDrafts"], several, **inputs).args

    def finish(self, drafts, pick, **options):
        inputs = {
            "detail_seed": 0,
            "variations": 1,
            "stop_after": 0,
            "batch": 4,
            "cfg": 1.0,
            **options,
        }
        inputs = {"model": self.model, "positive": self.cond, **inputs}
        return hosted(self.pack["SwDFinishDrafts"], drafts=drafts, pick=pick, **inputs).args

    def straight(self, indices, seed=SEED):
        latent = {
            "samples": self.empty["samples"].repeat(len(indices), 1, 1, 1),
            "batch_index": list(indices),
        }
        inputs = {"seed": seed, "cfg": 1.0, "upscale_method": "bicubic", "latent_image": latent}
        node = self.pack["SwDSample"]
        out = node.execute(model=self.model, positive=self.cond, schedule=self.schedule, **inputs)
        return out.args[0]["samples"]


NO_CUDA_MEMORY = torch.cuda.OutOfMemoryError("Allocation on device")


def counting(model, calls, most=None, error=NO_CUDA_MEMORY):
    """The model with the batch of each call noted; more than `most` at once raises `error`."""

    def count(apply_model, call):
        calls.append(call["input"].shape[0])
        if most is not None and calls[-1] > most:
            raise error
        return apply_model(call["input"], call["timestep"], **call["c"])

    counted = model.clone()
    counted.set_model_unet_function_wrapper(count)
    return counted
