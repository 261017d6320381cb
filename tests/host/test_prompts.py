"""Several prompts on one sheet: a row for each, and every pick is finished with its own."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import call, hosted
from drafts_bench import SEED, Bench, counting
from graphs import find
from test_drafts_server import graph_of, key_of, saved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(pack, small, models, folders):
    bench = Bench(pack, small, models["sd35-medium"], "sd35-medium")
    bench.conds = [[[t * scale, o] for t, o in bench.cond] for scale in (1.0, -1.0, 0.3)]
    return bench


class Encoder:
    """A text encoder that makes the same of every text."""

    def __init__(self, cond):
        self.cond = cond

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, tokens):
        return self.cond


def named(cond, text):
    """What SwD Prompts gives for a text of that conditioning."""
    return importlib.import_module("swd_pack.nodes.prompts").encoded(Encoder(cond), [text])[0]


def drafted(bench, positive, **inputs):
    given = {
        "model": bench.model, "schedule": bench.schedule, "latent_image": bench.empty,
        "seed": SEED, "count": 2, "stop_after": 1, "batch": 16, "cfg": 1.0,
        "upscale_method": "bicubic", **inputs,
    }  # fmt: skip
    several = [n for n in ("positive", "negative") if n == "positive" or n in inputs]
    return hosted(bench.pack["SwDDrafts"], several, positive=positive, **given)


def finished(bench, positive, drafts, pick, **inputs):
    given = {
        "model": bench.model, "detail_seed": 0, "variations": 1, "stop_after": 0, "batch": 4,
        "cfg": 1.0, **inputs,
    }  # fmt: skip
    return hosted(
        bench.pack["SwDFinishDrafts"], ["positive"], positive=positive, drafts=drafts, pick=pick,
        **given,
    ).args[0]["samples"]  # fmt: skip


def straight(bench, cond, *indices):
    bench.cond = cond
    return bench.straight(indices)


def test_the_page_covers_the_whole_of_the_pictures_headings(bench):
    """What differs between sheets of other words in their heading lies under what the page draws
    there, and nothing of the drafts does."""
    sheets = []
    for word in ("jpgqy", "aaaaa"):
        shown = drafted(bench, [named(bench.conds[0], word), named(bench.conds[1], "fox")])
        [cells], sheet = shown.ui["swd_sheet"], shown.args[2][0]
        sheets.append(sheet[: len(sheet) // cells["rows"]])
    first, other = sheets
    covered = cells["head"] * len(sheet)
    [words] = (first != other).any((1, 2)).nonzero().T
    assert 0 < words.max() < covered
    drafts = first[round(covered) :]
    assert (drafts[0] - first[0, 0]).abs().max() > 0.05  # they begin where the heading ends


def test_every_row_is_a_prompt_and_every_pick_is_its_own_straight_run(bench):
    fox, dog, apple = (named(c, t) for c, t in zip(bench.conds, "fox dog apple".split(), strict=1))
    shown = drafted(bench, [fox, dog, apple])
    drafts, [cells] = shown.args[0], shown.ui["swd_sheet"]
    assert cells["places"] == ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
    assert (cells["rows"], cells["columns"], cells["count"]) == (3, 2, 6)
    names = [label.partition(" · ")[0] for label in cells["labels"]]
    assert names == ["fox"] * 2 + ["dog"] * 2 + ["apple"] * 2
    expected = torch.cat([straight(bench, cond, 0, 1) for cond in (fox, dog, apple)])
    assert torch.equal(finished(bench, [fox, dog, apple], drafts, "all"), expected)
    # In any order, and those of the picks alone.
    some = finished(bench, [dog, apple], drafts, "6,5,3,4")
    torch.testing.assert_close(some, expected[[5, 4, 2, 3]], rtol=0, atol=1e-4)
    assert (expected[0] - expected[2]).abs().max() > 0.03, "the prompts make different pictures"


def test_without_names_they_go_by_their_places(bench):
    first, second, third = bench.conds
    drafts = drafted(bench, [first, second], count=1).args[0]
    done = finished(bench, [first, second], drafts, "2,1", batch=1)
    expected = torch.cat([straight(bench, second, 0), straight(bench, first, 0)])
    torch.testing.assert_close(done, expected, rtol=0, atol=1e-4)
    twice = drafted(bench, [named(first, "fox"), named(second, "fox")], count=1).args[0]
    assert [d.prompt for d in twice["swd_drafts"].images] == ["fox", "fox (2)"]
    odd = [
        named(cond, text) for cond, text in zip(bench.conds, ("fox (3)", "fox", "fox"), strict=True)
    ]
    names = [d.prompt for d in drafted(bench, odd, count=1).args[0]["swd_drafts"].images]
    assert names[:2] == ["fox (3)", "fox"] and len(set(names)) == 3


def test_one_prompt_alone_may_be_changed_as_before(bench):
    """Finishing with another text is the artist's choice where there is no doubt which."""
    first, second, _ = bench.conds
    drafts = drafted(bench, [named(first, "fox")], count=1).args[0]
    changed = finished(bench, [second], drafts, "1")
    assert not torch.equal(changed, finished(bench, [first], drafts, "1"))


def test_deeper_drafts_and_files_keep_each_prompt(bench, pack):
    fox, dog = (named(c, t) for c, t in zip(bench.conds[:2], ("fox", "dog"), strict=True))
    drafts = drafted(bench, [fox, dog]).args[0]
    deeper = hosted(
        pack["SwDFinishDrafts"], ["positive"], model=bench.model, positive=[fox, dog],
        drafts=drafts, pick="2,3", detail_seed=0, variations=1, stop_after=2, batch=1, cfg=1.0,
    ).args[0]  # fmt: skip
    [file] = pack["SwDSaveDrafts"].execute(drafts=deeper, filename_prefix="x").ui["swd_files"]
    files = importlib.import_module("swd_pack.swd_core.draft_files")
    import folder_paths

    known = files.load_drafts(Path(folder_paths.get_output_directory()) / file["filename"])
    assert [d.prompt for d in known.images] == ["fox", "dog"]
    loaded = importlib.import_module("swd_pack.nodes.drafting").to_latent(known)
    done = finished(bench, [fox, dog], loaded, "all", batch=1)
    expected = torch.cat([straight(bench, fox, 1), straight(bench, dog, 0)])
    torch.testing.assert_close(done, expected, rtol=0, atol=1e-4)


def test_each_may_have_its_negative(bench):
    first, second, third = bench.conds
    more = {"negative": [third, first], "cfg": 3.0, "count": 1}
    both = drafted(bench, [first, second], **more).args[0]["samples"]
    for row, (positive, negative) in zip(both, [(first, third), (second, first)], strict=True):
        alone = drafted(bench, [positive], **more | {"negative": [negative]}).args[0]["samples"]
        torch.testing.assert_close(row, alone[0], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="positive brings 3 prompts and negative 2"):
        drafted(bench, bench.conds, **more)


def test_what_can_t_be_told_apart_is_refused_before_any_call(bench, pack):
    fox, dog, apple = (named(c, t) for c, t in zip(bench.conds, "fox dog apple".split(), strict=1))
    drafts = drafted(bench, [fox, dog]).args[0]
    calls = []
    bench.model = counting(bench.model, calls)
    with pytest.raises(ValueError, match="picks are of 2 prompts.*brings 1.*not 'dog'"):
        finished(bench, [fox], drafts, "1,3")
    with pytest.raises(ValueError, match="brings 2, among them not 'dog'"):
        finished(bench, [fox, apple], drafts, "3")
    with pytest.raises(ValueError, match="count times 3 prompts is 300; ask for 1 to 256"):
        drafted(bench, [fox, dog, apple], count=100)
    with pytest.raises(ValueError, match="^seed brings a list of 2"):
        hosted(
            pack["SwDDrafts"], ["positive", "seed"], positive=[fox], seed=[1, 2], model=bench.model,
            schedule=bench.schedule, latent_image=bench.empty, count=1, stop_after=1, batch=1,
            cfg=1.0, upscale_method="bicubic",
        )  # fmt: skip
    assert not calls


def test_the_host_s_nodes_leave_a_prompt_its_name(bench, pack):
    """FLUX's guidance, an area and a mask stand between the text and the drafts in many graphs."""
    import nodes

    fox = named(bench.conds[0], "fox")
    guided = call("comfy_extras.nodes_flux:FluxGuidance", fox, 3.5)
    (area,) = nodes.ConditioningSetArea().append(guided, 64, 64, 0, 0, 1.0)
    (masked,) = nodes.ConditioningSetMask().append(area, torch.ones(1, 8, 8), "default", 1.0)
    assert masked[0][1]["swd_prompt"] == "fox"


def mixed(fox, dog):
    """What the host's nodes make of conditionings, under the first one's name."""
    import nodes

    return {
        "combined": nodes.ConditioningCombine().combine(fox, dog)[0],
        "one after the other": nodes.ConditioningConcat().concat(fox, dog)[0],
        "averaged": nodes.ConditioningAverage().addWeighted(fox, dog, 0.5)[0],
        "emptied": nodes.ConditioningZeroOut().zero_out(fox)[0],
    }


@pytest.mark.parametrize("how", ["combined", "one after the other", "averaged", "emptied", "twice"])
def test_the_tray_encodes_no_prompt_that_isn_t_the_whole(bench, how):
    """Finished with the first text alone it would silently be another picture."""
    import nodes

    fox, dog = (named(c, t) for c, t in zip(bench.conds[:2], ("a fox", "a dog"), strict=True))
    area = call(nodes.ConditioningSetArea, fox, 64, 64, 0, 0, 1.0)
    positive = [fox, area] if how == "twice" else [mixed(fox, dog)[how]]
    texts = [d.prompt for d in put_aside(bench, positive).images if d.known]
    assert texts == (["a fox"] * 2 if how == "twice" else [])
    drafts = tray_of(bench)
    [told] = drafts[2]
    if how == "twice":
        assert told[0][1]["swd_prompt"] == "a fox"
    else:
        assert "aren't known" in told.message
    if how == "twice":  # its text alone doesn't make the second, whatever is picked
        with pytest.raises(ValueError, match="not 'a fox .2.'"):
            finished(bench, [told], drafts[0], "3")
        torch.testing.assert_close(
            finished(bench, [told], drafts[0], "1"), straight(bench, told, 0), rtol=0, atol=1e-4
        )
    # On the sheet they are finished by the conditioning they were made with, as ever.
    done = finished(bench, positive, drafts[0], "1", batch=1)
    assert torch.equal(done, straight(bench, positive[0], 0))


def test_no_text_of_the_tray_finishes_a_draft_that_is_more_than_one(bench):
    """One pick and one text, which would go together if the text were the artist's own."""
    fox, dog = (named(c, t) for c, t in zip(bench.conds[:2], ("a fox", "a dog"), strict=True))
    put_aside(bench, [fox, mixed(dog, fox)["combined"]])
    drafts, _, told = tray_of(bench)
    with pytest.raises(ValueError, match="not 'a dog'"):
        finished(bench, told, drafts, "3")
    put_aside(bench, [mixed(fox, dog)["combined"]])
    lying = put_aside(bench, [fox], beside=True, seed=7).images
    drafts, _, told = tray_of(bench)
    assert len(told) == 1 and {d.prompt for d in lying} == {"a fox"}
    for pick, draft in enumerate(lying, 1):
        if draft.known:
            finished(bench, told, drafts, str(pick))
        else:
            with pytest.raises(ValueError, match="not 'a fox'"):
                finished(bench, told, drafts, str(pick))
    assert [d.known for d in lying] in ([True] * 2 + [False] * 2, [False] * 2 + [True] * 2)


def test_what_stands_between_text_and_drafts_may_stand_behind_the_tray(bench):
    """A node that changes the text's tensor leaves it its name."""
    import nodes

    def faded(cond):
        return nodes.ConditioningAverage().addWeighted(cond, bench.conds[2], 0.5)[0]

    fox, dog = (named(c, t) for c, t in zip(bench.conds[:2], ("a fox", "a dog"), strict=True))
    drafts = drafted(bench, [faded(fox), faded(dog)], batch=1).args[0]
    done = finished(bench, [faded(dog), faded(fox)], drafts, "3", batch=1)
    assert torch.equal(done, straight(bench, faded(dog), 0))


def test_texts_of_the_host_s_node_in_a_list_are_not_made_up(bench):
    lying = put_aside(bench, bench.conds[:2])
    assert [(d.prompt, d.known) for d in lying.images] == [
        ("prompt 1", False), ("prompt 1", False), ("prompt 2", False), ("prompt 2", False)
    ]  # fmt: skip
    [told] = tray_of(bench)[2]
    assert "connect its clip" in told.message


def tray_of(bench):
    from stand_ins import PlainVAE

    return bench.pack["SwDTray"].execute(vae=PlainVAE(16), clip=Encoder(bench.conds[0])).args


def put_aside(bench, positive, beside=False, **inputs):
    """Drafts of it, all laid on the tray; what then lies there, as the files say."""
    tray = importlib.import_module("swd_pack.nodes.tray_files")
    if not beside:
        tray.remove(tray.names())
    tray.keep(drafted(bench, positive, batch=1, **inputs).args[0]["swd_drafts"], "all")
    return importlib.import_module("swd_pack.swd_core.drafts").join([d for _, d in tray.read()[0]])


def prompts_graph(server, text: str) -> dict:
    prompt = graph_of(server)
    key = key_of(prompt, "CLIPTextEncode")
    clip = prompt[key]["inputs"]["clip"]
    prompt[key] = {"class_type": "SwDPrompts", "inputs": {"clip": clip, "prompts": text}}
    find(prompt, "SwDDrafts").update(count=3, seed=6100)
    return prompt


def test_prompts_through_the_server(server):
    """Two lines, three seeds; each finished picture is that of its prompt alone."""
    prompt = prompts_graph(server, "a fox in the snow\n\n  a happy dog  \n")
    entry = server.run(prompt)
    [cells] = entry["outputs"][key_of(prompt, "SwDDrafts")]["swd_sheet"]
    assert (cells["rows"], cells["columns"], cells["count"]) == (2, 3, 6)
    assert cells["labels"][3].startswith("a happy dog · ")
    find(prompt, "SwDFinishDrafts")["pick"] = "5,2"
    dog, fox = saved(server, prompt)
    for text, picture in (("a happy dog", dog), ("a fox in the snow", fox)):
        alone = graph_of(server)
        find(alone, "CLIPTextEncode")["text"] = text
        find(alone, "SwDDrafts").update(count=3, seed=6100)
        find(alone, "SwDFinishDrafts")["pick"] = "2"
        assert np.abs(saved(server, alone)[0] - picture).max() <= 1
    assert np.abs(dog - fox).mean() > 5


@pytest.mark.parametrize("text", ["", " \n \n", "\n".join(map(str, range(65)))])
def test_no_prompt_and_too_many_are_said(server, text):
    assert "1 to 64 prompts" in json.dumps(server.run(prompts_graph(server, text)))
