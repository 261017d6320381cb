"""Nodes of the host that put something into the model: what they keep must not outlive a size.

Looked through one by one (comfy_extras of 0.3.64 and 0.33.0). The truth is the host's own run at
each scale, where every run begins with nothing kept.
"""

import importlib
import inspect

import pytest
import torch
import videos
from chain import FAMILIES, SIZE, call, cfg_guider, host_chain, scalewise, sized
from paper import guided, relative, schedule_of

from swd_core.schedule import ScaleSchedule

EVERY = list(FAMILIES)
FLOW = ["sd35-medium", "flux"]


def easy(node, threshold, start):
    return lambda m: call(f"comfy_extras.nodes_easycache:{node}", m, threshold, start, 1.0, False)


def operation(name, *values):
    module = "comfy_extras.nodes_latent"

    def patch(model):
        importlib.import_module("comfy_extras.nodes_post_processing")  # the two import each other
        made = call(f"{module}:{name}", *values)
        return call(f"{module}:LatentApplyOperationCFG", model, made)

    return patch


class KeysOfTheFirstStep:
    """Kept as Flux KV Cache keeps those of reference pictures, until the host cleans up."""

    def __init__(self):
        self.kept = {}

    def __call__(self, q, k, v, extra_options):
        place = (*extra_options["block"], extra_options["block_index"])
        return q, 0.9 * k + 0.1 * self.kept.setdefault(place, k), v

    def cleanup(self):
        self.kept = {}


def keeping(model):
    if not hasattr(model, "model_patches_call_function"):
        raise ImportError("it cleans up no patches")
    clone = model.clone()
    clone.set_model_attn1_patch(KeysOfTheFirstStep())
    return clone


# Node -> (families it is for, patch); those that test_conditioning.py has are left out.
PATCHES = {
    "EasyCache": (EVERY, easy("EasyCacheNode", 0.2, 0.15)),
    "EasyCache at once": (EVERY, easy("EasyCacheNode", 3.0, 0.0)),
    "LazyCache": (EVERY, easy("LazyCacheNode", 0.2, 0.15)),
    "LazyCache at once": (EVERY, easy("LazyCacheNode", 3.0, 0.0)),
    "Epsilon Scaling": (EVERY, lambda m: call("comfy_extras.nodes_eps:EpsilonScaling", m, 1.01)),
    "TSR": (EVERY, lambda m: call("comfy_extras.nodes_eps:TemporalScoreRescaling", m, 0.9, 1.0)),
    "CFGNorm": (EVERY, lambda m: call("comfy_extras.nodes_cfg:CFGNorm", m, 0.9)),
    "CFGNorm before": (EVERY, lambda m: call("comfy_extras.nodes_cfg:CFGNorm", m, 0.9, True)),
    "RenormCFG": (EVERY, lambda m: call("comfy_extras.nodes_lumina2:RenormCFG", m, 100.0, 1.0)),
    "Sharpen": (EVERY, operation("LatentOperationSharpen", 3, 1.0, 0.2)),
    "Tonemap": (EVERY, operation("LatentOperationTonemapReinhard", 1.0)),
    "Skip layer DiT": (
        ["sd35-medium"],
        lambda m: call("comfy_extras.nodes_slg:SkipLayerGuidanceDiT", m, 2.0, 0.0, 1.0, "0", ""),
    ),
    "Skip layer DiT simple": (
        ["sd35-medium"],
        lambda m: call("comfy_extras.nodes_slg:SkipLayerGuidanceDiTSimple", m, 0.0, 1.0, "0", ""),
    ),
    "NAG": (FLOW, lambda m: call("comfy_extras.nodes_nag:NAGuidance", m, 5.0, 0.5, 1.5)),
    "ScaleROPE": (
        ["flux"], lambda m: call("comfy_extras.nodes_rope:ScaleROPE", m, 1.1, 0, 1.1, 0, 1.0, 0),
    ),
    "Deep shrink": (
        ["sdxl"],
        lambda m: call(
            "comfy_extras.nodes_model_downscale:PatchModelAddDownscale",
            m, 3, 2.0, 0.0, 0.7, True, "bicubic", "bicubic",
        ),
    ),
    "FreeU": (
        ["sdxl"], lambda m: call("comfy_extras.nodes_freelunch:FreeU", m, 1.1, 1.2, 0.9, 0.2),
    ),
    "as Flux KV Cache": (["sdxl"], keeping),
}  # fmt: skip
CASES = [(name, family) for name, (families, _) in PATCHES.items() for family in families]


def patched(name, model):
    try:
        return PATCHES[name][1](model)
    except (ImportError, AttributeError, TypeError) as error:
        pytest.skip(f"not in this host: {error}")


@pytest.fixture(scope="module")
def models(small):
    return {family: small.host_model(family) for family in FAMILIES}


@pytest.mark.parametrize(("name", "family"), CASES)
def test_each_size_begins_with_nothing_kept(pack, small, models, record_property, name, family):
    model = patched(name, models[family])
    conds = [sized(guided(small, family, seed)) for seed in (1, 2)]
    guider = cfg_guider(model, *conds, 3.0)
    ours = scalewise(pack, FAMILIES[family], guider)
    theirs = host_chain(pack, small, FAMILIES[family], models[family], lambda step, size: guider)
    record_property("difference", relative(ours, theirs))
    assert ours.isfinite().all() and relative(ours, theirs) <= 5e-5
    again = scalewise(pack, FAMILIES[family], guider)
    assert torch.equal(again, ours), "and the next run, with nothing of this one"


def counted(model, sizes):
    """A clone that notes the latent size of every call of the network."""
    clone = model.clone()

    def note(apply, a):
        sizes.append(tuple(a["input"].shape[-2:]))
        return apply(a["input"], a["timestep"], **a["c"])

    clone.set_model_unet_function_wrapper(note)
    return clone


SIZES = (0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0)
SIGMAS = (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93)


@pytest.mark.parametrize("family", FLOW)
def test_a_cache_still_saves_steps_within_a_size(pack, small, models, family):
    """The host's LazyCache has to see two steps before it can leave one out."""
    sizes: list[tuple[int, int]] = []
    model = easy("LazyCacheNode", 3.0, 0.0)(counted(models[family], sizes))
    latent = torch.zeros(1, 16, *SIZE)
    schedule = ScaleSchedule(SIZES, SIGMAS)
    sampler = pack["SwDSampler"].execute(schedule=schedule, upscale_method="bicubic").args[0]
    guider = cfg_guider(model, guided(small, family))
    sigmas = torch.tensor([*SIGMAS, 0.0])
    guider.sample(latent, latent, sampler, sigmas, disable_pbar=True, seed=1)
    assert all(2 <= sizes.count(size) < 4 for size in ((16, 24), SIZE)), sizes


def test_supir_s_picture_of_the_finished_size_is_refused(pack, small, models):
    patch = pytest.importorskip("comfy.ldm.supir.supir_patch")
    model = models["sdxl"].clone()
    patch.SUPIRPatch(None, None, torch.zeros(1, 4, *SIZE), 1.0, 1.0).register(model)
    cond = guided(small, "sdxl")
    with pytest.raises(ValueError, match="SUPIR"):
        scalewise(pack, FAMILIES["sdxl"], cfg_guider(model, cond))


@pytest.fixture
def windows(wan):
    """Wan with the host's context windows of 5 frames; more named inputs go to the node."""

    def make(**more):
        module, name = "comfy_extras.nodes_context_windows", "ContextWindowsManualNode"
        inputs = {
            "context_length": 5, "context_overlap": 2, "context_schedule": "standard_static",
            "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid", "dim": 2, **more,
        }  # fmt: skip
        named = inspect.signature(getattr(importlib.import_module(module), name).execute).parameters
        if "freenoise" in named:  # newer hosts' node has it among those without a default
            inputs.setdefault("freenoise", False)
        return call(f"{module}:{name}", wan, **inputs)

    return make


def test_context_windows_go_by_the_frames_of_each_size(pack, wan, windows, record_property):
    schedule, _ = schedule_of(pack, wan, videos.PRESET)
    ours = videos.sample(pack, windows(), schedule, videos.text())
    theirs = videos.chain(windows(), lambda size: videos.text())
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= videos.TOLERANCE
    assert relative(videos.sample(pack, wan, schedule, videos.text()), ours) > 1e-3


def test_noise_that_is_shuffled_once_is_refused(pack, wan, windows):
    try:
        model = windows(freenoise=True)
    except TypeError:
        pytest.skip("this host shuffles no noise")
    schedule, sigmas = schedule_of(pack, wan, videos.PRESET)
    with pytest.raises(ValueError, match="freenoise.*Context Windows"):
        videos.sample(pack, model, schedule, videos.text())
    short = videos.empty(size=(5, *videos.SIZE))
    assert videos.sample(pack, model, schedule, videos.text(), short).isfinite().all()


def test_a_second_model_whose_negative_has_the_finished_size_is_refused(pack, small, models):
    import comfy_extras.nodes_custom_sampler as nodes

    if not hasattr(nodes, "DualModelGuider"):
        pytest.skip("not in this host")
    model, cond = models["sd35-medium"], guided(small, "sd35-medium")

    def guider(cfg):
        return call(nodes.DualModelGuider, model, cond, cfg, model.clone(), cond)

    with pytest.raises(ValueError, match="Dual Model CFG Guider"):
        scalewise(pack, FAMILIES["sd35-medium"], guider(3.0))
    plain = scalewise(pack, FAMILIES["sd35-medium"], cfg_guider(model, cond))
    assert torch.equal(scalewise(pack, FAMILIES["sd35-medium"], guider(1.0)), plain)
