"""Pictures prepared once: what lies in the shards, and what is refused or skipped."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from prepared_pictures import SCHEDULE, SIZES, picture, rows, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core.distill import prepare as prepared
from swd_core.distill.buckets import buckets, nearest_bucket
from swd_core.distill.data import PreparedBatches
from swd_core.distill.prepare import prepare
from swd_core.distill.sources import find_samples
from swd_core.distill.teachers import SceneEncoder
from swd_core.distill.world import World
from swd_core.schedule import ScaleSchedule


def test_every_size_is_the_encoded_area_mean_of_the_picture(source, tmp_path, encoder):
    report = run(source, tmp_path / "out", encoder)
    assert (report.encoded, report.kept, report.skipped) == (6, 0, {})
    row = rows(tmp_path / "out")["0.png"]
    pixels = np.asarray(Image.open(source / "0.png"), np.float32) / 255
    half = pixels.reshape(64, 2, 64, 2, 3).mean((1, 3))  # 128 px to 64 px: means of 2 x 2
    with torch.no_grad():
        for size, wanted in ((16, pixels), (8, half)):
            image = torch.from_numpy(wanted).permute(2, 0, 1)[None]
            expected = encoder.latents(image.contiguous())[0]
            got = row[f"latent_{size}x{size}"].float()
            close = 4e-3 * float(expected.abs().max())
            torch.testing.assert_close(got, expected, rtol=0, atol=close)
    text = encoder.text(["a fox"])
    torch.testing.assert_close(row["context"].float(), text.context[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(row["pooled"].float(), text.pooled[0], rtol=2e-3, atol=2e-3)


def test_any_aspect_ratio_has_its_own_sizes(source, tmp_path, encoder):
    run(source, tmp_path / "out", encoder)
    found = rows(tmp_path / "out")
    for name, (width, height) in enumerate(SIZES):
        shapes = [k for k in found[f"{name}.png"] if k.startswith("latent")]
        last = max(tuple(map(int, k[7:].split("x"))) for k in shapes)
        assert last[1] / last[0] == pytest.approx(width / height, rel=0.2)
        assert last[0] * last[1] == pytest.approx(256, rel=0.15), "one area for all"
        assert all(int(side) % 2 == 0 for k in shapes for side in k[7:].split("x"))


def test_buckets_cover_the_range():
    choices = buckets(1024, 64)
    assert (1024, 1024) in choices and all(h % 64 == 0 and w % 64 == 0 for h, w in choices)
    assert nearest_bucket(1920, 1080, choices)[1] > 1200
    assert nearest_bucket(1, 1000, choices) == min(choices, key=lambda c: c[1] / c[0])
    assert buckets(256, 16, 1.0) == [(256, 256)]


def test_tar_and_folder_give_the_same(source, tmp_path, encoder):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        for path in sorted(source.iterdir()):
            tar.add(path, path.name)
    run(source, tmp_path / "a", encoder)
    run(tmp_path / "data.tar", tmp_path / "b", encoder)
    a, b = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert {f"data.tar/{name}" for name in a} == set(b)
    for name, tensors in a.items():
        for key, value in tensors.items():
            # one picture may meet another in its batch
            torch.testing.assert_close(b[f"data.tar/{name}"][key], value, rtol=2e-3, atol=2e-3)


def test_stopped_in_the_middle_goes_on(source, tmp_path, encoder):
    """What is finished is not encoded again, and the result is that of a straight run."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(source, straight, encoder)

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, broken, encoder, on_shard=stop)
    with pytest.raises(FileNotFoundError, match="prepare"):
        PreparedBatches(broken, SCHEDULE.sigmas)
    report = run(source, broken, encoder)
    assert report.kept >= 2 and report.kept + report.encoded == 6
    a, b = rows(straight), rows(broken)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n][k], b[n][k]) for n in a for k in a[n])


def test_a_damaged_shard_and_changed_captions_are_made_again(source, tmp_path, encoder):
    out = tmp_path / "out"
    run(source, out, encoder)
    first = sorted(out.glob("*x*-*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:100])
    (source / "5.txt").write_text("a green house")
    report = run(source, out, encoder)
    assert 0 < report.encoded < 6
    expected, got = encoder.text(["a green house"]).context[0], rows(out)["5.png"]["context"]
    torch.testing.assert_close(got.float(), expected, rtol=2e-3, atol=2e-3)


def test_a_picture_replaced_by_one_of_equal_size_is_encoded_anew(source, tmp_path, encoder, caplog):
    """A bitmap's size in bytes follows from its sides; its time may be kept by what copied it."""
    out, path = tmp_path / "out", source / "6.bmp"
    (source / "6.txt").write_text("rocket")
    picture(6, 128, 128).save(path)
    run(source, out, encoder)
    before, size = rows(out), path.stat()
    os.utime(source / "0.png")
    assert run(source, out, encoder).encoded == 0, "a new time alone changes nothing"
    picture(60, 128, 128).save(path)
    os.utime(path, ns=(size.st_atime_ns, size.st_mtime_ns))
    assert path.stat().st_size == size.st_size
    with caplog.at_level("INFO"):
        report = run(source, out, encoder)
    shard = report.encoded
    assert 0 < shard < 7 and report.anew == {"pictures or captions": shard}
    assert f"{shard} pictures are encoded anew: pictures or captions changed" in caplog.text
    after = rows(out)
    pixels = torch.from_numpy(np.asarray(Image.open(path), np.float32) / 255).permute(2, 0, 1)
    with torch.no_grad():
        expected = encoder.latents(pixels[None].contiguous())[0]
    got = after["6.bmp"]["latent_16x16"].float()
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-3 * float(expected.abs().max()))
    assert not torch.equal(got, before["6.bmp"]["latent_16x16"].float())
    assert torch.equal(after["1.png"]["context"], before["1.png"]["context"])


def test_a_picture_replaced_within_a_tar_is_encoded_anew(source, tmp_path, encoder):
    def pack():
        with tarfile.open(tmp_path / "data.tar", "w") as tar:
            for path in sorted(source.iterdir()):
                tar.add(path, path.name)

    (source / "6.txt").write_text("rocket")
    for seed, wanted in ((6, 7), (6, 0), (60, 1)):
        picture(seed, 128, 128).save(source / "6.bmp")
        pack()
        assert run(tmp_path / "data.tar", tmp_path / "out", encoder, shard_size=1).encoded == wanted


@pytest.mark.parametrize("part", ["vae", "text"])
def test_another_model_encodes_everything_anew(source, tmp_path, random_weights, part):
    """What `[model] base` names may change under its name, too."""
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(random_weights, base)
    run(source, out, SceneEncoder(random_weights))
    assert run(source, out, SceneEncoder(base)).encoded == 0
    path = base / f"scenes_{part}.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    changed = {name: 1.01 * value for name, value in load_file(path).items()}
    save_file(changed, path, header)
    other = SceneEncoder(base)
    report = run(source, out, other)
    assert (report.encoded, report.kept) == (6, 0)
    assert report.anew == {"the model's VAE or text encoders": 6}
    run(source, tmp_path / "straight", other)
    a, b = rows(out), rows(tmp_path / "straight")
    assert all(torch.equal(a[n][k], b[n][k]) for n in b for k in b[n])


def test_broken_pictures_are_skipped_and_listed(source, tmp_path, encoder):
    (source / "x.png").write_bytes(b"not a picture")
    (source / "x.txt").write_text("rocket")
    whole = io.BytesIO()
    picture(9, 128, 128).save(whole, "PNG")
    (source / "y.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (source / "y.txt").write_text("rocket")
    report = run(source, tmp_path / "out", encoder)
    assert report.encoded == 6 and set(report.skipped) == {"x.png", "y.png"}
    listed = (tmp_path / "out" / "skipped.txt").read_text()
    assert "x.png\tbroken" in listed and "y.png\tbroken" in listed
    again = run(source, tmp_path / "out", encoder)
    assert again.encoded == 0 and set(again.skipped) == {"x.png", "y.png"}


def test_pictures_that_are_all_broken_are_told_with_one_of_them(tmp_path, encoder):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"not a picture")
    (tmp_path / "bad" / "x.txt").write_text("rocket")
    with pytest.raises(ValueError, match=r"None of the 1 pictures .*x\.png: broken.* Name another"):
        run(tmp_path / "bad", tmp_path / "out", encoder)


def test_missing_captions_are_one_error(source, tmp_path, encoder):
    for name in ("1.txt", "4.txt"):
        (source / name).unlink()
    with pytest.raises(ValueError, match=r"2 of 6 .* no caption: 1\.png, 4\.png"):
        run(source, tmp_path / "out", encoder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["latent", "encoded caption", "encoding"])
def test_what_half_precision_cannot_hold_is_refused_by_its_name(
    source, tmp_path, encoder, monkeypatch, part
):
    """It was stored as infinity, and the training that met it blamed its rate."""

    def overflowing(made, when):
        return lambda given: made(given).map(lambda x: x * 1e9) if when(given) else made(given)

    if part == "latent":
        latents = encoder.latents
        monkeypatch.setattr(encoder, "latents", lambda pictures: latents(pictures) * 1e9)
    else:
        prompt = {"encoded caption": "happy dog", "encoding": ""}[part]
        monkeypatch.setattr(
            encoder, "text", overflowing(encoder.text, lambda prompts: prompt in prompts)
        )
    with pytest.raises(ValueError, match=rf"\w: its {part} would hold NaN or infinity.*bfloat16"):
        run(source, tmp_path / "out", encoder)
    assert not (tmp_path / "out" / "prepared.json").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_are_read_as_windows_writes_them(source, encoding):
    """One in UTF-16 became letters with nothing between them, and was trained as that."""
    data = "a fox\r\nbeside Müller's café\r\n".encode(encoding)
    (source / "1.txt").write_bytes(data)
    pack = source.with_suffix(".tar")
    with tarfile.open(pack, "w") as tar:
        tar.add(source, ".")
    for samples in (find_samples(source), find_samples(pack)):
        [caption] = [s.caption for s in samples if s.name.endswith("1.png")]
        assert caption == "a fox\r\nbeside Müller's café"


def test_captions_that_are_no_text_are_refused_by_name(source):
    """One in Latin-1 was trained with marks in place of its accents."""
    (source / "1.txt").write_bytes("a café".encode("latin-1"))
    pack = source.with_suffix(".tar")
    with tarfile.open(pack, "w") as tar:
        tar.add(source, ".")
    for given in (source, pack):
        with pytest.raises(ValueError, match=r"1\.txt is not text in UTF-8.*Save it in UTF-8"):
            find_samples(given)


@pytest.mark.parametrize("name", ["._1.txt", "LICENCE.txt"])
def test_other_texts_in_a_folder_or_tar_are_left_alone(source, name):
    """macOS' notes on a caption are no text, nor need what comes with a set be."""
    (source / name).write_bytes(b"\x00\x05\xe9\xff of M\xfcller")
    pack = source.with_suffix(".tar")
    with tarfile.open(pack, "w") as tar:
        tar.add(source, ".")
    folder, packed = find_samples(source), find_samples(pack)
    assert [s.caption for s in packed] == [s.caption for s in folder]


def test_too_small_pictures_are_one_error_or_left_out(source, tmp_path, encoder):
    picture(7, 60, 60).save(source / "small.png")
    (source / "small.txt").write_text("rocket")
    with pytest.raises(ValueError, match=r"small\.png \(60x60 px, smallest scale 64x64 px\)"):
        run(source, tmp_path / "out", encoder)
    report = run(source, tmp_path / "out", encoder, skip_small=True)
    assert report.encoded == 6 and list(report.skipped) == ["small.png"]


@pytest.mark.parametrize(
    ("side", "schedule", "message"),
    [
        (120, SCHEDULE, "multiple of 16"),
        (16, ScaleSchedule((0.25, 1.0), (1.0, 0.5)), "larger size"),
    ],
)
def test_a_schedule_that_the_factor_can_not_make(
    source, tmp_path, encoder, side, schedule, message
):
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "out", encoder, schedule, side)


def test_wrong_places_are_named(tmp_path, encoder):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(tmp_path / "nowhere", tmp_path / "out", encoder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures"):
        run(tmp_path / "empty", tmp_path / "out", encoder)
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match="bad.tar is not a whole"):
        run(tmp_path / "bad.tar", tmp_path / "out", encoder)


def test_what_a_stopped_second_prepare_made_is_not_mixed_with_the_first(source, tmp_path, encoder):
    """As many pictures with other captions: the index of before doesn't tell."""
    run(source, tmp_path / "out", encoder)

    def stop(done, total):
        raise KeyboardInterrupt

    for i in range(6):
        (source / f"{i}.txt").write_text("red rocket")
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", encoder, on_shard=stop)
    with pytest.raises(ValueError, match="of another prepare than the index.*prepare again"):
        PreparedBatches(tmp_path / "out", SCHEDULE.sigmas)
    run(source, tmp_path / "out", encoder)
    assert set(PreparedBatches(tmp_path / "out", SCHEDULE.sigmas).first(3).captions) == {
        "red rocket"
    }


def test_files_that_are_not_of_prepare_are_left_alone(source, tmp_path, encoder):
    """A folder of models, say, where somebody lets it prepare."""
    out = tmp_path / "out"
    run(source, out, encoder)
    first = next(out.glob("128x128-*.safetensors"))
    others = ["flux-lora.safetensors", "64x64-00000.safetensors", "64x64-00001.safetensors.txt"]
    for name in others:
        save_file({"a": torch.zeros(1)}, out / name)
    stale = out / "64x64-00007.safetensors"
    stale.write_bytes(first.read_bytes())
    run(source, out, encoder)
    assert all((out / name).is_file() for name in others) and not stale.exists()


def test_who_waits_for_another_process_says_so(source, tmp_path, encoder, monkeypatch, caplog):
    """The first process, whose list of files is of all; here the other ends while it waits."""
    run(source, tmp_path / "whole", encoder)
    shards = sorted(p.name for p in (tmp_path / "whole").glob("*x*-*.safetensors"))
    out = tmp_path / "shared"

    def others_end(seconds):
        for path in (tmp_path / "whole").glob("*x*-*.safetensors"):
            shutil.copy(path, out)

    monkeypatch.setattr(prepared.time, "sleep", others_end)
    with caplog.at_level("INFO"):
        run(source, out, encoder, world=World(size=2))
    assert (
        "waiting for other processes: " in caplog.text and f"of {len(shards)} files" in caplog.text
    )
    assert sorted(p.name for p in out.glob("*x*-*.safetensors")) == shards
