"""Published LoRA students: PEFT itself is the truth for what they do to the weights."""

import json
import shutil

import pytest
import torch
from lora_models import ATTENTION, DEPTH, MLP, sd3, to_host, with_lora
from safetensors.torch import load_file, save_file
from torch import Tensor

from swd_core.lora import LoraLayer, SwDLora, schedule_header, to_host_state_dict
from swd_core.lora_files import read_lora, write_peft
from swd_core.lora_sd3 import merge_sd3
from swd_core.scenes import model as compact
from swd_core.schedule import ScaleSchedule

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")


CONFIGS = {
    "alpha is rank": {"r": 4, "lora_alpha": 4},
    "alpha is not rank": {"r": 4, "lora_alpha": 10},
    "rank_pattern": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"attn.to_q": 8, "transformer_blocks.0.ff.net.2": 2},
    },
    "alpha_pattern": {
        "r": 4,
        "lora_alpha": 6,
        "alpha_pattern": {"to_v": 3, r"transformer_blocks\.1\.attn\.to_k": 1},
    },
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"to_k": 9}},
}


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(4)
    return {
        "x": torch.randn(2, 16, 20, 16, generator=generator),
        "text": torch.randn(2, 5, 24, generator=generator),
        "pooled": torch.randn(2, 40, generator=generator),
        "sigma": torch.tensor([0.9, 0.3]),
    }


@pytest.fixture
def diffusers_positions(monkeypatch):
    """Lets the compact MMDiT use diffusers' position table; its own is the host's grid."""

    def install(model) -> None:
        embed = model.pos_embed

        def table(height: int, width: int, dim: int, device) -> Tensor:
            return embed.cropped_pos_embed(height * embed.patch_size, width * embed.patch_size)[0]

        monkeypatch.setattr(compact, "position_embedding", table)

    return install


@torch.inference_mode()
def output(model, inputs) -> Tensor:
    return model(
        inputs["x"], encoder_hidden_states=inputs["text"], pooled_projections=inputs["pooled"],
        timestep=1000 * inputs["sigma"],
    ).sample  # fmt: skip


@torch.inference_mode()
def compact_output(state: dict[str, Tensor], inputs) -> Tensor:
    model = compact.MMDiT.from_state_dict(state)
    return model(inputs["x"], inputs["sigma"], inputs["text"], inputs["pooled"])


def test_compact_mmdit_is_diffusers_sd3(inputs, diffusers_positions):
    model = sd3()
    diffusers_positions(model)
    torch.testing.assert_close(
        compact_output(to_host(model.state_dict()), inputs),
        output(model, inputs),
        atol=2e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_merged_student_gives_what_peft_gives(tmp_path, inputs, diffusers_positions, name):
    model = sd3()
    diffusers_positions(model)
    host, bare = (
        to_host({k: v.clone() for k, v in model.state_dict().items()}),
        output(model, inputs),
    )
    wrapped = with_lora(model, tmp_path, ATTENTION + MLP, **CONFIGS[name])
    expected = output(wrapped, inputs)
    assert (expected - bare).abs().mean() > 0.01, "the adapters do something"
    merged = merge_sd3(host, read_lora(tmp_path))
    torch.testing.assert_close(compact_output(merged, inputs), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_of_sd35_lands_where_peft_puts_it(tmp_path, name):
    """With dual attention (attn2) and modulation layers, which the compact MMDiT does not have."""
    model = sd3(dual_attention_layers=(0,))
    host = to_host({k: v.clone() for k, v in model.state_dict().items()})
    targets = [*ATTENTION, *MLP, "norm1_context.linear"]
    wrapped = with_lora(model, tmp_path, targets, **CONFIGS[name])
    expected = to_host(wrapped.merge_and_unload().state_dict())
    merged = merge_sd3(host, read_lora(tmp_path))
    assert merged.keys() == expected.keys()
    changed = [k for k in host if not torch.equal(merged[k], host[k])]
    assert any("attn2.qkv" in k for k in changed) and any(
        "context_block.adaLN" in k for k in changed
    )
    for key, value in expected.items():
        torch.testing.assert_close(
            merged[key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_half_of_the_student_is_half_of_the_way(tmp_path):
    model = sd3()
    host = to_host({k: v.clone() for k, v in model.state_dict().items()})
    with_lora(model, tmp_path, ATTENTION, r=4, lora_alpha=8)
    lora = read_lora(tmp_path)
    none, half, full = (merge_sd3(host, lora, strength) for strength in (0.0, 0.5, 1.0))
    for key, value in host.items():
        torch.testing.assert_close(none[key], value)
        torch.testing.assert_close(half[key], (value + full[key]) / 2)


def test_renamed_copy_and_other_layouts_read_the_same(tmp_path):
    with_lora(sd3(), tmp_path / "peft", ATTENTION, r=4, lora_alpha=4)
    folder = read_lora(tmp_path / "peft")
    shutil.copy(tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "renamed.safetensors")
    kohya = {}
    for module, layer in folder.layers.items():
        kohya[f"transformer.{module}.lora_down.weight"] = layer.down.contiguous()
        kohya[f"transformer.{module}.lora_up.weight"] = layer.up.contiguous()
        kohya[f"transformer.{module}.alpha"] = torch.tensor(4.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    for path in ("renamed.safetensors", "kohya.safetensors", "peft/adapter_model.safetensors"):
        lora = read_lora(tmp_path / path)
        assert lora.architecture == "sd3" and lora.layers.keys() == folder.layers.keys()
        for module, layer in lora.layers.items():
            torch.testing.assert_close(layer.delta(), folder.layers[module].delta())


def linked(hub, link, way: str) -> None:
    """A file in a folder of LoRAs that is a link, as people and the hub's own cache make them."""
    weights = hub / "adapter_model.safetensors"
    if way == "relative":
        link.symlink_to(f"../{hub.name}/adapter_model.safetensors")
    elif way == "link to a link":  # the hub's snapshots are links into its blobs
        blob = hub.parent / "blobs" / "0123abcd"
        blob.parent.mkdir()
        weights.rename(blob)
        weights.symlink_to(blob)
        link.symlink_to(weights)
    elif way == "config beside the link":
        (hub / "adapter_config.json").rename(link.with_name("adapter_config.json"))
        link.symlink_to(weights)
    else:
        link.symlink_to(weights)


WAYS = ["absolute", "relative", "link to a link", "config beside the link"]


@pytest.mark.parametrize("way", WAYS)
def test_a_linked_file_keeps_its_config(tmp_path, way):
    with_lora(sd3(), tmp_path / "hub", ATTENTION, r=4, lora_alpha=16)
    expected = read_lora(tmp_path / "hub")
    (tmp_path / "loras").mkdir()
    link = tmp_path / "loras" / "linked.safetensors"
    linked(tmp_path / "hub", link, way)
    lora = read_lora(link)
    assert {layer.scale for layer in lora.layers.values()} == {4.0}
    assert lora.layers.keys() == expected.layers.keys()
    beside_target = way != "config beside the link"
    assert lora.scaling.startswith("alpha from adapter_config.json")
    assert ("adapter_model.safetensors" in lora.scaling) == beside_target


def test_a_neighbour_of_the_link_does_not_hide_the_files_own_config(tmp_path):
    with_lora(sd3(), tmp_path / "hub", ATTENTION, r=4, lora_alpha=16)
    with_lora(sd3(), tmp_path / "loras", ATTENTION, r=8, lora_alpha=8)
    link = tmp_path / "loras" / "linked.safetensors"
    linked(tmp_path / "hub", link, "absolute")
    assert {layer.scale for layer in read_lora(link).layers.values()} == {4.0}


def test_unknown_alpha_is_said(tmp_path, caplog):
    with_lora(sd3(), tmp_path / "hub", ATTENTION, r=4, lora_alpha=16)
    shutil.copy(tmp_path / "hub" / "adapter_model.safetensors", tmp_path / "copy.safetensors")
    lora = read_lora(tmp_path / "copy.safetensors")
    assert {layer.scale for layer in lora.layers.values()} == {1.0}
    assert lora.scaling.startswith("alpha = rank") and "adapter_config.json" in lora.scaling
    assert "copy.safetensors" in caplog.text and "alpha" in caplog.text
    caplog.clear()
    read_lora(tmp_path / "hub")
    assert not caplog.text


def test_alpha_tensor_counts_where_there_is_one(tmp_path):
    down, up = torch.randn(4, 8), torch.randn(8, 4)
    stem = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{stem}.lora_A.weight": down,
        f"{stem}.lora_B.weight": up,
        f"{stem}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    (layer,) = read_lora(tmp_path / "x.safetensors").layers.values()
    torch.testing.assert_close(layer.delta(), 0.5 * up @ down)


def test_written_student_is_read_by_peft_itself(tmp_path):
    model = sd3()
    host = to_host({k: v.clone() for k, v in model.state_dict().items()})
    rows = {"attn.to_q": (128, 128), "ff.net.2": (512, 128)}
    modules = [f"transformer_blocks.{block}.{leaf}" for block in range(DEPTH) for leaf in rows]
    layers = {}
    for module in modules:
        n_in, n_out = rows[module.split(".", 2)[2]]
        layers[module] = LoraLayer(torch.randn(4, n_in) / 10, torch.randn(n_out, 4) / 10, 1.5)
    write_peft(tmp_path, layers, rank=4, alpha=6, base_model="test", metadata={"swd_steps": "4"})
    assert read_lora(tmp_path).metadata["swd_steps"] == "4"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 6 and config["peft_type"] == "LORA"
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path)
    expected = to_host(wrapped.merge_and_unload().state_dict())
    for key, value in merge_sd3(host, read_lora(tmp_path)).items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("module", "family", "stem"),
    [
        ("transformer_blocks.3.attn.to_q", "sd3", "transformer.transformer_blocks.3.attn.to_q"),
        (
            "single_transformer_blocks.3.attn.to_q", "flux",
            "transformer.single_transformer_blocks.3.attn.to_q",
        ),
        (
            "mid_block.attentions.0.transformer_blocks.1.attn1.to_q", "sdxl",
            "lora_unet_mid_block_attentions_0_transformer_blocks_1_attn1_to_q",
        ),
    ],
)  # fmt: skip
def test_host_keys_of_each_family_carry_the_scale(tmp_path, module, family, stem):
    down, up = torch.randn(4, 8), torch.randn(8, 4)
    key = f"base_model.model.{module}"
    save_file(
        {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"lora_alpha": 32, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    lora = read_lora(tmp_path)
    assert lora.architecture == family
    state = to_host_state_dict(lora)
    assert state.keys() == {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"}
    # What the host makes of it: alpha / rank * up @ down.
    host = (
        state[f"{stem}.alpha"]
        / 4
        * state[f"{stem}.lora_up.weight"]
        @ state[f"{stem}.lora_down.weight"]
    )
    torch.testing.assert_close(host, 32 / 4**0.5 * up @ down)


def test_student_of_another_family_is_refused(tmp_path):
    key = "base_model.model.single_transformer_blocks.0.attn.to_q"
    save_file(
        {f"{key}.lora_A.weight": torch.zeros(4, 8), f"{key}.lora_B.weight": torch.zeros(8, 4)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(ValueError, match="made for FLUX"):
        merge_sd3({}, read_lora(tmp_path / "x.safetensors"))


def test_student_of_another_size_is_refused(tmp_path):
    host = to_host(sd3().state_dict())
    key = "base_model.model.transformer_blocks.0.attn.to_q"
    for width, module in ((8, key), (128, key.replace(".0.", ".7."))):
        tensors = {
            f"{module}.lora_A.weight": torch.zeros(4, width),
            f"{module}.lora_B.weight": torch.zeros(width, 4),
        }
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match="does not fit the base"):
            merge_sd3(host, read_lora(tmp_path / "x.safetensors"))


def test_embedded_student_is_in_the_published_layout(random_weights):
    folder = random_weights / "scenes_swd_lora"
    keys = load_file(folder / "adapter_model.safetensors").keys()
    assert {k.split(".")[-2] for k in keys} == {"lora_A", "lora_B"}
    assert all(k.startswith("base_model.model.transformer_blocks.") for k in keys)
    assert read_lora(folder).architecture == "sd3"


@pytest.mark.parametrize("frames", [(), (0.25, 1.0)])
def test_a_schedule_goes_through_the_header_and_back(frames):
    schedule = ScaleSchedule((0.5, 1), (1.0, 0.6), name="mine", frames=frames)
    header = schedule_header(schedule)
    assert SwDLora({}, "sd3", header).schedule == schedule
    assert ("swd_frames" in header) == bool(frames), "older versions read those of pictures"
    broken = {**header, "swd_frames": "[0.25"}
    with pytest.raises(ValueError, match="schedule in the LoRA's header"):
        _ = SwDLora({}, "sd3", broken).schedule
