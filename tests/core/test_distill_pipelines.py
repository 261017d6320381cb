"""From a diffusers pipeline on the disk to a student: the commands, as a user gives them.

The truth is diffusers itself: what its pipelines hand to their transformer or UNet when they run,
and what they make with the LoRA that comes out.
"""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

import distill_pipelines as small  # noqa: E402
from distill_pipelines import run  # noqa: E402

from swd_core.distill import session, teachers  # noqa: E402
from swd_core.distill.adapters import adapter  # noqa: E402
from swd_core.distill.config import read_settings  # noqa: E402
from swd_core.distill.world import World  # noqa: E402

CPU = torch.device("cpu")
COMMANDS = ("sample-teacher", "prepare", "distill")


@dataclass
class Made:
    """What the three commands left behind."""

    name: str
    place: Path

    @property
    def settings(self):
        return read_settings(self.place / "config.toml")

    def inside(self):
        return contextlib.chdir(self.place)

    def pipe(self):
        """diffusers' own pipeline, loaded from the same folder."""
        kind = self.settings.family.architecture.diffusers.pipeline
        absent = {"text_encoder_3": None, "tokenizer_3": None} if self.name == "sd3-two" else {}
        pipe = getattr(diffusers, kind).from_pretrained(self.place / "base", **absent)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def rows(self) -> dict[str, dict[str, torch.Tensor]]:
        """Every prepared picture's tensors by its name."""
        found = {}
        for path in (self.place / "prepared").glob("*x*-*.safetensors"):
            with safe_open(path, "pt") as file:
                names = json.loads(file.metadata()["names"])
            tensors = load_file(path)
            found |= {n: {k: v[i].float() for k, v in tensors.items()} for i, n in enumerate(names)}
        return found


@pytest.fixture(scope="module", params=small.BUILDERS)
def made(request, tmp_path_factory) -> Made:
    place = small.make_place(request.param, tmp_path_factory.mktemp(request.param))
    for name in COMMANDS:
        code, written = run(place, name, "--config", "config.toml")
        assert code == 0, written
    return Made(request.param, place)


def reading(made: "Made", tokens: int) -> dict:
    """How many tokens of a prompt the pipeline reads; SDXL's always 77."""
    return {} if made.name == "sdxl" else {"max_sequence_length": tokens}


def guided(made: "Made", value: float) -> dict:
    """The pipeline's arguments for classifier-free guidance; 1 is none, which some call 0."""
    if made.name == "qwen-image":
        return {"true_cfg_scale": value} | ({"negative_prompt": " "} if value > 1 else {})
    return {"guidance_scale": value - (made.name in ("zimage", "krea2"))}


def handed_over(pipe, **options) -> list[dict[str, torch.Tensor]]:
    """What a running pipeline first tells its model of each prompt, padding left out.

    T5 is given 512 tokens, which the authors train with; SD3's pipeline has 256 by default.
    """
    model, seen = getattr(pipe, "unet", None) or pipe.transformer, []
    if getattr(pipe, "transformer", None) is not None:
        options["max_sequence_length"] = 512

    def keep(_, args, kwargs) -> None:
        extra = kwargs.get("added_cond_kwargs") or {}
        pooled = extra.get("text_embeds", kwargs.get("pooled_projections"))
        context = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        masks = [kwargs.get(f"encoder_{name}_mask") for name in ("hidden_states", "attention")]
        mask = next((mask for mask in masks if mask is not None), None)
        for i, tokens in enumerate(context):
            tokens = tokens if mask is None else tokens[mask[i].bool()]
            tokens = tokens.flatten(1)  # of Krea 2 several layers' states
            seen.append({"context": tokens} | ({} if pooled is None else {"pooled": pooled[i]}))

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    pipe(height=small.SIDE, width=small.SIDE, num_inference_steps=1, **options)
    handle.remove()
    return seen


def told(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What prepared data says of a prompt, padding left out."""
    found = {key: row[key] for key in ("context", "pooled") if key in row}
    if "mask" in row:
        found["context"] = found["context"][row["mask"].bool()]
    return found


def close(got: torch.Tensor, wanted: torch.Tensor, share: float = 2e-3) -> None:
    """Equal but for half precision."""
    assert got.shape == wanted.shape
    worst = float((got.float() - wanted.float()).abs().max())
    assert worst <= share * float(wanted.abs().max())


def test_the_teachers_pictures_are_the_pipelines_own(made):
    pipe = made.pipe()
    assert sorted(p.name for p in (made.place / "pictures").glob("*.png")) == [
        "000000.png", "000001.png", "000002.png"
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(5 * 1_000_003 + 1)
    expected = pipe(
        prompt=small.PROMPTS[1], height=64, width=64, num_inference_steps=2, generator=generator,
        **guided(made, 3.0), **reading(made, 512),
    ).images[0]  # fmt: skip
    picture = np.asarray(Image.open(made.place / "pictures" / "000001.png"), np.int16)
    assert abs(picture - np.asarray(expected, np.int16)).max() <= 1
    assert picture.std() > 1, "not one flat colour"
    assert (made.place / "pictures" / "000001.txt").read_text() == small.PROMPTS[1]


@pytest.mark.parametrize("made", [n for n in small.BUILDERS if n != "sdxl"], indirect=True)
def test_the_teachers_pictures_read_as_much_of_a_prompt_as_the_training(made):
    """[data] text_tokens, whatever the pipeline's own default; SDXL reads CLIP's 77 only."""
    prompt = "a fox and a happy dog " * 20
    (made.place / "long.txt").write_text(prompt)
    text = (made.place / "config.toml").read_text()
    text = text.replace("size = 64", "size = 64\ntext_tokens = 30")
    text = text.replace('"pictures"', '"long"').replace('"prompts.txt"', '"long.txt"')
    (made.place / "long.toml").write_text(text)
    code, written = run(made.place, "sample-teacher", "--config", "long.toml")
    assert code == 0, written
    picture = np.asarray(Image.open(made.place / "long" / "000000.png"), np.int16)
    pipe, worst = made.pipe(), {}
    for tokens in (30, 60):
        expected = pipe(
            prompt=prompt.strip(), height=64, width=64, num_inference_steps=2,
            generator=torch.Generator().manual_seed(5 * 1_000_003),
            **guided(made, 3.0), **reading(made, tokens),
        ).images[0]  # fmt: skip
        worst[tokens] = abs(picture - np.asarray(expected, np.int16)).max()
    assert worst[30] <= 1 < worst[60]


@pytest.mark.parametrize("made", [n for n in small.BUILDERS if n != "sdxl"], indirect=True)
def test_other_text_tokens_than_were_prepared_are_refused(made):
    text = (made.place / "config.toml").read_text()
    edited = text.replace("size = 64", "size = 64\ntext_tokens = 30").replace('"run"', '"edited"')
    (made.place / "edited.toml").write_text(edited)
    code, written = run(made.place, "distill", "--config", "edited.toml")
    assert code != 0 and "with [data] text_tokens 512, and it is 30 now" in written
    assert not (made.place / "edited").exists()


def test_pictures_made_together_are_those_made_one_by_one(made):
    """The three above were made in one call: but for rounding, each is what its own call makes."""
    text = (made.place / "config.toml").read_text()
    alone = text.replace("seed = 5", "seed = 5\nbatch = 1").replace('"pictures"', '"alone"')
    (made.place / "alone.toml").write_text(alone)
    code, written = run(made.place, "sample-teacher", "--config", "alone.toml")
    assert code == 0, written
    for i in range(len(small.PROMPTS)):
        one, together = (
            np.asarray(Image.open(made.place / folder / f"{i:06}.png"), np.int16)
            for folder in ("alone", "pictures")
        )
        assert abs(one - together).max() <= 1 and (one == together).mean() > 0.99


def test_prepared_text_is_what_the_pipeline_hands_to_its_model(made):
    pipe, rows = made.pipe(), made.rows()
    for i, prompt in enumerate(small.PROMPTS):
        (wanted,) = handed_over(pipe, prompt=prompt, **guided(made, 1.0))
        found = told(rows[f"{i:06}.png"])
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            close(found[key], value)


def test_prepared_guidance_is_what_the_pipeline_guides_with(made):
    """FLUX has its guidance inside the model; its empty text is the empty prompt's."""
    empty, pipe = load_file(made.place / "prepared" / "empty.safetensors"), made.pipe()
    found = told({key: value[0] for key, value in empty.items()})
    if made.settings.family.name == "flux":
        (wanted,) = handed_over(pipe, prompt="", guidance_scale=3.5)
    else:  # older pipelines put what they guide with first
        place = -1 if made.name in small.LANGUAGE else 0
        wanted = handed_over(pipe, prompt="a fox", **guided(made, 3.0))[place]
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if float(value.abs().max()):
            close(found[key], value)
        else:
            assert not found[key].any()


def test_prepared_latents_are_the_pipelines_vae(made):
    pipe, rows = made.pipe(), made.rows()
    for name, row in rows.items():
        pixels = pipe.image_processor.preprocess(Image.open(made.place / "pictures" / name))
        half = pixels.reshape(1, 3, 32, 2, 32, 2).mean((3, 5))
        for side, picture in ((8, pixels), (4, half)):
            side //= 2 if made.name == "flux2" else 1
            close(row[f"latent_{side}x{side}"], encoded(made, pipe, picture)[0], 3e-3)


@torch.no_grad()
def encoded(made: Made, pipe, picture: torch.Tensor) -> torch.Tensor:
    """Latents as the pipelines that begin with a picture make them."""
    if made.name == "flux2":
        return pipe._encode_vae_image(picture, None)
    if made.name in ("qwen-image", "krea2"):
        coded = pipe.vae.encode(picture[:, :, None]).latent_dist.mode()
        mean, std = pipe.vae.config.latents_mean, pipe.vae.config.latents_std
        return torch.stack([(coded[:, i, 0] - mean[i]) / std[i] for i in range(16)], 1)
    coded = pipe.vae.encode(picture).latent_dist.mode() - (pipe.vae.config.shift_factor or 0)
    return coded * pipe.vae.config.scaling_factor


def as_ours(made: Made, pipe, latents: torch.Tensor) -> torch.Tensor:
    """The latents that a pipeline gives out as (B, C, h, w) in its model's units."""
    if made.name == "flux":
        return pipe._unpack_latents(latents, 64, 64, 8)
    if made.name in ("qwen-image", "krea2"):
        return diffusers.QwenImagePipeline._unpack_latents(latents, 64, 64, 8)[:, :, 0]
    if made.name == "flux2":
        bn = pipe.vae.bn
        std = (bn.running_var + pipe.vae.config.batch_norm_eps).sqrt()
        return (pipe._patchify_latents(latents) - bn.running_mean.view(1, -1, 1, 1)) / std.view(
            1, -1, 1, 1
        )
    return latents


@torch.no_grad()
def test_decoded_latents_are_the_pipelines_picture(made):
    pipe = made.pipe()
    options = {"prompt": "a fox", "height": 64, "width": 64, "num_inference_steps": 2}
    with made.inside():
        decoder = teachers.load_decoder(made.settings, CPU)
    results = []
    for kind in ("latent", "np"):
        generator = torch.Generator().manual_seed(0)
        results.append(pipe(**options, generator=generator, output_type=kind).images)
    latents, expected = results
    latents = as_ours(made, pipe, latents)
    close(decoder.pictures(latents), torch.from_numpy(expected), 1e-5)


def sampled(made: Made, pipe) -> torch.Tensor:
    """The pipeline's own run on whatever its model is now."""
    return pipe(
        prompt="a fox", height=64, width=64, num_inference_steps=3, **guided(made, 1.0),
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip


def test_diffusers_makes_the_same_of_the_lora_as_the_trainer(made):
    part = made.settings.family.architecture.diffusers.part
    with made.inside():
        trainer = session.build_trainer(made.settings, World())
        session.restore(trainer, made.place / "run" / "checkpoint.pt")
    assert trainer.step == 3
    pipe = made.pipe()
    bare = sampled(made, pipe)

    pipe.register_modules(**{part: trainer.model.module.eval()})
    close(sampled(made, pipe), bare, 1e-5)
    with trainer.averaged(), adapter(trainer.model.module, "student"):
        expected = sampled(made, pipe)
    assert float((expected - bare).abs().max()) > 0.02 * float(bare.abs().max())

    lora = made.place / "run" / "swd_lora"
    by_peft = made.pipe()
    model = peft.PeftModel.from_pretrained(getattr(by_peft, part), lora)
    by_peft.register_modules(**{part: model.merge_and_unload()})
    close(sampled(made, by_peft), expected)

    by_diffusers = made.pipe()
    tensors = load_file(lora / "adapter_model.safetensors")
    by_diffusers.load_lora_weights(
        {k.replace("base_model.model", part, 1): v for k, v in tensors.items()}
    )
    close(sampled(made, by_diffusers), expected)


def test_pictures_of_ones_own(tmp_path):
    """Not made by the teacher: any ratio, a caption beside each."""
    place = small.make_place("sd3", tmp_path)
    (place / "pictures").mkdir()
    for i, (width, height) in enumerate([(64, 64), (100, 80), (128, 64), (70, 140)]):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(place / "pictures" / f"{i}.jpg")
        (place / "pictures" / f"{i}.txt").write_text(small.PROMPTS[i % 3])
    for name in COMMANDS[1:]:
        code, written = run(place, name, "--config", "config.toml")
        assert code == 0, written
    assert written.splitlines()[-1] == str(Path("run/swd_lora"))
    with safe_open(place / "run" / "swd_lora" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["swd_step"] == "3"


OTHERS = {
    "sd3": ("base", "'base' has a SD3Transformer2DModel, but family flux needs a Flux"),
    "sdxl": ("base", "'base' can't be loaded as a FluxPipeline"),
    "flux": ("./nowhere", "'./nowhere' can't be loaded as a FluxPipeline"),
}


@pytest.mark.parametrize("made", OTHERS, indirect=True)
def test_a_base_of_another_family_or_none_is_one_line(made):
    base, message = OTHERS[made.name]
    text = (made.place / "config.toml").read_text()
    for old, new in (
        (f'"{made.settings.model.family}"', '"flux"'), ("'base'", f"'{base}'"),
        ('"prepared"', '"other"'), (small.SCHEDULES["sdxl"], small.SCHEDULES["flow"]),
    ):  # fmt: skip
        text = text.replace(old, new)
    (made.place / "other.toml").write_text(text)
    code, written = run(made.place, "prepare", "--config", "other.toml")
    assert code == 2 and written.splitlines()[-1].startswith(f"error: [model] base {message}")
    with made.inside(), pytest.raises(ValueError, match="base"):
        teachers.load_model(read_settings(Path("other.toml")), CPU)


@pytest.mark.parametrize("made", ["sd3-two"], indirect=True)
def test_a_text_encoder_added_later_is_read(made, tmp_path):
    """The same `[model] base`, to whose folder T5 was added."""
    place = tmp_path / "place"
    shutil.copytree(made.place, place)
    small.save_pipeline("sd3", tmp_path / "whole")
    for part in ("text_encoder_3", "tokenizer_3", "model_index.json"):
        copy = shutil.copytree if (tmp_path / "whole" / part).is_dir() else shutil.copy
        copy(tmp_path / "whole" / part, place / "base" / part)
    code, written = run(place, "prepare", "--config", "config.toml")
    assert code == 0, written
    assert written.splitlines()[-2:] == [
        "3 pictures had been encoded before, but the model's VAE or text encoders changed since",
        "3 pictures encoded, 0 were already, 0 skipped (skipped.txt); prepared",
    ]
    rows = Made("sd3", place).rows()
    (wanted,) = handed_over(Made("sd3", place).pipe(), prompt=small.PROMPTS[0], guidance_scale=1.0)
    close(rows["000000.png"]["context"], wanted["context"])
    assert run(place, "prepare", "--config", "config.toml")[1].splitlines()[-1].startswith("0 ")
