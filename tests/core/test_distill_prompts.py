"""A training from prompts alone: no picture is there, the student's own chain gives its inputs."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from swd_core.commands import main
from swd_core.distill import session, teachers
from swd_core.distill.config import parse_settings
from swd_core.distill.data import PreparedBatches
from swd_core.distill.draws import Draws
from swd_core.distill.sources import find_prompts, prompts_alone
from swd_core.distill.taught import Teaching
from swd_core.distill.teachers import SceneEncoder
from swd_core.distill.world import World

_spec = importlib.util.spec_from_file_location(
    "distill_runs", Path(__file__).with_name("distill_runs.py")
)
runs = sys.modules["distill_runs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runs)

PROMPTS = ["a fox", "happy dog", "rocket"]


@pytest.fixture
def place(tmp_path, random_weights, monkeypatch) -> Path:
    text = runs.CONFIG.format(weights=random_weights, device="cpu", steps=4, folder=tmp_path)
    text = text.replace('"pictures"', '"prompts.txt"').replace(
        "batch_tokens", "mmd = 0.0\ngan = 0.0\nbatch_tokens"
    )
    (tmp_path / "config.toml").write_text(text)
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "", ""]))
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--config", "config.toml"]) == 0
    return tmp_path


def test_prepared_are_the_prompts_in_their_order_and_nothing_else(place, random_weights):
    (shard,) = (place / "prepared").glob("64x64-*.safetensors")
    tensors, text = load_file(shard), SceneEncoder(random_weights).text(PROMPTS)
    assert tensors.keys() == {"context", "pooled"}
    assert torch.equal(tensors["context"], text.context.half())
    assert torch.equal(tensors["pooled"], text.pooled.half())
    assert PreparedBatches(place / "prepared").first(2).captions == ("a fox", "happy dog")


def test_a_files_ending_may_be_written_large(tmp_path):
    """PROMPTS.TXT was called neither a folder nor a tar."""
    assert prompts_alone(tmp_path / "PROMPTS.TXT") and not prompts_alone(tmp_path / "pictures")


def test_what_the_student_sees_is_what_it_made_itself(place):
    """Noise at first; then x0 of the step before, enlarged and noised again: as it is sampled."""
    trainer = session.build_trainer(runs.settings_of(place), World())
    steps = trainer.batches.steps(Draws(0).rng)
    seen, predict = [], trainer.model.predict

    def watched(x, sigma, text):
        x0 = predict(x, sigma, text)
        seen.append((x.detach(), float(sigma[0]), x0.detach()))
        return x0

    trainer.model.predict = watched
    draws = Draws(3)
    trainer._generate(trainer._draw(draws, steps), draws)
    assert [sigma for _, sigma, _ in seen] == pytest.approx([s.sigma for s in steps])
    first = seen[0][0]
    assert abs(float(first.mean())) < 0.1 and float(first.std()) == pytest.approx(1, abs=0.1)
    for (_, _, before), (x, sigma, _) in zip(seen, seen[1:], strict=False):
        if before.shape != x.shape:
            before = F.interpolate(before, size=x.shape[-2:], mode="bicubic")
        noise = (x - (1 - sigma) * before) / sigma
        assert abs(float(noise.mean())) < 0.1 and float(noise.std()) == pytest.approx(1, abs=0.1)


def test_it_trains_shows_samples_and_goes_on_as_if_uninterrupted(place):
    assert main(["distill", "--config", "config.toml"]) == 0
    assert main(["distill", "--config", "config.toml", "--run", "halved", "--steps", "2"]) == 0
    assert main(["distill", "--config", "config.toml", "--run", "halved", "--resume"]) == 0
    whole, halved = (
        load_file(place / run / "swd_lora" / "adapter_model.safetensors")
        for run in ("run", "halved")
    )
    assert all(torch.equal(value, halved[key]) for key, value in whole.items())
    assert any(value.abs().max() > 0 for key, value in whole.items() if "lora_B" in key)
    assert (place / "run" / "samples" / "step_000004.png").is_file()
    names = {name for line in runs.losses(place / "run") for name in line}
    assert {"dmd", "fake"} <= names and not {"mmd", "gan"} & names


def test_to_repeat_pictures_that_there_are_none_of_is_refused():
    data = {
        "model": {"family": "scenes"}, "data": {"source": "prompts.txt"},
        "train": {"regression": 0.5},
    }  # fmt: skip
    with pytest.raises(ValueError, match="prompts alone, and .train. regression repeats"):
        parse_settings(data)


TAUGHT = """
[teacher]
guidance = 3.0
pool = 4
pool_steps = 3
pool_renewed = 1
"""


@pytest.fixture
def taught(place) -> Path:
    """The same with all losses, a small pool, and two pictures in a batch."""
    text = (place / "config.toml").read_text().replace("mmd = 0.0\ngan = 0.0\n", "")
    (place / "config.toml").write_text(text + TAUGHT)
    return place


def test_the_pool_is_what_guided_euler_steps_of_the_teacher_make(taught):
    """Written anew: times spaced evenly, shifted by 3; smaller sizes shrunk in the pixels."""
    trainer = session.build_trainer(runs.settings_of(taught), World())
    interval = trainer.batches.steps(Draws(0).rng)[-1]
    model, vae, seen = trainer.model, trainer.taught.teaching.autoencoder, []
    predict = model.predict

    def watched(x, sigma, text):
        seen.append((x.clone(), float(sigma[0]), text))
        return predict(x, sigma, text)

    model.predict = watched
    trainer.taught.draw(0, interval, 2, slice(None), Draws(0))
    model.predict = predict
    levels = [1.0, 3 * (2 / 3) / (1 + 2 * 2 / 3), 3 * (1 / 3) / (1 + 2 / 3)]
    assert [sigma for _, sigma, _ in seen] == pytest.approx([s for s in levels for _ in "ab"] * 2)
    empty = trainer.batches.unconditional(2)
    for group in (0, 1):
        x, _, text = seen[6 * group]
        assert float(x.std()) == pytest.approx(1, abs=0.1)
        for sigma, after in zip(levels, [*levels[1:], 0.0], strict=True):
            with torch.no_grad(), trainer.autocast():
                level = torch.full((2,), sigma)
                v = model.module(x, level, text.context, text.pooled).float()
                v0 = model.module(x, level, empty.context, empty.pooled).float()
            x = x + (after - sigma) * (v0 + 3.0 * (v - v0))
        made = trainer.taught._groups[group]
        torch.testing.assert_close(made.latents[interval.size], x, rtol=1e-3, atol=1e-3)
        assert torch.equal(made.text.context, text.context.cpu())
        pixels = vae.pictures(made.latents[interval.size]).permute(0, 3, 1, 2)
        for (h, w), latents in made.latents.items():
            if (h, w) != interval.size:
                small = F.interpolate(pixels, size=(8 * h, 8 * w), mode="area")
                torch.testing.assert_close(latents, vae.latents(small), rtol=1e-4, atol=1e-4)


def test_the_student_is_compared_with_the_pools_pictures_of_its_prompts(taught):
    trainer = session.build_trainer(runs.settings_of(taught, steps=5), World())
    seen, first = [], trainer.objective.of_others

    def watched(real, x0, text, draws):
        seen.append((trainer.step, real, text.context))
        return first(real, x0, text, draws)

    trainer.objective.of_others = watched
    held = []
    for _ in range(5):
        trainer.train_step()
        held.append(dict(trainer.taught._groups))
    for step, real, context in seen:
        pool = held[step].values()
        for one, prompt in zip(real, context, strict=True):
            (group, row) = next(
                (group, row) for group in pool for row, known in
                enumerate(group.latents[tuple(one.shape[-2:])]) if torch.equal(known, one)
            )  # fmt: skip
            assert torch.equal(group.text.context[row], prompt.cpu())
    # Four pictures at a time in twos, one new each step: two are exchanged every second step.
    assert [list(groups) for groups in held] == [[0, 1], [0, 1], [1, 2], [1, 2], [2, 3]]
    assert held[1][1] is held[2][1], "what stays is not made again"


def test_with_a_pool_it_goes_on_as_if_uninterrupted(taught):
    """The pool is made again as it was at that step, not as it is at the beginning."""
    assert main(["distill", "--config", "config.toml"]) == 0
    assert main(["distill", "--config", "config.toml", "--run", "halved", "--steps", "2"]) == 0
    assert main(["distill", "--config", "config.toml", "--run", "halved", "--resume"]) == 0
    runs.assert_same(taught / "halved", taught / "run")
    names = {name for line in runs.losses(taught / "run") for name in line}
    assert {"mmd", "dmd", "gan", "fake", "head"} <= names


def test_stopped_while_the_pool_is_made_it_stops_at_the_next_group(taught, monkeypatch, capsys):
    """The whole pool, which takes minutes, was made before Ctrl-C was heeded; nothing said so."""
    made, group = [], Teaching.group

    def make_and_stop(teaching, number):
        made.append(number)
        signal.raise_signal(signal.SIGINT)
        return group(teaching, number)

    with monkeypatch.context() as patch:
        patch.setattr(Teaching, "group", make_and_stop)
        assert main(["distill", "--config", "config.toml", "--run", "halted"]) == 0
    assert made == [0] and "stopped at step 0; --resume goes on" in capsys.readouterr().out
    assert main(["distill", "--config", "config.toml", "--run", "halted", "--resume"]) == 0
    assert main(["distill", "--config", "config.toml"]) == 0
    runs.assert_same(taught / "halted", taught / "run")


def test_another_pool_is_another_training(taught, capsys):
    assert main(["distill", "--config", "config.toml", "--steps", "1"]) == 0
    text = (taught / "config.toml").read_text().replace("pool_steps = 3", "pool_steps = 4")
    (taught / "config.toml").write_text(text)
    assert main(["distill", "--config", "config.toml", "--resume"]) == 2
    assert "teacher's pool_steps was 3, is 4" in capsys.readouterr().err


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_an_edited_prompts_file_is_told_before_anything_is_trained(place, capsys, resume):
    """Put back as it was, or gone after it was prepared, it is nobody's hindrance."""
    command, file = ["distill", "--config", "config.toml"], place / "prompts.txt"
    if resume:
        assert main([*command, "--steps", "1"]) == 0
    before = file.read_text()
    for text in (before.replace("rocket", "a rocket"), before + "a boat\n", "a fox\nrocket\n"):
        file.write_text(text)
        assert main([*command, *resume]) == 2
        said = capsys.readouterr().err
        assert "prompts.txt is not what" in said and "Run prepare again" in said
    file.write_text("\n\n" + before)
    assert main([*command, *resume, "--steps", "2"]) == 0
    file.unlink()
    assert main([*command, "--resume", "--steps", "3"]) == 0


def test_what_was_prepared_is_of_the_kind_that_the_config_names(place, capsys):
    text = (place / "config.toml").read_text()
    (place / "config.toml").write_text(text.replace('"prompts.txt"', '"pictures"'))
    assert main(["distill", "--config", "config.toml"]) == 2
    assert "holds prompts alone, and [data] source names pictures" in capsys.readouterr().err


def test_other_prompts_are_called_prompts(place, capsys):
    command = ["distill", "--config", "config.toml"]
    assert main([*command, "--steps", "1"]) == 0
    (place / "prompts.txt").write_text("a fox\na boat\n")
    capsys.readouterr()
    assert main(["prepare", "--config", "config.toml"]) == 0
    assert "3 prompts had been encoded before, but prompts changed" in capsys.readouterr().out
    assert main([*command, "--resume"]) == 2
    said = capsys.readouterr().err
    assert "other prepared prompts" in said and "picture" not in said


def test_there_are_no_pictures_to_make(place, capsys):
    assert main(["sample-teacher", "--config", "config.toml"]) == 2
    assert "prompts alone, so there are no pictures to make" in capsys.readouterr().err


def test_no_prompts_are_refused_where_the_file_is_named(place, capsys):
    (place / "prompts.txt").write_text("\n\n")
    assert main(["prepare", "--config", "config.toml"]) == 2
    assert "holds no prompts" in capsys.readouterr().err
    (place / "prompts.txt").unlink()
    assert main(["prepare", "--config", "config.toml"]) == 2
    assert "a prompt a line, in [data] source" in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_told_before_the_models_are_loaded(place, capsys, monkeypatch):
    monkeypatch.setattr(teachers, "load_encoder", lambda *_: pytest.fail("loaded"))
    text = (place / "config.toml").read_text()
    (place / "file").write_text("")
    (place / "config.toml").write_text(text.replace(f"{place}/prepared", "file/prepared"))
    assert main(["prepare", "--config", "config.toml"]) == 2
    assert "The folder file/prepared can't be written to" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_prompt_is_a_line_as_editors_write_them(tmp_path, encoding, end):
    """Other signs that split text, which a copied prompt may hold, are a part of it."""
    prompts = ["a fox\u2028by a lake", "лиса\x85狐 🦊", "x" * 10_000, "a\x0cb\x1cc"]
    text = end.join(["", *prompts, "   ", ""])
    (tmp_path / "prompts.txt").write_bytes(text.encode(encoding))
    assert [s.caption for s in find_prompts(tmp_path / "prompts.txt")] == prompts
