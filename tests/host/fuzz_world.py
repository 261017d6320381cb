"""What the fuzz test puts at the sockets: what the pack, the host and small models really make."""

import importlib
import importlib.util
from types import SimpleNamespace
from typing import Any

import comfy.hooks
import comfy.samplers
import comfy.sd
import comfy.taesd.taesd
import torch
from chain import call, hosted
from fuzzing import SIGMAS, Latent, conditionings
from torch import Tensor, nn

FAMILIES = ("scenes", "sd35-medium", "flux", "sdxl", "wan")
STEPS = (0.5, 1.0)
SOLVERS = ("euler", "lcm", "dpmpp_2m_sde", "uni_pc", "dpm_adaptive")


def vae_of(module: nn.Module) -> comfy.sd.VAE:
    torch.manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.1)
    return comfy.sd.VAE(sd={k: v.detach().clone() for k, v in module.state_dict().items()})


class PlainEncoder(nn.Module):
    """A text encoder without pooled text, as T5 alone is."""

    dtypes = {torch.float32}

    def __init__(self, **_: Any):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def set_clip_options(self, options: dict) -> None: ...

    def reset_clip_options(self) -> None: ...

    def encode_token_weights(self, tokens: Any) -> tuple[Tensor, None]:
        return torch.ones(1, 4, 256), None


def plain_clip(tokenizer: Any) -> comfy.sd.CLIP:
    target = SimpleNamespace(params={}, clip=PlainEncoder, tokenizer=lambda **_: tokenizer)
    return comfy.sd.CLIP(target, parameters=1)


def scheduled(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """With a LoRA that changes in the middle of the run, so that a text is encoded twice."""
    nodes = "comfy_extras.nodes_hooks:"
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    frames = call(nodes + "CreateHookKeyframe", 1.0, 0.0)
    frames = call(nodes + "CreateHookKeyframe", 0.5, 0.5, frames)
    hooks = call(nodes + "SetHookKeyframes", hooks, frames)
    return call(nodes + "SetClipHooks", clip, True, True, hooks)


class World:
    """Values by type and name; a name without more is that of a family, and fits it."""

    def __init__(self, pack: Any, small: Any):
        self.pack, self.small = pack, small
        student, clip, vae, own = pack["SwDSceneStudent"].execute(strength=1.0).result
        vaes = {"scenes": vae, "sdxl": vae_of(comfy.taesd.taesd.TAESD(latent_channels=4))}
        if importlib.util.find_spec("comfy.taesd.taehv"):  # newer than 0.3.64
            video = importlib.import_module("comfy.taesd.taehv")
            vaes["video"] = vae_of(video.TAEHV(latent_channels=16))
        texts = {family: small.conditioning(family) for family in FAMILIES[1:4]}
        texts["scenes"] = clip.encode_from_tokens_scheduled(clip.tokenize("a fox"))
        texts["wan"] = [[torch.ones(1, 7, 32), {}]]
        schedule = importlib.import_module("swd_pack.swd_core.schedule").ScaleSchedule
        self.shelves: dict[str, dict[str, Any]] = {
            "MODEL": {
                "scenes": student,
                "teacher": pack["SwDSceneStudent"].execute(strength=0.0).result[0],
                **{family: small.host_model(family) for family in FAMILIES[1:4]},
                "wan": small.wan_model(),
            },
            "VAE": vaes,
            "CLIP": {
                "scenes": clip, "T5": plain_clip(clip.tokenizer), "scheduled": scheduled(clip),
            },
            "CONDITIONING": {
                f"{family} {odd}".strip(): cond
                for family, text in texts.items()
                for odd, cond in conditionings(text).items()
            },
            "SWD_SCHEDULE": {
                "scenes": own,
                "flow": schedule(STEPS, (1.0, 0.6)),
                "sdxl": schedule(STEPS, (999.0, 600.0), "timestep"),
                "video": schedule(STEPS, (1.0, 0.6), "flow", "", (0.25, 1.0)),
                "one step": schedule((1.0,), (1.0,)),
                "hardly noise": schedule(STEPS, (1e-30, 1e-38)),
                "many": schedule((0.01,) * 29 + (1.0,), tuple(1 - i / 31 for i in range(30))),
                **self.growing(),
            },
            "SIGMAS": {
                "whole": torch.tensor([1.0, 0.6, 0.0]), "none": torch.zeros(0),
                **{str(levels): torch.tensor(levels) for levels in SIGMAS},
            },
            "SAMPLER": {
                **{name: comfy.samplers.sampler_object(name) for name in SOLVERS},
                "churning": comfy.samplers.ksampler("euler", {"s_churn": 1.0}),
                "of no kind": comfy.samplers.Sampler(),
                "ours": pack["SwDSampler"].execute(
                    schedule=own, upscale_method="bicubic"
                ).args[0],
            },
            "LATENT": {},
        }  # fmt: skip
        self.shelves["SWD_DISTILL_DATA"] = {f: self.data(f) for f in ("scenes", "sdxl")}
        for family in FAMILIES:
            self.shelves["LATENT"] |= self.drafts(family)

    def growing(self) -> dict[str, Any]:
        """Growth schedules of flow models and of SDXL, and one that needs a VAE."""
        growth = importlib.import_module("swd_pack.swd_core.growth").GrowthSchedule
        exploding = {"kind": "exploding", "top": 14.614641}
        levels = tuple(1 - i / 5 for i in range(5))
        return {
            "growing": growth(levels, delta=0.5),
            "growing by an ancestral one": growth(levels, delta=0.5, solver="euler_ancestral"),
            "growing through pixels": growth(levels, delta=0.5, lift="pixels"),
            "growing by nobody": growth(levels, solver="gone"),
            "growing sdxl": growth((14.6, 8.0, 4.0, 1.0), delta=0.5, **exploding),
        }

    def usual(self, kind: str, family: str, name: str) -> str:
        """The name of what fits a family at an input of this name."""
        if kind == "LATENT":
            return f"drafts of {family}" if name == "drafts" else f"empty {family}"
        if kind == "SWD_SCHEDULE":
            return family if family in ("scenes", "sdxl") else "flow"
        if kind in ("SIGMAS", "SAMPLER"):
            return {"SIGMAS": "whole", "SAMPLER": "euler"}[kind]
        if kind == "VAE" and family == "sdxl":
            return family
        return "scenes" if kind in ("VAE", "CLIP", "SWD_DISTILL_DATA") else family

    def drafts(self, family: str) -> dict[str, Any]:
        """An empty latent of a family, its drafts, and what the host's nodes make of these."""
        shape = {"sdxl": (1, 4, 8, 8), "wan": (1, 16, 2, 8, 8)}.get(family, (1, 16, 8, 8))
        empty = Latent(shape).make()
        schedule = self.shelves["SWD_SCHEDULE"][self.usual("SWD_SCHEDULE", family, "")]
        drafts = hosted(
            self.pack["SwDDrafts"],
            model=self.shelves["MODEL"][family], positive=self.shelves["CONDITIONING"][family],
            latent_image=empty, schedule=schedule, seed=1, count=3, stop_after=1, batch=2, cfg=1.0,
            upscale_method="bicubic",
        ).args[0]  # fmt: skip
        name = f"drafts of {family}"
        return {
            f"empty {family}": empty,
            f"picture of {family}": Latent(shape, "random").make(),
            name: drafts,
            f"{name}, one picked": call("nodes:LatentFromBatch", drafts, 1, 1),
            f"{name}, repeated": call("nodes:RepeatLatentBatch", drafts, 2),
            f"{name}, enlarged": {**drafts, "samples": drafts["samples"].repeat_interleave(2, -1)},
            f"{name}, flat": {**drafts, "samples": drafts["samples"][0]},
            f"{name}, none": {**drafts, "samples": drafts["samples"][:0]},
        }

    def data(self, family: str) -> Any:
        images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        return self.pack["SwDDistillData"].execute(
            [images], [self.shelves["CLIP"]["scenes"]], [self.shelves["VAE"][family]],
            [self.shelves["SWD_SCHEDULE"][family]], ["a fox\nhappy dog"],
        ).args[0]  # fmt: skip
