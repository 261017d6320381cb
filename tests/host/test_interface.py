"""What saved graphs and artists rely on: inputs, their order, help pages, tooltips, translations.

The tables below are written by hand. Graphs store widget values by position and links by index, so
a line may be added at the end of a list (of required widgets only if there is no optional one) and
never moved, renamed or removed. A new node needs a table, a help page and its translations; English
is its schema's, which the page falls back to.
"""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from graphs import is_widget

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("zh", "ja", "ko", "ru", "pt-BR")  # as the host's page names them
UPSCALERS = ["bicubic", "bilinear", "nearest-exact", "area", "lanczos"]

# name: TYPE = default; a ? marks an optional input, a + the host's "control after generate" widget.
INPUTS = {
    "SwDScaleSchedule": """
        model: MODEL
        preset: COMBO = auto
        custom_sizes: STRING = 0.5 0.625 0.75 1
        custom_sigmas: STRING = 1 0.8959 0.7371 0.6022
        latent_image?: LATENT
        large_targets?: COMBO = stretch
        custom_frames?: STRING =
        eta?: FLOAT = 0.0
    """,
    "SwDGrowthSchedule": """
        model: MODEL
        sampler_name: COMBO = euler
        scheduler: COMBO = auto
        steps: INT = 20
        start_size: FLOAT = 0.5
        sizes: INT = 2
        tolerance: COMBO = balanced
        custom_tolerance: FLOAT = 0.05
        lift: COMBO = auto
        latent_image?: LATENT
        sigmas?: SIGMAS
        vae?: VAE
        sampler?: SAMPLER
    """,
    "SwDSpectrum": """
        model: MODEL
        keep: BOOLEAN = True
        images?: IMAGE
        vae?: VAE
        latent?: LATENT
        sigmas?: SIGMAS
    """,
    "SwDSampler": """
        schedule: SWD_SCHEDULE
        upscale_method: COMBO = bicubic
        sampler?: SAMPLER
    """,
    "SwDSample": """
        model: MODEL
        positive: CONDITIONING
        latent_image: LATENT
        schedule: SWD_SCHEDULE
        seed: INT = 0 +
        cfg: FLOAT = 1.0
        upscale_method: COMBO = bicubic
        negative?: CONDITIONING
        start_at?: FLOAT = 1.0
        sampler?: SAMPLER
    """,
    "SwDDrafts": """
        model: MODEL
        positive: CONDITIONING
        latent_image: LATENT
        schedule: SWD_SCHEDULE
        seed: INT = 0 +
        count: INT = 16
        stop_after: INT = 1
        batch: INT = 16
        cfg: FLOAT = 1.0
        upscale_method: COMBO = bicubic
        vae?: VAE
        negative?: CONDITIONING
    """,
    "SwDFinishDrafts": """
        model: MODEL
        positive: CONDITIONING
        drafts: LATENT
        pick: STRING =
        detail_seed: INT = 0
        variations: INT = 1
        stop_after: INT = 0
        batch: INT = 4
        cfg: FLOAT = 1.0
        vae?: VAE
        negative?: CONDITIONING
    """,
    "SwDSaveDrafts": """
        drafts: LATENT
        filename_prefix: STRING = drafts/swd
        pick?: STRING = all
    """,
    "SwDLoadDrafts": """
        file: COMBO
        vae: VAE
    """,
    "SwDTray": """
        vae: VAE
        clip?: CLIP
        kind?: INT = 1
    """,
    "SwDPrompts": """
        clip: CLIP
        prompts: STRING =
    """,
    "SwDScaleStrip": """
        images: IMAGE
        gap: INT = 8
    """,
    "SwDLatentUpscale": """
        samples: LATENT
        upscale_method: COMBO = bicubic
        scale_by: FLOAT = 1.5
        width: INT = 0
        height: INT = 0
        noise_sigma: FLOAT = 0.0
        seed: INT = 0
        model?: MODEL
        latent_frames?: INT = 0
    """,
    "SwDLoraLoader": """
        model: MODEL
        lora_name: COMBO
        strength: FLOAT = 1.0
    """,
    "SwDSceneStudent": """
        strength: FLOAT = 1.0
    """,
    "SwDDistillData": """
        images: IMAGE
        clip: CLIP
        vae: VAE
        schedule: SWD_SCHEDULE
        captions: STRING =
    """,
    "SwDLoadPrepared": """
        folder: COMBO
    """,
    "SwDDistillTrain": """
        model: MODEL
        data: SWD_DISTILL_DATA
        lora_name: STRING = my_student
        steps: INT = 500
        rank: INT = 64
        lr: FLOAT = 0.0005
        batch_tokens: INT = 2048
        mmd: FLOAT = 1.0
        dmd: FLOAT = 1.0
        gan: FLOAT = 0.005
        guidance: FLOAT = 4.5
        fake_steps: INT = 2
        seed: INT = 0 +
        resume: BOOLEAN = True
        vae?: VAE
        lr_fake?: FLOAT = 0.001
        accumulate?: INT = 1
        block?: INT = -1
        embedded_guidance?: FLOAT = 4.5
        checkpointing?: BOOLEAN = True
    """,
}
OUTPUTS = {
    "SwDScaleSchedule": "schedule: SWD_SCHEDULE, sigmas: SIGMAS, table: STRING, plot: IMAGE",
    "SwDSpectrum": "table: STRING, plot: IMAGE",
    "SwDGrowthSchedule": "schedule: SWD_SCHEDULE, sigmas: SIGMAS, table: STRING, plot: IMAGE",
    "SwDSampler": "sampler: SAMPLER",
    "SwDSample": "latent: LATENT",
    "SwDDrafts": "drafts: LATENT, images: IMAGE, sheet: IMAGE",
    "SwDFinishDrafts": "latent: LATENT, scales: LATENT",
    "SwDSaveDrafts": "drafts: LATENT",
    "SwDLoadDrafts": "drafts: LATENT, images: IMAGE",
    "SwDTray": "drafts: LATENT, images: IMAGE, conditioning: CONDITIONING",
    "SwDPrompts": "conditioning: CONDITIONING",
    "SwDScaleStrip": "strip: IMAGE, frames: IMAGE",
    "SwDLatentUpscale": "latent: LATENT",
    "SwDLoraLoader": "model: MODEL, report: STRING",
    "SwDSceneStudent": "model: MODEL, clip: CLIP, vae: VAE, schedule: SWD_SCHEDULE",
    "SwDDistillData": "data: SWD_DISTILL_DATA",
    "SwDLoadPrepared": "data: SWD_DISTILL_DATA, schedule: SWD_SCHEDULE",
    "SwDDistillTrain": "model: MODEL, lora_name: STRING, plot: IMAGE",
}
# Menu entries that saved graphs may hold; more may follow, none may go.
MENUS = {
    ("SwDScaleSchedule", "preset"): ["auto", "custom"],  # presets: the README's table of models
    ("SwDScaleSchedule", "large_targets"): ["stretch", "extend"],
    ("SwDGrowthSchedule", "sampler_name"): [
        "euler", "dpmpp_2m", "res_multistep", "uni_pc", "er_sde", "euler_ancestral", "lcm",
    ],
    ("SwDGrowthSchedule", "scheduler"): ["auto", "simple", "normal", "beta", "sgm_uniform"],
    ("SwDGrowthSchedule", "tolerance"): ["careful", "balanced", "fast", "custom"],
    ("SwDGrowthSchedule", "lift"): ["auto", "spectral", "swd", "pixels"],
    ("SwDSampler", "upscale_method"): UPSCALERS,
    ("SwDSample", "upscale_method"): UPSCALERS,
    ("SwDDrafts", "upscale_method"): UPSCALERS,
    ("SwDLatentUpscale", "upscale_method"): UPSCALERS,
}  # fmt: skip
FILES = {"lora_name", "file", "folder"}  # menus of what lies in a folder
NODES = sorted(INPUTS)


@pytest.fixture(scope="module")
def infos(pack) -> dict[str, dict]:
    """What the host tells its page about each node, by node id."""
    return {name: node.GET_NODE_INFO_V1() for name, node in pack.items()}


def inputs_of(info: dict) -> dict[str, tuple[bool, object, dict]]:
    """Input name -> (optional, kind, options), in the page's order: required ones first."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            found[name] = (group == "optional", kind, options[0] if options else {})
    return found


def line(name: str, optional: bool, kind: object, options: dict) -> str:
    """An input as a line of the tables above."""
    combo = isinstance(kind, list) or kind == "COMBO"
    text = f"{name}{'?' if optional else ''}: {'COMBO' if combo else kind}"
    if is_widget(kind) and options.get("default") is not None:
        text += f" = {options['default']}"
    return text.rstrip() + (" +" if options.get("control_after_generate") else "")


def locale(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def english(info: dict) -> dict:
    """The translatable texts of a node as its schema has them, in the page's format."""
    inputs = {}
    for name, (_, _, options) in inputs_of(info).items():
        inputs[name] = {"name": name, "tooltip": options.get("tooltip")}
    names = zip(info["output_name"], info["output_tooltips"], strict=True)
    outputs = {str(i): {"name": name, "tooltip": tip} for i, (name, tip) in enumerate(names)}
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def leaves(tree: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    found = {}
    for key, value in tree.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


def test_the_tables_name_every_node(infos):
    assert sorted(infos) == NODES == sorted(OUTPUTS)


@pytest.mark.parametrize("name", NODES)
def test_inputs_and_outputs_are_as_saved_graphs_expect(name, infos):
    expected = [row.strip() for row in INPUTS[name].strip().splitlines()]
    assert [line(k, *v) for k, v in inputs_of(infos[name]).items()] == expected
    info = infos[name]
    outputs = [f"{n}: {kind}" for n, kind in zip(info["output_name"], info["output"], strict=True)]
    assert ", ".join(outputs) == OUTPUTS[name]
    assert info["category"] == "SwD", "the host's own categories move between versions"


@pytest.mark.parametrize(("name", "widget"), sorted(MENUS))
def test_menus_keep_their_entries(name, widget, infos):
    _, kind, options = inputs_of(infos[name])[widget]
    menu = kind if isinstance(kind, list) else options["options"]
    assert [entry for entry in MENUS[name, widget] if entry not in menu] == []


@pytest.mark.parametrize("name", NODES)
def test_every_input_and_output_has_a_tooltip(name, infos):
    texts = leaves(english(infos[name]))
    assert [path for path, text in texts.items() if not (text or "").strip()] == []


@pytest.mark.parametrize("name", NODES)
def test_the_help_page_names_every_input_and_output(name, infos):
    """Each in a list item (the help panel is too narrow for tables), with default and range."""
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    inputs_part, _, outputs_part = page.partition("## Outputs")
    rows = dict(re.findall(r"^- `(\w+)` (.*)$", inputs_part, re.M))
    assert list(rows) == list(inputs_of(infos[name]))
    for key, (_, kind, options) in inputs_of(infos[name]).items():
        default = options.get("default") if is_widget(kind) else None
        if default not in (None, ""):
            shown = f"{default:g}" if isinstance(default, float) else default
            assert f"`{shown}`" in rows[key], key
        if kind in ("INT", "FLOAT"):
            low, high = options["min"], options["max"]
            high = "2⁶⁴−1" if high == 2**64 - 1 else f"{high:g}" if high < 1e5 else str(high)
            assert f"{low:g} to {high}" in rows[key], f"{key}: {low} to {high}"
        menu = kind if isinstance(kind, list) else options.get("options", [])
        if key not in FILES:
            for entry in MENUS.get((name, key), menu):
                assert f"`{entry}`" in rows[key], f"{key}: {entry}"
    assert re.findall(r"^- `(\w+)` ", outputs_part, re.M) == infos[name]["output_name"]


def faults(ours: dict, theirs: dict) -> list[str]:
    """What is wrong with a node's texts in one language, each in a line: which text, and what."""
    ours, theirs = leaves(ours), leaves(theirs)
    found = {path: "of nothing that exists" for path in theirs.keys() - ours.keys()}
    for path, text in ours.items():
        other = theirs.get(path, "")
        numbers = re.findall(r"\d+(?:\.\d+)?", text or "")
        if not other.strip():
            found[path] = "missing"
        elif path[-1] in ("tooltip", "description") and other == text:
            found[path] = "left in English"
        elif lacking := [n for n in numbers if n not in other]:
            found[path] = f"lacks {', '.join(lacking)}, a default or limit of the English text"
        elif re.search(r"[{}|@$]", other):
            found[path] = "holds {, }, |, @ or $: the page reads it as syntax and shows no text"
    return [f"{'.'.join(path)}: {fault}" for path, fault in found.items()]


def test_every_text_is_translated(infos):
    """The file to mend is locales/<node id>.json; then `make locales`."""
    lines = [
        f"{name} {language} {fault}"
        for language in LANGUAGES
        for name, info in infos.items()
        for fault in faults(english(info), locale(language).get(name, {}))
    ]
    lines += [f"{n} {k}: no such node" for k in LANGUAGES for n in locale(k) if n not in infos]
    assert not lines, "\n" + "\n".join(lines)


def test_the_host_serves_help_and_translations(server):
    for name in NODES:
        with urllib.request.urlopen(f"{server.url}/extensions/ComfyUI-SwD/docs/{name}.md") as reply:
            assert reply.read() == (ROOT / "web" / "docs" / f"{name}.md").read_bytes()
    served = server.get("/i18n")
    assert {language: served[language]["nodeDefs"] for language in LANGUAGES} == {
        language: locale(language) for language in LANGUAGES
    }
