"""LoRA hooks, model patches and other guiders, at every scale as in the host's own run of it."""

import pytest
import torch
from chain import FAMILIES, SIZE, call, cfg_guider, host_chain, hosted, scalewise, sized
from paper import HALF, guided, relative, schedule_of

from swd_core.schedule import ScaleSchedule

FLOW = ["sd35-medium", "flux"]


def lora_of(model, seed=11):
    """A random LoRA of two layers in the host's own key names."""
    import comfy.lora

    generator = torch.Generator().manual_seed(seed)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    chosen = [k for k in keys if k.startswith("lora_unet_") and "attn" in k][:6]
    state = {}
    for key in chosen:
        weight = model.model.state_dict()[keys[key] if isinstance(keys[key], str) else keys[key][0]]
        if weight.ndim != 2:
            continue
        state[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
        state[f"{key}.lora_down.weight"] = (
            torch.randn(4, weight.shape[1], generator=generator) * 0.1
        )
    return state


@pytest.mark.parametrize("family", ["sd35-medium", "sdxl"])
def test_lora_hooks_with_keyframes(pack, small, models, record_property, family):
    """A LoRA whose strength changes equals the host's runs with it at each strength."""
    import comfy.hooks
    import comfy.sd

    preset, model = FAMILIES[family], models[family]
    lora, cond = lora_of(model), sized(guided(small, family))
    _, sigmas = schedule_of(pack, model, preset)
    strengths = [0.0, 1.0, 0.5, 0.25]
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    sampling = model.get_model_object("model_sampling")
    for step, strength in enumerate(strengths):
        percent = max(
            0.0,
            next(
                p / 1000
                for p in range(1000)
                if float(sampling.percent_to_sigma(p / 1000)) <= 1.005 * sigmas[step]
            ),
        )
        keyframes.add(
            comfy.hooks.HookKeyframe(strength, start_percent=0.0 if step == 0 else percent - 0.002)
        )
    hooks.set_keyframes_on_hooks(keyframes)
    hooked = [[c, {**more, "hooks": hooks}] for c, more in cond]

    def guider_at(step, size):
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, strengths[step], 0.0)
        return cfg_guider(patched, cond)

    ours = scalewise(pack, preset, cfg_guider(model, hooked))
    theirs = host_chain(pack, small, preset, model, guider_at)
    record_property("difference", relative(ours, theirs))
    assert relative(ours, theirs) <= max(5e-5, HALF)
    without = scalewise(pack, preset, cfg_guider(model, cond))
    assert relative(ours, without) > 1e-3, "the hook does something"


# The host's own model patches: name -> (families they are for, patch).
PATCHES = {
    "FreeU V2": (
        ["sdxl"], lambda m: call("comfy_extras.nodes_freelunch:FreeU_V2", m, 1.3, 1.4, 0.9, 0.2),
    ),
    "HyperTile": (
        ["sdxl"], lambda m: call("comfy_extras.nodes_hypertile:HyperTile", m, 64, 2, 0, False),
    ),
    "PAG": (["sdxl"], lambda m: call("comfy_extras.nodes_pag:PerturbedAttentionGuidance", m, 2.0)),
    "SAG": (["sdxl"], lambda m: call("comfy_extras.nodes_sag:SelfAttentionGuidance", m, 0.5, 2.0)),
    "Skip layer guidance": (
        ["sd35-medium"],
        lambda m: call("comfy_extras.nodes_sd3:SkipLayerGuidanceSD3", m, "1", 2.0, 0.0, 1.0),
    ),
    "RescaleCFG": (
        ["sdxl"], lambda m: call("comfy_extras.nodes_model_advanced:RescaleCFG", m, 0.7),
    ),
    "CFG zero star": (FLOW, lambda m: call("comfy_extras.nodes_cfg:CFGZeroStar", m)),
    "TCFG": (list(FAMILIES), lambda m: call("comfy_extras.nodes_tcfg:TCFG", m)),
    "Mahiro": (list(FAMILIES), lambda m: call("comfy_extras.nodes_mahiro:Mahiro", m)),
    "FreSca": (list(FAMILIES), lambda m: call("comfy_extras.nodes_fresca:FreSca", m, 1.0, 1.25, 3)),
    "APG without momentum": (
        list(FAMILIES), lambda m: call("comfy_extras.nodes_apg:APG", m, 0.8, 5.0, 0.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "family"), [(n, f) for n, (families, _) in PATCHES.items() for f in families]
)
def test_model_patches(compare, small, models, name, family):
    patched = PATCHES[name][1](models[family])
    positive, negative = sized(guided(small, family, 1)), sized(guided(small, family, 2))

    compare(family, lambda step, size: cfg_guider(patched, positive, negative, 3.0), tolerance=1e-4)


def perp_neg(model, conds):
    return call("comfy_extras.nodes_perpneg:PerpNegGuider", model, *conds, 3.0, 0.8)


def dual(style):
    return lambda model, conds: call(
        "comfy_extras.nodes_custom_sampler:DualCFGGuider", model, *conds, 3.0, 2.0, style
    )


GUIDERS = {"PerpNeg": perp_neg, "DualCFG": dual("regular"), "DualCFG nested": dual("nested")}


@pytest.mark.parametrize("name", GUIDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_guiders(compare, small, models, name, family):
    conds = [sized(guided(small, family, seed)) for seed in (1, 2, 3)]
    compare(family, lambda step, size: GUIDERS[name](models[family], conds), tolerance=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_post_cfg_functions(compare, small, models, family):
    patched = models[family].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.9)
    cond = sized(guided(small, family))
    compare(family, lambda step, size: cfg_guider(patched, cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_apg_with_momentum_is_refused_by_name(pack, small, models, family):
    patched = call("comfy_extras.nodes_apg:APG", models[family], 1.0, 5.0, -0.5)
    calls = []
    patched.set_model_unet_function_wrapper(lambda apply, a: calls.append(1))
    cond = guided(small, family)
    with pytest.raises(ValueError, match="Adaptive Projected Guidance.*momentum -0.5"):
        scalewise(pack, FAMILIES[family], cfg_guider(patched, cond, cond, 2.0))
    assert not calls, "said before the first model call"


def test_a_draft_with_apg_s_momentum_is_refused_at_any_size(pack, small, models):
    """Its average is over the steps of one run: a finished draft has seen the last of them only."""
    patched = call("comfy_extras.nodes_apg:APG", models["flux"], 1.0, 5.0, -0.5)
    cond = sized(guided(small, "flux"))
    schedule = ScaleSchedule((1.0, 1.0), (1.0, 0.6))
    given = {
        "model": patched, "positive": cond, "negative": cond, "cfg": 3.0, "schedule": schedule,
        "latent_image": {"samples": torch.zeros(1, 16, *SIZE)}, "upscale_method": "bicubic",
    }  # fmt: skip
    pack["SwDSample"].execute(**given, seed=1)
    with pytest.raises(ValueError, match="momentum -0.5 averages over the steps of one run"):
        hosted(pack["SwDDrafts"], **given, seed=1, count=1, stop_after=1, batch=1)


def test_cfg_override_asks_for_a_negative(pack, small, models):
    nodes = pytest.importorskip("comfy_extras.nodes_custom_sampler")
    if not hasattr(nodes, "CFGOverride"):
        pytest.skip("this ComfyUI has no CFG Override")
    patched = call(nodes.CFGOverride, models["flux"], 3.0, 0.0, 1.0)
    given = {
        "model": patched, "positive": sized(guided(small, "flux")), "seed": 1, "cfg": 1.0,
        "schedule": schedule_of(pack, models["flux"], FAMILIES["flux"])[0],
        "latent_image": {"samples": torch.zeros(1, 16, *SIZE)}, "upscale_method": "bicubic",
    }  # fmt: skip
    said = "CFG Override guides .* no negative conditioning"
    with pytest.raises(ValueError, match=said):
        pack["SwDSample"].execute(**given)
    twice = patched.clone()
    twice.model_options["disable_cfg1_optimization"] = True  # as NAG has it
    with pytest.raises(ValueError, match=said):
        pack["SwDSample"].execute(**{**given, "model": twice})
    pack["SwDSample"].execute(**given, negative=sized(guided(small, "flux", 2)))
    nothing = call(nodes.CFGOverride, models["flux"], 1.0, 0.0, 1.0)
    pack["SwDSample"].execute(**{**given, "model": nothing})
