"""Configs: those that ship are right, a wrong one is one clear error."""

from pathlib import Path

import pytest

from swd_core.distill.config import parse_settings, read_settings
from swd_core.families import TRAINABLE

CONFIGS = Path(__file__).parents[2] / "configs"
UNPUBLISHED = ("zimage", "qwen-image", "flux2-klein", "krea2")  # figures are no paper's
GOOD = {"model": {"family": "sd35-medium", "base": "somewhere"}}


def test_there_is_a_config_for_every_family_with_the_papers_figures():
    """What the authors' scripts and the paper give, written down here a second time."""
    found = {s.model.family: s for s in map(read_settings, CONFIGS.glob("*.toml"))}
    assert set(found) == set(TRAINABLE)
    guidance = {"sd35-medium": 7.0, "sd35-large": 4.5}
    for family in ("sd35-medium", "sd35-large", "flux"):
        train = found[family].train
        assert (train.mmd, train.dmd, train.gan, train.gan_head) == (1.0, 1.0, 5e-3, 1e-2)
        assert (train.fake_steps, train.clip, train.levels) == (5, 10.0, "grid")
        assert train.kernel == "linear" and not train.mmd_per_batch and not train.regression
        assert found[family].data.text_tokens == 512
        assert train.guidance == guidance.get(family, 1.0) and train.lr == train.lr_fake
    assert [found[f].train.steps for f in guidance] == [3000, 4000]
    blocks = {"sd35-medium": 11, "sd35-large": 20, "flux": 15, "sdxl": -1}
    ranks = {"sd35-medium": 64, "sd35-large": 64, "flux": 128, "sdxl": 64}
    for family, block in blocks.items():
        settings = found[family]
        assert settings.model.block == block and settings.model.rank == ranks[family]
        assert 4e-6 <= settings.train.lr <= 5e-6
        patches = settings.train.batch_tokens * settings.train.accumulate / (64 * 64)
        assert 24 <= patches <= 64, "pictures at full size to one step, as in the paper"
    assert found["sdxl"].train.dmd == found["sdxl"].train.gan == 0
    assert found["sdxl"].train.mmd_sigma == (0.0, 0.4)
    for family in UNPUBLISHED:
        train = found[family].train
        assert (train.mmd, train.dmd, train.gan, train.gan_head) == (1.0, 1.0, 5e-3, 1e-2)
        assert (train.fake_steps, train.clip, train.levels) == (5, 10.0, "grid")
        assert 4e-6 <= train.lr == train.lr_fake <= 5e-6
        text = (CONFIGS / f"{family.replace('-', '_')}.toml").read_text()
        head = " ".join(text.partition("[model]")[0].replace("#", " ").split())
        assert "Nobody has published a student" in head and "our own guess" in head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"learning_rate": 1.0}}, r"\[train\] has no 'learning_rate'; it knows mmd"),
        ({"trian": {}}, r"no section \[trian\]; there are model"),
        ({"train": {"lr": "fast"}}, r"\[train\] lr must be a number, not 'fast'"),
        ({"train": {"steps": 2.5}}, r"\[train\] steps must be a whole number, not 2.5"),
        ({"train": {"steps": True}}, r"\[train\] steps must be a whole number"),
        ({"train": {"steps": 0}}, r"\[train\] steps must be 1 or more"),
        ({"train": {"autocast": 1}}, r"\[train\] autocast must be true or false"),
        ({"train": {"lr": float("nan")}}, r"\[train\] lr is nan, which can't be meant; give a n"),
        ({"train": {"lr": 0.0}}, r"\[train\] lr must be above 0 and at most 0.1, not 0"),
        ({"train": {"lr_fake": 4.0}}, r"\[train\] lr_fake must be above 0 and at most 0.1"),
        ({"data": {"source": "D:\new"}}, r"source is 'D:\\new': between double .* 'single quotes'"),
        ({"model": {"family": "flux", "base": "D:\teacher"}}, r"base is 'D:\\teacher': between"),
        ({"train": {"mmd_sigma": [float("nan"), 1]}}, r"\[train\] mmd_sigma is nan, which can't"),
        ({"train": {"guidance": float("inf")}}, r"\[train\] guidance is inf, which can"),
        ({"teacher": {"guidance": -1.0}}, r"\[teacher\] guidance must be 0 or more, not -1"),
        ({"teacher": {"pool": 10**30}}, r"\[teacher\] pool is 1000000.*; give a whole number"),
        ({"train": {"seed": -(10**30)}}, r"\[train\] seed is -1000000.*; give a whole number"),
        ({"train": {"mmd_sigma": [0.5]}}, r"mmd_sigma must be a list of 2 numbers"),
        ({"train": {"mmd_sigma": [0.5, 0.2]}}, r"mmd_sigma must rise"),
        ({"train": {"backward_simulation": 1.5}}, r"backward_simulation must be 0 to 1, not 1.5"),
        ({"train": {"kernel": "cubic"}}, "kernel is 'cubic'; use one of linear, rbf"),
        ({"train": {"levels": "any"}}, "levels is 'any'; use one of grid, uniform"),
        ({"train": {"dmd_sigma": [0.3, 0.31]}}, "none of the authors' 28 noise levels"),
        ({"train": {"gan_head": 0}}, "gan_head is 0, so the discriminator would never learn"),
        ({"train": {"clip": -1}}, r"\[train\] clip must be 0 or more"),
        ({"data": {"text_tokens": 600}}, r"text_tokens must be 1 to 512, .*, not 600"),
        ({"model": {"family": "scenes", "block": -2}}, r"\[model\] block must be -1 or more"),
        ({"data": {"size": 100_000_000}}, r"\[data\] size must be 16384 or less, not 100000000"),
        ({"data": {"text_tokens": 0}}, r"\[data\] text_tokens must be 1 or more, not 0"),
        ({"train": {"mmd": 0, "dmd": 0, "gan": 0}}, "nothing to learn"),
        ({"output": {"samples": -1}}, r"\[output\] samples must be 0 or more"),
        ({"model": {"family": "sd9", "base": "x"}}, r"family is 'sd9'; use one of scenes"),
        ({"model": {"family": "flux"}}, r"\[model\] base is missing"),
        ({"model": {"base": "x"}}, "needs a family"),
        ({"model": "flux"}, "needs a family|must be a section"),
        ({"schedule": {"preset": "sdxl-4"}}, "another kind of model"),
        ({"schedule": {"preset": "none"}}, "'none' is unknown; use sd35"),
        ({"schedule": {"scales": [0.5, 1], "sigmas": [1, 0.5, 0.2]}}, "2 scales but 3 sigmas"),
        ({"schedule": {"scales": [0.5, 1], "sigmas": ["a", 1]}}, "sigmas must be a number"),
        ({"data": []}, r"\[data\] must be a section"),
    ],
)
def test_wrong_configs_are_one_error(change, message):
    with pytest.raises(ValueError, match=message):
        parse_settings({**GOOD, **change})


def test_prompts_may_be_as_long_as_the_family_reads_them():
    """Qwen-Image's pipeline refuses more than 1,024 tokens, those of SD3 and FLUX more than 512."""
    for family, most in {"qwen-image": 1024, "flux": 512, "sd35-large": 512, "zimage": 512}.items():
        model = {"family": family, "base": "x"}
        parse_settings({"model": model, "data": {"text_tokens": most}})
        with pytest.raises(ValueError, match=f"text_tokens must be 1 to {most}, which is what"):
            parse_settings({"model": model, "data": {"text_tokens": most + 1}})


@pytest.mark.parametrize(
    ("family", "section", "line", "message"),
    [
        ("scenes", "model", "compile = true", r"\[model\] compile is for diffusers' models"),
        ("scenes", "model", 'dtype = "bfloat16"', r"\[model\] dtype is for diffusers' models"),
        ("scenes", "model", "checkpointing = true", "checkpointing is for diffusers"),
        ("scenes", "model", "embedded_guidance = 4.5", "have it; leave it out for scenes"),
        ("sd35-medium", "model", "embedded_guidance = 4.5", "have it; leave it out for sd35-m"),
        ("scenes", "data", "text_tokens = 77", "of any length; leave it out for scenes"),
        ("sdxl", "data", "text_tokens = 77", r"\[data\] text_tokens is for models that read"),
        ("scenes", "model", 'dtype = "float32"', ""),
        ("scenes", "model", "checkpointing = false\ncompile = false", ""),
        ("flux", "model", "embedded_guidance = 4.5", ""),
    ],
)
def test_what_a_family_takes_no_notice_of_is_refused(tmp_path, family, section, line, message):
    """Unless it says what is done anyway; in the graph a widget is there for all families."""
    lines = {"model": f"family = '{family}'\nbase = 'x'\n", "data": ""}
    lines[section] += line
    text = "".join(f"[{name}]\n{content}\n" for name, content in lines.items())
    (tmp_path / "x.toml").write_text(text)
    if not message:
        read_settings(tmp_path / "x.toml")
        return
    with pytest.raises(ValueError, match=message):
        read_settings(tmp_path / "x.toml")
    parse_settings({"model": {"family": family, "base": "x", "embedded_guidance": 1.0}})


def test_without_a_discriminator_its_weight_is_nobodys_concern():
    parse_settings({**GOOD, "train": {"gan": 0, "gan_head": 0, "clip": 0}})
    narrow = {"levels": "uniform", "dmd_sigma": [0.3, 0.31]}
    assert parse_settings({**GOOD, "train": narrow}).train.dmd_sigma == (0.3, 0.31)


def test_rates_may_be_as_large_as_the_widgets():
    assert parse_settings({**GOOD, "train": {"lr": 0.1, "lr_fake": 0.1}}).train.lr == 0.1


def test_a_file_that_is_no_toml(tmp_path):
    (tmp_path / "x.toml").write_text("[train\n")
    (tmp_path / "x.toml").write_text("# C:\\x\n[train\n")
    with pytest.raises(ValueError, match="not valid TOML") as error:
        read_settings(tmp_path / "x.toml")
    assert "Windows" not in str(error.value)
    (tmp_path / "x.toml").write_text('[model]\nbase = "C:\\Users\\me"\n')
    with pytest.raises(ValueError, match="not valid TOML.* Windows between 'single quotes'"):
        read_settings(tmp_path / "x.toml")
    with pytest.raises(FileNotFoundError, match="configs/"):
        read_settings(tmp_path / "none.toml")
