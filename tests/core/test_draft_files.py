"""Drafts in files: all of it is kept, and what is no file of drafts is refused."""

import json
from dataclasses import replace

import pytest
import torch
from draft_runs import SCHEDULE, advance, begin
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core import draft_files
from swd_core.draft_files import load_drafts, save_drafts
from swd_core.drafts import Draft, Drafts
from swd_core.growth import GrowthSchedule
from swd_core.schedule import ScaleSchedule


@pytest.fixture
def file(tmp_path):
    path = tmp_path / f"a{draft_files.SUFFIX}"
    latent, mask = torch.randn(1, 4, 8, 12), torch.ones(1, 64, 96)
    made = replace(advance(begin(3, seed=2**64 - 1), 2), latent=latent, mask=mask, prompt="ж 苹果")
    save_drafts(made.choose([2, 0]).vary(2**63, 1), path)
    return path


def test_a_file_keeps_everything(file):
    loaded = load_drafts(file)
    made = advance(begin(3, seed=2**64 - 1), 2).choose([2, 0]).vary(2**63, 1)
    assert torch.equal(advance(loaded, 3).scales[-1], advance(made, 3).scales[-1])
    assert (
        loaded.images == made.images and loaded.prompt == "ж 苹果" and loaded.schedule == SCHEDULE
    )
    assert all(torch.equal(a, b) for a, b in zip(loaded.scales, made.scales, strict=True))
    assert loaded.latent.shape == (1, 4, 8, 12) and loaded.mask.shape == (1, 64, 96)


@pytest.mark.parametrize("growing", [False, True])
def test_each_draft_keeps_its_prompt(tmp_path, growing):
    images = (
        Draft(5, 0, prompt="ж\n\ud800 苹果"),
        Draft(5, 0, prompt="fox", known=False),
        Draft(6, 1, 9),
    )
    x0 = torch.ones(3, 4, 4, 6)
    made = Drafts(SCHEDULE, "test", (8, 12), images, (x0,), samples=x0)
    if growing:
        plan = GrowthSchedule((1.0, 0.8, 0.4), delta=0.3, solver="dpmpp_2m", name="growth")
        made = replace(made, schedule=plan, x_t=x0, stretches=2)
    path = tmp_path / f"a{draft_files.SUFFIX}"
    save_drafts(made, path)
    loaded = load_drafts(path)
    assert [d.prompt for d in loaded.images] == ["ж\n? 苹果", "fox", ""]
    assert [d.known for d in loaded.images] == [True, False, True]
    assert loaded.schedule == made.schedule and loaded.last == made.last
    assert [(d.seed, d.index, d.detail) for d in loaded.images] == [(5, 0, 0), (5, 0, 0), (6, 1, 9)]


def test_a_file_that_is_there_is_kept(file):
    before = file.read_bytes()
    with pytest.raises(OSError, match="nothing was overwritten"):
        save_drafts(advance(begin(1), 1), file)
    assert file.read_bytes() == before and [p.name for p in file.parent.iterdir()] == [file.name]


def change(file, **values):
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["swd_drafts"])
    tensors = load_file(file)
    for key, value in values.items():
        (tensors if key.startswith(("x0", "samples", "latent", "mask")) else header)[
            key.replace("_", ".", key[0] == "x")
        ] = value
    save_file(tensors, file, {"swd_drafts": json.dumps(header)})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"noise_version": 2}, "noise rule 2.*Draft them again"),
        ({"version": 5}, "format 5.*Update the pack"),
        ({"version": 4, "schedule": {**SCHEDULE.to_dict(), "eta": 0.5}}, "damaged.*no 'x_t'"),
        ({"version": 3}, "damaged.*no 'prompts'"),
        ({"version": 3, "prompts": ["fox"]}, "damaged"),
        ({"version": 3, "prompts": 7}, "damaged"),
        ({"step": 3}, "damaged"),
        ({"step": 0}, "damaged"),
        ({"images": [[1, 2, 3]]}, "damaged"),
        ({"images": None}, "damaged"),
        ({"size": "big"}, "damaged"),
        ({"schedule": {"scales": [1], "sigmas": [2]}}, "sigma 2 is outside"),
        ({"samples": torch.zeros(7, 4, 6, 9)}, "damaged"),
        ({"samples": torch.zeros(2)}, "damaged"),
        ({"samples": torch.zeros(2, 4, 6, 9, dtype=torch.int32)}, "damaged"),
        ({"x0_1": torch.zeros(2, 4, 4, 60)}, "damaged"),
        ({"latent": torch.zeros(1, 4, 80, 12)}, "damaged"),
        ({"images": [[2**64, 0, 0]] * 2}, "damaged.*18446744073709551616"),
        ({"images": [[1, -1, 0]] * 2}, "damaged.*-1"),
        ({"images": [[1, 1e400, 0]] * 2}, "damaged.*inf"),
        ({"images": [[1, 1.5, 0]] * 2}, "damaged.*1.5"),
        ({"images": [[1, "2", 0]] * 2}, "damaged.*'2'"),
        ({"images": [[1, 2, 3, 4]] * 2}, "damaged"),
        ({"images": 7}, "damaged"),
        ({"step": 1e400}, "damaged.*inf"),
        ({"step": True}, "damaged.*True"),
        ({"size": [8, 1e400]}, "damaged.*inf"),
        ({"size": [8, 12, 16]}, "damaged"),
        ({"size": [0, 12]}, "damaged.*'0'"),
        ({"size": [8, 10**9]}, "damaged"),
        ({"samples": torch.zeros(2, 4, 400, 600)}, "damaged"),
        ({"samples": torch.zeros(2, 4, 6, 9, dtype=torch.float8_e4m3fn)}, "damaged"),
        ({"latent": torch.zeros(3, 4, 8, 12)}, "damaged"),
        ({"latent": torch.zeros(1, 5, 8, 12)}, "damaged"),
        ({"latent": torch.zeros(1, 4, 1, 8, 12)}, "damaged"),
        ({"latent": torch.zeros(1, 4, 8, 12, dtype=torch.int8)}, "damaged"),
        ({"mask": torch.zeros(8)}, "damaged"),
        ({"mask": torch.zeros(0, 12)}, "damaged"),
        ({"mask": torch.ones(1, 8, 12, dtype=torch.bool)}, "damaged"),
        ({"mask": torch.full((1, 8, 12), float("nan"))}, "damaged"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_files_that_can_t_be_gone_on_from(file, values, says):
    change(file, **values)
    with pytest.raises(ValueError, match=says) as error:
        load_drafts(file)
    assert "a.drafts.safetensors" in str(error.value)


def test_a_file_with_more_drafts_than_a_sheet_has_is_not_read(tmp_path, monkeypatch):
    """20,000 drafts took 20 s and 1.9 GB."""
    path, many = tmp_path / f"many{draft_files.SUFFIX}", 20_000
    x0 = torch.zeros(many, 1, 2, 3)
    images = tuple(Draft(7, i) for i in range(many))
    made = Drafts(SCHEDULE, "test", (4, 6), images, (x0,), x0.clone())
    with pytest.raises(ValueError, match="20000; ask for 1 to 256"):
        save_drafts(made, path)
    assert not list(tmp_path.iterdir())
    save_drafts(replace(made, images=made.images[:9]), path)
    change(path, images=[[7, i, 0] for i in range(many)])
    monkeypatch.setattr(draft_files, "read_tensors", None)
    with pytest.raises(ValueError, match="damaged: the number of its images is 20000"):
        load_drafts(path)


def test_a_finished_size_that_the_file_makes_up_is_refused(tmp_path):
    """Scales of next to nothing, so that the small latents fit any size: 640 GB were asked for."""
    path = tmp_path / f"large{draft_files.SUFFIX}"
    x0 = torch.zeros(1, 16, 2, 2)
    schedule = ScaleSchedule((1e-5, 1.0), (1.0, 0.5))
    save_drafts(Drafts(schedule, "test", (100_000, 100_000), (Draft(1, 0),), (x0,), x0 + 1), path)
    with pytest.raises(ValueError, match="large.*damaged.*would have 596 GB when finished"):
        load_drafts(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "7", "null", '{"version": 1}', '{"version": []}'], ids=len
)
def test_headers_that_are_none_are_one_error_that_names_the_file(file, text):
    save_file(load_file(file), file, {"swd_drafts": text})
    with pytest.raises(ValueError, match="a.drafts.safetensors"):
        load_drafts(file)


def test_files_that_are_no_drafts(tmp_path, file):
    with pytest.raises(ValueError, match="no drafts file gone"):
        load_drafts(tmp_path / "gone.safetensors")
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"{file.name} is not a whole"):
        load_drafts(file)
    save_file({"latent_tensor": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no drafts"):
        load_drafts(file)


@pytest.fixture
def grown():
    """Two images of a growing run after the first of two sizes."""
    generator = torch.Generator().manual_seed(6)
    x_t, x0 = torch.randn(2, 2, 4, 4, 6, generator=generator)
    growth = GrowthSchedule((1.0, 0.8, 0.4), delta=0.3, solver="dpmpp_2m", name="growth")
    images = (Draft(5, 0), Draft(5, 1, 9))
    return Drafts(
        growth, "sd3", (8, 12), images, (x0,), samples=x0, x_t=x_t, stretches=2, prompt="fox"
    )


def test_a_growing_run_is_kept_with_what_its_solver_holds(grown, tmp_path):
    path = tmp_path / f"g{draft_files.SUFFIX}"
    save_drafts(grown, path)
    loaded = load_drafts(path)
    assert (loaded.schedule, loaded.images) == (grown.schedule, grown.images)
    assert (loaded.stretches, loaded.step, loaded.last) == (2, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(loaded.held, grown.held, strict=True))
    with safe_open(path, "pt") as opened:  # which older packs refuse by its number
        assert json.loads(opened.metadata()["swd_drafts"])["version"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"x_t": torch.zeros(2, 2, 4, 4)},
        {"x_t": torch.zeros(2, 2, 4, 6, dtype=torch.int32)},
        {"size": (4, 4)},
        {"stretches": 1},
        {"stretches": 1000},
    ],
    ids=str,
)
def test_a_growing_run_that_does_not_fit_together_is_refused(grown, tmp_path, change):
    path = tmp_path / f"g{draft_files.SUFFIX}"
    save_drafts(replace(grown, **change), path)
    with pytest.raises(ValueError, match="damaged"):
        load_drafts(path)
