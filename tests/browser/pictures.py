"""Makes the pictures that show the editor, for the README and the help pages.

    make editor-pictures

No test: it uses their page and writes into docs/images and web/docs/images.
"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from sheets import BUTTONS, SHEET, THERE, node_id

from swd_core.commands import main
from swd_core.scenes.student import LORA_FOLDER, WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
DOCS, HELP = ROOT / "docs" / "images", ROOT / "web" / "docs" / "images"
PICKS = ("Draft 2", "Draft 5")
PROMPT = "a bus in a town at night"
CORNER = (90, 110)  # where a picture begins on the page, clear of the menus
EDGE = 24
BUILD = """async ({nodes, links}) => {
  for (const node of [...app.graph.nodes]) app.graph.remove(node);
  const made = {};
  for (const [key, [kind, x, y, width, values, title]] of Object.entries(nodes)) {
    const node = LiteGraph.createNode(kind);
    made[key] = node;
    app.graph.add(node);
    node.pos = [x, y];
    if (title) node.title = title;
    for (const [name, value] of Object.entries(values ?? {})) {
      const widget = node.widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value);
    }
    const control = node.widgets?.find((w) => w.name === 'control_after_generate');
    if (control) control.value = 'fixed';
    node.setSize(width.length ? width : [width, node.computeSize()[1]]);
  }
  for (const link of links.split(' ')) {
    const [from, output, to, input] = link.split(/[.>]/);
    const slot = (all, name) => all.findIndex((s) => s.name === name || s.label === name);
    const out = slot(made[from].outputs, output), into = slot(made[to].inputs, input);
    if (out < 0 || into < 0) throw new Error(link);
    made[from].connect(out, made[to], into);
  }
}"""
# Scales and moves the graph so that these nodes begin at CORNER: where they end on the page.
FRAME = """async ([kinds, scale, x, y]) => {
  const { ds, canvas } = app.canvas;
  const nodes = app.graph.nodes.filter((n) => !kinds.length || kinds.includes(n.type));
  const left = Math.min(...nodes.map((n) => n.pos[0]));
  const top = Math.min(...nodes.map((n) => n.pos[1])) - LiteGraph.NODE_TITLE_HEIGHT - 25;
  const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
  const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
  const page = canvas.getBoundingClientRect();
  ds.scale = scale;
  ds.offset = [(x - page.left) / scale - left, (y - page.top) / scale - top];
  app.canvas.deselectAll?.();
  app.canvas.setDirty(true, true);
  for (let i = 0; i < 8; i++) await new Promise(requestAnimationFrame);
  return [(right - left) * scale, (bottom - top) * scale];
}"""


@pytest.fixture
def page(page):
    page.set_viewport_size({"width": 1800, "height": 1300})
    setting = "app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', 'none')"
    page.evaluate(setting)  # previews stay on their nodes and cover others
    return page


@pytest.fixture
def shoot(page):
    """Writes what the page shows of nodes of these kinds, or of all."""

    def take(path: Path, *kinds: str, scale: float = 0.72) -> None:
        page.wait_for_timeout(2500)  # pictures on the canvas come when they like
        width, height = page.evaluate(FRAME, [kinds, scale, CORNER[0] + EDGE, CORNER[1] + EDGE])
        page.wait_for_timeout(500)
        clip = {
            "x": CORNER[0],
            "y": CORNER[1],
            "width": width + 2 * EDGE,
            "height": height + 2 * EDGE,
        }
        page.screenshot(path=str(path), clip=clip)
        Image.open(path).convert("RGB").quantize().save(path, optimize=True)

    return take


def opened(page, name: str) -> None:
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("(graph) => app.loadGraphData(graph)", graph)


def reopen(page) -> None:
    """Menus of files are read when the page opens."""
    page.reload()
    page.wait_for_function(THERE)
    page.keyboard.press("Escape")


def saved(host, entry: dict, node: str) -> Path:
    [file] = entry["outputs"][node]["images"]
    return host.base / "output" / file["subfolder"] / file["filename"]


def test_quick_start(page, run, host, shoot):
    opened(page, "swd_quickstart_scenes")
    entry = run()
    shoot(DOCS / "quickstart.png")
    shutil.copy(saved(host, entry, node_id(page, "SaveImage")), DOCS / "fox_with_graph.png")


def test_custom_sampling(page, run, shoot):
    opened(page, "swd_custom_sampling_scenes")
    run()
    shoot(HELP / "sampler.png")


def test_drafts(page, run, shoot):
    opened(page, "swd_drafts_scenes")
    run()
    page.wait_for_selector(BUTTONS, state="visible")
    shoot(HELP / "drafts.png", "SwDDrafts", scale=0.9)
    for title in PICKS:
        page.get_by_title(title, exact=True).click()
    run()
    shoot(DOCS / "drafts_graph.png")
    shoot(HELP / "finish_drafts.png", "SwDDrafts", "SwDFinishDrafts", "SaveImage", "PreviewImage")


CONFIG = """
[model]
family = "scenes"
[schedule]
preset = "scenes-4"
[data]
source = "{0}/pictures"
prepared = "{1}"
size = 256
"""
STUDENT = {
    "student": ("SwDSceneStudent", 0, 0, 300),
    "prompt": ("CLIPTextEncode", 0, 190, 300, {"text": PROMPT}, "Prompt"),
    "size": ("EmptySD3LatentImage", 0, 380, 300, {"width": 256, "height": 256}, "Finished size"),
}
DRAFTS = (
    "student.clip>prompt.clip student.model>drafts.model prompt.CONDITIONING>drafts.positive "
    "size.LATENT>drafts.latent_image student.schedule>drafts.schedule student.vae>drafts.vae"
)


def built(page, nodes: dict, links: str) -> None:
    """Until it stays: the page loads a graph of its own when it likes."""
    full = {key: (*node, *({}, "")[len(node) - 4 :]) for key, node in nodes.items()}
    kinds = sorted(node[0] for node in nodes.values())
    there: list[str] = []
    while sorted(there) != kinds:
        page.evaluate(BUILD, {"nodes": full, "links": links})
        page.wait_for_timeout(4000)
        there = page.evaluate("() => app.graph.nodes.map((n) => n.type)")


def test_drafts_in_files(page, run, host, shoot):
    eight = {"seed": 7, "count": 8, "stop_after": 1}
    nodes = STUDENT | {
        "drafts": ("SwDDrafts", 350, 0, 440, eight),
        "save": ("SwDSaveDrafts", 850, 0, 320),
    }
    built(page, nodes, f"{DRAFTS} drafts.drafts>save.drafts")
    run()
    page.wait_for_selector(BUTTONS, state="visible")
    shoot(HELP / "save_drafts.png")
    reopen(page)
    nodes = {
        "student": STUDENT["student"],
        "prompt": STUDENT["prompt"],
        "drafts": ("SwDLoadDrafts", 350, 0, 440),
        "finish": ("SwDFinishDrafts", 850, 0, 300),
        "decode": ("VAEDecode", 1200, 0, 180),
        "show": ("PreviewImage", 1200, 120, (320, 350)),
    }
    links = (
        "student.clip>prompt.clip student.vae>drafts.vae student.model>finish.model "
        "prompt.CONDITIONING>finish.positive drafts.drafts>finish.drafts "
        "finish.latent>decode.samples student.vae>decode.vae decode.IMAGE>show.images"
    )
    built(page, nodes, links)
    run()
    page.get_by_title("Draft 3", exact=True).click()
    run()
    shoot(HELP / "load_drafts.png")


def test_prompts(page, run, shoot):
    lines = "\n".join((PROMPT, "a fox in the snow", "two penguins at sunset"))
    nodes = {
        "student": STUDENT["student"],
        "prompts": ("SwDPrompts", 0, 190, (300, 140), {"prompts": lines}),
        "size": STUDENT["size"],
        "drafts": ("SwDDrafts", 350, 0, 440, {"seed": 7, "count": 4, "stop_after": 2}),
    }
    links = (
        "student.clip>prompts.clip student.model>drafts.model prompts.conditioning>drafts.positive "
        "size.LATENT>drafts.latent_image student.schedule>drafts.schedule student.vae>drafts.vae"
    )
    built(page, nodes, links)
    run()
    page.wait_for_selector(BUTTONS, state="visible")
    shoot(HELP / "prompts.png")


def test_tray(page, run, host, shoot):
    host.post("/swd/tray/remove", {"names": host.get("/swd/tray")})
    nodes = STUDENT | {
        "drafts": ("SwDDrafts", 350, 0, 440, {"seed": 7, "count": 8, "stop_after": 2}),
        "tray": ("SwDTray", 850, 0, 440),
        "finish": ("SwDFinishDrafts", 1340, 0, 300),
    }
    links = (
        f"{DRAFTS} student.vae>tray.vae student.model>finish.model "
        "prompt.CONDITIONING>finish.positive tray.drafts>finish.drafts"
    )
    built(page, nodes, links)
    run()
    for number, title in enumerate(PICKS, 1):
        page.get_by_title(title, exact=True).first.focus()
        page.keyboard.press("k")
        page.wait_for_function(
            f"(n) => {SHEET}(app.graph.nodes.find((n) => n.type === 'SwDTray'))"
            "?.querySelectorAll('.swd-grid button').length === n",
            arg=number,
        )
    shoot(HELP / "tray.png", "SwDDrafts", "SwDTray")


def test_lora(page, run, host, shoot):
    folder = host.base / "models" / "loras" / "my_scene_student"
    shutil.copytree(WEIGHTS / LORA_FOLDER, folder, dirs_exist_ok=True)
    reopen(page)
    nodes = {
        "base": ("SwDSceneStudent", 0, 0, 300, {"strength": 0}, "The base: strength 0"),
        "prompt": STUDENT["prompt"],
        "size": STUDENT["size"],
        "lora": ("SwDLoraLoader", 350, 0, (400, 170)),
        "schedule": ("SwDScaleSchedule", 350, 260, 400),
        "sample": ("SwDSample", 800, 0, 300, {"seed": 7}),
        "decode": ("VAEDecode", 1150, 0, 180),
        "show": ("PreviewImage", 1150, 120, (340, 380)),
    }
    links = (
        "base.clip>prompt.clip base.model>lora.model lora.model>schedule.model "
        "lora.model>sample.model size.LATENT>schedule.latent_image "
        "prompt.CONDITIONING>sample.positive size.LATENT>sample.latent_image "
        "schedule.schedule>sample.schedule sample.latent>decode.samples "
        "base.vae>decode.vae decode.IMAGE>show.images"
    )
    built(page, nodes, links)
    run()
    shoot(HELP / "lora_loader.png")


def test_latent_upscale(page, run, shoot):
    small = {"width": 192, "height": 192}
    nodes = {
        "student": STUDENT["student"],
        "prompt": STUDENT["prompt"],
        "size": ("EmptySD3LatentImage", 0, 380, 300, small, "First pass at 192 px"),
        "schedule": ("SwDScaleSchedule", 350, 440, 320),
        "sample": ("SwDSample", 350, 0, 320, {"seed": 7}),
        "decode": ("VAEDecode", 1070, 420, 180),
        "show": ("PreviewImage", 1070, 530, (280, 320), {}, "First pass"),
        "larger": (
            "SwDLatentUpscale",
            720,
            0,
            300,
            {"width": 256, "height": 256, "noise_sigma": 0.6022},
        ),
        "guider": ("BasicGuider", 720, 400, 300),
        "noise": ("DisableNoise", 720, 510, 300),
        "euler": ("KSamplerSelect", 720, 600, 300, {"sampler_name": "euler"}),
        "last": ("SplitSigmas", 720, 710, 300, {"step": 3}, "The last step alone"),
        "custom": ("SamplerCustomAdvanced", 1070, 0, 280),
        "decode2": ("VAEDecode", 1400, 0, 180),
        "show2": ("PreviewImage", 1400, 110, (320, 360), {}, "Enlarged and gone on from there"),
    }
    links = (
        "student.clip>prompt.clip student.model>sample.model student.model>schedule.model "
        "prompt.CONDITIONING>sample.positive size.LATENT>sample.latent_image "
        "student.schedule>sample.schedule sample.latent>decode.samples student.vae>decode.vae "
        "decode.IMAGE>show.images sample.latent>larger.samples student.model>larger.model "
        "student.model>guider.model prompt.CONDITIONING>guider.conditioning "
        "schedule.sigmas>last.sigmas noise.NOISE>custom.noise guider.GUIDER>custom.guider "
        "euler.SAMPLER>custom.sampler last.low_sigmas>custom.sigmas "
        "larger.latent>custom.latent_image custom.output>decode2.samples "
        "student.vae>decode2.vae decode2.IMAGE>show2.images"
    )
    built(page, nodes, links)
    run()
    shoot(HELP / "latent_upscale.png", scale=0.66)


def test_distilling(page, run, shoot):
    eight = {"width": 256, "height": 256, "batch_size": 8}
    teacher = {"seed": 1, "steps": 25, "cfg": 3, "sampler_name": "euler", "scheduler": "simple"}
    short = {
        "lora_name": "my_student",
        "steps": 20,
        "rank": 16,
        "lr": 0.001,
        "batch_tokens": 512,
        "seed": 1,
    }
    nodes = {
        "teacher": ("SwDSceneStudent", 0, 0, 300, {"strength": 0}, "The teacher: strength 0"),
        "prompt": STUDENT["prompt"],
        "empty": ("CLIPTextEncode", 0, 380, 300, {"text": ""}, "Negative"),
        "size": ("EmptySD3LatentImage", 0, 570, 300, eight, "Eight pictures"),
        "steps": ("KSampler", 350, 0, 300, teacher),
        "decode": ("VAEDecode", 350, 380, 180),
        "show": ("PreviewImage", 350, 500, (300, 320), {}, "The teacher's pictures"),
        "data": ("SwDDistillData", 700, 0, 320, {"captions": PROMPT}),
        "schedule": ("SwDScaleSchedule", 700, 320, 320),
        "train": ("SwDDistillTrain", 1070, 0, 340, short),
        "plot": ("PreviewImage", 1460, 0, (420, 560), {}, "plot"),
    }
    links = (
        "teacher.clip>prompt.clip teacher.clip>empty.clip teacher.model>steps.model "
        "prompt.CONDITIONING>steps.positive empty.CONDITIONING>steps.negative "
        "size.LATENT>steps.latent_image steps.LATENT>decode.samples teacher.vae>decode.vae "
        "decode.IMAGE>show.images decode.IMAGE>data.images teacher.clip>data.clip "
        "teacher.vae>data.vae teacher.model>schedule.model schedule.schedule>data.schedule "
        "teacher.model>train.model data.data>train.data teacher.vae>train.vae "
        "train.plot>plot.images"
    )
    built(page, nodes, links)
    run()
    shoot(HELP / "distill_data.png", "SwDSceneStudent", "KSampler", "SwDDistillData",
          "SwDScaleSchedule", "EmptySD3LatentImage")  # fmt: skip
    shoot(HELP / "distill_train.png", "SwDDistillTrain", "SwDDistillData", scale=0.66)


def test_prepared(page, run, host, shoot, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, prompt in enumerate(("a fox in the snow", PROMPT, "a castle by a lake", "two penguins")):
        assert main(["generate", prompt, "--seed", "7", "--out", str(folder / f"{k}.png")]) == 0
        (folder / f"{k}.txt").write_text(prompt, encoding="utf-8")
    config = tmp_path / "scenes.toml"
    config.write_text(CONFIG.format(tmp_path, host.base / "input" / "scenes_256"), encoding="utf-8")
    assert main(["prepare", "--config", str(config)]) == 0
    reopen(page)
    short = {
        "lora_name": "my_prepared_student",
        "steps": 40,
        "rank": 16,
        "lr": 0.001,
        "batch_tokens": 512,
        "seed": 1,
    }
    nodes = {
        "teacher": ("SwDSceneStudent", 0, 0, 300, {"strength": 0}, "The teacher: strength 0"),
        "data": ("SwDLoadPrepared", 0, 190, 300),
        "train": ("SwDDistillTrain", 350, 0, 340, short),
        "plot": ("PreviewImage", 740, 0, (420, 560), {}, "plot"),
    }
    links = (
        "teacher.model>train.model data.data>train.data teacher.vae>train.vae "
        "train.plot>plot.images"
    )
    built(page, nodes, links)
    run()
    shoot(HELP / "load_prepared.png")
