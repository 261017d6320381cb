"""The pictures of the README, the help pages and the model card that need no ComfyUI.

    make pictures

All are what the embedded student makes of one prompt and one seed, or of the laboratory's sixteen
prompts; nothing is picked but the two drafts that the README shows finished.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from swd_core.contact import FAINT, GAP, INK, PAPER, contact_sheet  # noqa: E402
from swd_core.drafts import Draft, Drafts  # noqa: E402
from swd_core.growing import GrowthState, OneField, euler, sample_growing  # noqa: E402
from swd_core.growth import GrowthSchedule  # noqa: E402
from swd_core.lab.sheet import PROMPTS  # noqa: E402
from swd_core.lab.ways import generate, shifted, teacher_way  # noqa: E402
from swd_core.latent_law import PUBLISHED  # noqa: E402
from swd_core.lifts import lift_spectral  # noqa: E402
from swd_core.noise import SeededNoise  # noqa: E402
from swd_core.pictures import LIGHT_GREY, picture_of, strip_of, write_animation  # noqa: E402
from swd_core.presets import presets  # noqa: E402
from swd_core.scenes.autoencoder import LATENT_CHANNELS  # noqa: E402
from swd_core.scenes.drafting import advance  # noqa: E402
from swd_core.scenes.generate import to_picture  # noqa: E402
from swd_core.scenes.student import PRESET, SceneStudent  # noqa: E402

PROMPT, SEED, COUNT, SIZE = "a fox in a forest at sunset", 7, 16, (32, 32)
DRAFTED = 2  # steps of a draft, as in the graph
TEACHER_STEPS, GUIDANCE = 25, 3.0
PICKED = "#4aa8ff"  # as on the sheet in ComfyUI
BANNER = (1680, 720)  # 21:9, which the registry asks for
ROUND = 40  # of the icon's corners, in pixels


def pictures_of(student: SceneStudent, drafts: Drafts, scale: int) -> list[Image.Image]:
    return [to_picture(student, part.scales[scale]) for part in drafts.batches(1)]


def tiled(pictures: Sequence[Image.Image], columns: int, paper: str = PAPER) -> Image.Image:
    """Pictures of one size in rows, with a gap between them."""
    wide, high = (side + GAP for side in pictures[0].size)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * wide - GAP, rows * high - GAP), paper)
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * wide, k // columns * high))
    return sheet


def marked(picture: Image.Image, number: int) -> Image.Image:
    """A copy with the sheet's frame and the draft's number in its corner."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=PICKED, width=4)
    draw.rectangle((0, 0, 27, 27), PICKED)
    draw.text((14, 14), str(number), "white", ImageFont.load_default(18), "mm")
    return picture


def drafts_finished(
    drafts: Sequence[Image.Image], finished: Sequence[Image.Image], picks: Sequence[int]
) -> Image.Image:
    """All drafts in a square, an arrow, and the picked two, finished, one above the other."""
    margin, between, line = 24, 96, 40
    shown = [marked(d, k) if k in picks else d for k, d in enumerate(drafts, start=1)]
    sheet = tiled(shown, columns=4)
    left = margin + sheet.width + between
    width = left + finished[0].width + margin
    whole = Image.new("RGB", (width, margin + sheet.height + line), PAPER)
    whole.paste(sheet, (margin, margin))
    tops = (margin, margin + sheet.height - finished[1].height)
    for number, picture, top in zip(picks, finished, tops, strict=True):
        whole.paste(marked(picture, number), (left, top))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(16)
    tip, middle = left - margin, margin + sheet.height // 2
    draw.line((margin + sheet.width + margin, middle, tip - 12, middle), FAINT, width=3)
    draw.polygon([(tip, middle), (tip - 14, middle - 9), (tip - 14, middle + 9)], FAINT)
    below = whole.height - line // 2
    draw.text((margin + sheet.width // 2, below), f"{len(drafts)} drafts", FAINT, font, "mm")
    draw.text((left + finished[0].width // 2, below), "two of them finished", INK, font, "mm")
    return whole


def banner(scales: Sequence[Image.Image]) -> Image.Image:
    """The four sizes of one picture on a line, twice as large."""
    strip = strip_of(
        [s.resize((2 * s.width, 2 * s.height), Image.Resampling.LANCZOS) for s in scales]
    )
    whole = Image.new("RGB", BANNER, LIGHT_GREY)
    whole.paste(strip, ((BANNER[0] - strip.width) // 2, (BANNER[1] - strip.height) // 2))
    return whole


def icon(picture: Image.Image) -> Image.Image:
    """The picture with round corners."""
    mask = Image.new("L", (4 * picture.width, 4 * picture.height))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 4 * ROUND, 255)
    whole = picture.convert("RGBA")
    whole.putalpha(mask.resize(picture.size, Image.Resampling.LANCZOS))
    return whole


def teachers(weights: Path | None) -> list[Image.Image]:
    """The teacher's pictures of the sixteen prompts."""
    teacher = SceneStudent.load(weights, lora=None)
    way = teacher_way(TEACHER_STEPS, GUIDANCE)
    latents = generate(teacher, way, teacher.encode(PROMPTS), SEED, range(len(PROMPTS)))
    return [picture_of(pixels) for pixels in teacher.decode(latents)]


def grown(weights: Path | None) -> Image.Image:
    """The teacher's picture of the prompt, grown from half its size as swd_any_scenes grows it."""
    teacher = SceneStudent.load(weights, lora=None)
    growth = GrowthSchedule(shifted(TEACHER_STEPS), law=PUBLISHED["scenes"])
    state = sample_growing(
        euler(teacher.denoiser(teacher.encode([PROMPT]), guidance=GUIDANCE)),
        growth.stretches(*SIZE),
        GrowthState(),
        OneField(SeededNoise(SEED, (0,)), SIZE),
        lift=partial(lift_spectral, levels=growth.levels),
        process=growth.levels,
        like=torch.zeros(1, LATENT_CHANNELS, *SIZE),
    )
    return picture_of(teacher.decode(state.x_t)[0])


def students(student: SceneStudent) -> list[Image.Image]:
    """The student's pictures of the sixteen prompts, with the noise that the teacher had."""
    return [
        to_picture(student, drawn(student, prompt, [Draft(SEED, k)], 4).scales[-1])
        for k, prompt in enumerate(PROMPTS)
    ]


def drawn(student: SceneStudent, prompt: str, images: Sequence[Draft], until: int) -> Drafts:
    begun = Drafts(presets()[PRESET].schedule, "scenes", SIZE, tuple(images), prompt=prompt)
    return advance(student, student.encode([prompt]), begun, until)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="other weights than the embedded ones")
    parser.add_argument("--picks", type=int, nargs=2, default=(2, 5), help="drafts to finish")
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="where docs/, web/ and workflows/ are"
    )
    a = parser.parse_args()
    student = SceneStudent.load(a.weights)
    done = drawn(student, PROMPT, [Draft(SEED, k) for k in range(COUNT)], 4)
    drafts, finished = (pictures_of(student, done, step) for step in (DRAFTED - 1, -1))
    first = [to_picture(student, x0[:1]) for x0 in done.scales]
    docs, help_pages = a.root / "docs/images", a.root / "web/docs/images"
    graphs = a.root / "workflows"
    picked = [finished[number - 1] for number in a.picks]
    drafts_finished(drafts, picked, a.picks).save(docs / "drafts_finished.png")
    write_animation(first, docs / "growing.webp", overwrite=True)
    banner(first).save(docs / "banner.png")
    icon(first[-1]).save(docs / "icon.png")
    strip_of(first).save(help_pages / "scales.png")
    tiled([p.resize((128, 128), Image.Resampling.LANCZOS) for p in finished], 8).save(
        help_pages / "scenes_sheet.png"
    )
    tiled(students(student), 4).save(docs / "scenes_student.jpg", quality=93)
    tiled(teachers(a.weights), 4).save(docs / "scenes_teacher.jpg", quality=93)
    for name in ("quickstart", "custom_sampling"):
        first[-1].save(graphs / f"swd_{name}_scenes.jpg", quality=92)
    grown(a.weights).save(graphs / "swd_any_scenes.jpg", quality=92)
    sheet = contact_sheet(drafts, done.labels()).picture
    sheet.resize((640, 640 * sheet.height // sheet.width), Image.Resampling.LANCZOS).save(
        graphs / "swd_drafts_scenes.jpg", quality=90
    )


if __name__ == "__main__":
    main()
