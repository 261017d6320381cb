"""The schedule in a student's header: what auto takes, however the LoRA was loaded."""

import json

import pytest
from lora_files import SHORT, load, publish
from safetensors.torch import load_file, save_file


def with_header(folder, **header: str) -> None:
    """Adds entries to the header of a student's file."""
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, header)


def auto_schedule(pack, model):
    out = pack["SwDScaleSchedule"].execute(
        model=model, preset="auto", custom_sizes="", custom_sigmas=""
    )
    return out.args[0]


@pytest.mark.parametrize("family", ["sd35-medium", "sdxl"])
def test_auto_is_the_schedule_in_the_students_header(pack, small, models, loras, family):
    publish(small, family, loras / "student", SHORT, r=4, lora_alpha=4)
    published, _ = load(pack, models[family], "student")
    assert auto_schedule(pack, published).name == f"{family}-4"
    levels = "[999, 500]" if family == "sdxl" else "[1.0, 0.7]"
    kind = "timestep" if family == "sdxl" else "flow"
    with_header(loras / "student", swd_scales="[0.25, 1]", swd_sigmas=levels, swd_sigma_kind=kind)
    model, _ = load(pack, models[family], "student")
    schedule = auto_schedule(pack, model)
    assert schedule.scales == (0.25, 1) and list(schedule.sigmas) == json.loads(levels)
    assert auto_schedule(pack, model.clone()).scales == (0.25, 1), "other LoRAs may follow"
    bypassed, _ = load(pack, models[family], "student", 0.0)
    assert auto_schedule(pack, bypassed).name == f"{family}-4"


def after(pack, model, way: str):
    """The model behind one more node of the pack's or of the host's own."""
    import comfy_extras.nodes_model_advanced

    import nodes

    if way == "ours":
        return load(pack, model, "style")[0]
    style = "style/adapter_model.safetensors"
    if way == "LoraLoader":
        return nodes.LoraLoader().load_lora(model, None, style, 1.0, 0.0)[0]
    if way == "LoraLoaderModelOnly":
        return nodes.LoraLoaderModelOnly().load_lora_model_only(model, style, 1.0)[0]
    shift = comfy_extras.nodes_model_advanced.ModelSamplingSD3()
    return shift.patch(model, 3.0)[0]


def table_of(pack, model, preset: str = "auto") -> str:
    return pack["SwDScaleSchedule"].execute(
        model=model, preset=preset, custom_sizes="0.5 1", custom_sigmas="1 0.6"
    ).args[2]  # fmt: skip


@pytest.mark.parametrize("way", ["ours", "LoraLoader", "LoraLoaderModelOnly", "ModelSamplingSD3"])
def test_the_students_schedule_outlives_another_lora(pack, small, models, loras, way):
    base = models["sd35-medium"]
    publish(small, "sd35-medium", loras / "student", SHORT, r=4, lora_alpha=4)
    publish(small, "sd35-medium", loras / "style", ["to_q"], r=2, lora_alpha=2)
    own = {"swd_scales": "[0.25, 1]", "swd_sigmas": "[1.0, 0.7]", "swd_preset": "my ladder"}
    with_header(loras / "student", **own)
    student, report = load(pack, base, "student")
    assert "my ladder" in report
    both = after(pack, student, way)
    assert auto_schedule(pack, both).name == "my ladder"
    said = table_of(pack, both).splitlines()[-1]
    assert "own schedule" in said and "student" in said
    # Then it is only told what the student was made for.
    assert "my ladder" in table_of(pack, both, "sd35-medium-4").splitlines()[-1]
    assert "my ladder" in table_of(pack, both, "custom").splitlines()[-1]
    # The student over the style: the same.
    assert auto_schedule(pack, load(pack, after(pack, base, way), "student")[0]).name == "my ladder"


def test_the_later_of_two_own_schedules_counts_and_both_are_said(pack, small, models, loras):
    for name, ladder in (("one", "[0.25, 1]"), ("two", "[0.5, 1]")):
        publish(small, "flux", loras / name, SHORT, r=4, lora_alpha=4)
        with_header(loras / name, swd_scales=ladder, swd_sigmas="[1.0, 0.7]", swd_preset=name)
    model, _ = load(pack, models["flux"], "one")
    model, report = load(pack, model, "two")
    assert auto_schedule(pack, model).scales == (0.5, 1)
    assert "instead of the own schedule of one" in report


def test_the_node_says_where_a_presets_schedule_comes_from(pack, small, models, loras):
    publish(small, "flux", loras / "published", SHORT, r=4, lora_alpha=4)
    model, report = load(pack, models["flux"], "published")
    assert "no schedule of its own" in report
    assert "no schedule of its own" in table_of(pack, model).splitlines()[-1]
    assert "flux" in table_of(pack, model).splitlines()[-1]
    assert "preset" in table_of(pack, model, "flux-4").splitlines()[-1]
    assert "custom" in table_of(pack, model, "custom").splitlines()[-1]


def test_a_damaged_schedule_in_the_header_is_refused(pack, small, models, loras):
    publish(small, "flux", loras / "student", SHORT, r=4, lora_alpha=4)
    for broken in ("[0.5", "[0.5, 0.25]", '["a", 1]', "[" * 100_000):
        with_header(loras / "student", swd_scales=broken, swd_sigmas="[1.0, 0.7]")
        with pytest.raises(ValueError, match="schedule in the LoRA's header"):
            load(pack, models["flux"], "student")
