"""Batches of what was prepared: which rows they have, and files that are not believed."""

import json
import random

import pytest
import torch
from card_copies import CARD, Copies
from prepared_pictures import SCHEDULE, rows, run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from swd_core.distill.data import PreparedBatches


def test_batches_pair_the_sizes_of_the_same_picture(source, tmp_path, encoder):
    run(source, tmp_path / "out", encoder)
    batches, stored = PreparedBatches(tmp_path / "out", SCHEDULE.sigmas), rows(tmp_path / "out")
    seen = set()
    for seed in range(40):
        rng = random.Random(seed)
        interval = rng.choice(batches.steps(rng))
        real, previous, text = batches.draw(interval, 3, rng)
        for i in range(3):
            key = "latent_{}x{}".format(*interval.size)
            there = {n: row[key].float() for n, row in stored.items() if key in row}
            [name] = [n for n, latent in there.items() if torch.equal(latent, real[i])]
            seen.add(name)
            assert torch.equal(stored[name]["context"].float(), text.context[i])
            assert "{}x{}".format(*text.size[i].int().tolist()) == interval.bucket
            if interval.previous:
                before = stored[name]["latent_{}x{}".format(*interval.previous)]
                assert torch.equal(before.float(), previous[i])
            else:
                assert previous is None
    assert seen == set(stored), "every picture is used"


def test_parts_are_the_rows_of_the_whole_batch(source, tmp_path, encoder):
    run(source, tmp_path / "out", encoder)
    batches = PreparedBatches(tmp_path / "out", SCHEDULE.sigmas)
    interval = batches.steps(random.Random(0))[1]
    whole = batches.draw(interval, 6, random.Random(1))
    halves = [
        batches.draw(interval, 6, random.Random(1), part=p) for p in (slice(0, 3), slice(3, 6))
    ]
    assert torch.equal(whole[0], torch.cat([h[0] for h in halves]))
    assert torch.equal(whole[1], torch.cat([h[1] for h in halves]))


def test_half_data_are_sent_to_the_device_as_half(source, tmp_path, encoder):
    run(source, tmp_path / "out", encoder)
    batches = PreparedBatches(tmp_path / "out", SCHEDULE.sigmas, CARD)
    interval = batches.steps(random.Random(0))[1]
    with Copies() as sent:
        real, previous, text = batches.draw(interval, 4, random.Random(1))
    assert [copy.dtype for copy in sent.seen] == 4 * [torch.float16]
    for tensor in (real, previous, text.context, text.pooled):
        assert tensor.dtype == torch.float32 and tensor.device.type == "meta"


def test_shown_are_the_first_pictures_of_the_most_common_ratio(source, tmp_path, encoder):
    """Three of the six are square; a shard made before captions were kept shows names."""
    run(source, tmp_path / "out", encoder)
    batches, stored = PreparedBatches(tmp_path / "out", SCHEDULE.sigmas), rows(tmp_path / "out")
    names = ["0.png", "1.png", "4.png"]
    for count in (1, 99):
        shown, wanted = batches.first(count), names[:count]
        assert list(shown.captions) == [
            (source / name).with_suffix(".txt").read_text() for name in wanted
        ]
        assert [(s.size, s.sigma) for s in shown.steps] == [
            ((8, 8), 1.0), ((12, 12), 0.8), ((16, 16), 0.6)
        ]  # fmt: skip
        assert shown.text.size.tolist() == [[128, 128]] * len(wanted)
        for i, name in enumerate(wanted):
            assert torch.equal(shown.real[i], stored[name]["latent_16x16"].float())
            assert torch.equal(shown.text.context[i], stored[name]["context"].float())
            assert torch.equal(shown.text.pooled[i], stored[name]["pooled"].float())
    for path in (tmp_path / "out").glob("128x128-*.safetensors"):
        with safe_open(path, "pt") as file:
            header = {k: v for k, v in file.metadata().items() if k != "captions"}
        save_file(load_file(path), path, header)
    assert PreparedBatches(tmp_path / "out", SCHEDULE.sigmas).first(2).captions == (
        "0.png",
        "1.png",
    )


def change_index(folder, **values) -> None:
    """Replaces entries of the index, those of its first shard where `shard_` precedes them."""
    index = json.loads((folder / "prepared.json").read_text())
    for key, value in values.items():
        place = index["shards"][0] if key.startswith("shard_") else index
        place[key.removeprefix("shard_")] = value
    (folder / "prepared.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "values",
    [
        {"shard_file": "../128x128-00000.safetensors"},
        {"shard_file": "/tmp/128x128-00000.safetensors"},
        {"shard_file": "sub/128x128-00000.safetensors"},
        {"shard_file": "empty.safetensors"},
        {"shard_file": 7},
        {"shard_count": 1e400},
        {"shard_count": -2},
        {"shard_count": True},
        {"shard_size": [128, 1e400]},
        {"shard_size": [128]},
        {"shard_size": 128},
        {"shards": []},
        {"shards": 3},
        {"factor": 0},
        {"multiple": "2"},
        {"family": None},
        {"family": "\ud800"},
        {"schedule": {"scales": [1], "sigmas": [7]}},
    ],
    ids=str,
)
def test_an_index_is_not_believed(source, tmp_path, encoder, values):
    """A shard outside the folder was read, and numbers were taken for what they can't be."""
    out, outside = tmp_path / "out", tmp_path / "128x128-00000.safetensors"
    run(source, out, encoder)
    outside.write_bytes((out / outside.name).read_bytes())
    change_index(out, **values)
    with pytest.raises(ValueError, match=r"prepared\.json is damaged.*Run prepare again"):
        PreparedBatches(out, SCHEDULE.sigmas)


@pytest.mark.parametrize(
    "values", [{"shard_count": 3}, {"shard_count": 40}, {"factor": 4}], ids=str
)
def test_shards_hold_what_the_index_says_before_a_training_begins(
    source, tmp_path, encoder, values
):
    run(source, tmp_path / "out", encoder)
    change_index(tmp_path / "out", **values)
    with pytest.raises(
        ValueError, match=r"00000\.safetensors is missing or damaged.*prepare again"
    ):
        PreparedBatches(tmp_path / "out", SCHEDULE.sigmas)


BROKEN = {
    "tokens gone": {"context": lambda x: x[:, :0]},
    "one dimension too many": {"context": lambda x: x[:, None]},
    "another width": {"context": lambda x: x[..., :-1]},
    "text in whole numbers": {"context": lambda x: x.to(torch.int32)},
    "latents in whole numbers": {"latent_16x16": lambda x: x.to(torch.int8)},
    "a latent's row too many": {"latent_16x16": lambda x: x[:, None]},
    "a vector for each token": {"pooled": lambda x: x[:, None]},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_shards_of_another_form_are_damage_before_a_training_begins(
    source, tmp_path, encoder, kind
):
    run(source, tmp_path / "out", encoder)
    path = tmp_path / "out" / "128x128-00000.safetensors"
    with safe_open(path, "pt") as file:
        header, kept = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    broken = {name: change(kept[name]).contiguous() for name, change in BROKEN[kind].items()}
    save_file({**kept, **broken}, path, header)
    with pytest.raises(ValueError, match=r"00000\.safetensors is missing or damaged"):
        PreparedBatches(tmp_path / "out", SCHEDULE.sigmas)


@pytest.mark.parametrize(
    "change", [lambda x: x[0], lambda x: x[:, :0], lambda x: x.repeat(3, 1, 1)]
)
def test_an_empty_prompt_of_another_form_is_damage(source, tmp_path, encoder, change):
    run(source, tmp_path / "out", encoder)
    path = tmp_path / "out" / "empty.safetensors"
    kept = load_file(path)
    save_file({**kept, "context": change(kept["context"]).contiguous()}, path)
    with pytest.raises(ValueError, match=r"empty\.safetensors is missing or damaged.*context"):
        PreparedBatches(tmp_path / "out", SCHEDULE.sigmas)


@pytest.mark.parametrize("captions", ["3", "null", "[1, 2]", "[]", '{"a": 1}', "[" * 10**5, "x"])
def test_captions_that_are_no_list_of_texts_are_damage(source, tmp_path, encoder, captions):
    run(source, tmp_path / "out", encoder)
    path = tmp_path / "out" / "128x128-00000.safetensors"
    with safe_open(path, "pt") as file:
        header = {**file.metadata(), "captions": captions}
    save_file(load_file(path), path, header)
    batches = PreparedBatches(tmp_path / "out", SCHEDULE.sigmas)
    with pytest.raises(ValueError, match=r"00000\.safetensors is missing or damaged.*captions"):
        batches.first(1)
