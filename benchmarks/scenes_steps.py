"""Scale-wise steps against full-size steps with trained weights: the embedded scene student.

    make bench-scenes

No ComfyUI needed. Time is of one picture at 256 pixels on one thread, and of a batch of them,
without decoding, which costs every way the same and has a row of its own. Quality stands in
docs/scenes.json, measured by the command that the model card names; a dash where it was not.
"""

import json
from collections.abc import Callable

import torch
from paired import ROOT, Times, arguments, log, paired, parser, ratio, section, spread, table

from swd_core.lab.evaluate import ways
from swd_core.lab.ways import SIDE, STUDENTS, Way, generate, shifted
from swd_core.scenes.student import SceneStudent

STUDENT = "student, 4 scale-wise steps"
FULL4, FULL2 = "teacher, 4 full-size steps", "teacher, 2 full-size steps"
DECODING, BATCH = "decoding", 16


def of_batch(name: str) -> str:
    return f"{name}, {BATCH} at once"


BATCHED = {of_batch(name): name for name in (FULL2, STUDENT, FULL4)}
PROMPT = "a fox in a forest at sunset"
KEYS = ("everything", "frechet", "top octave")


def value_of(row: dict, key: str) -> object:
    """A measure without its bounds; a dash where there is none."""
    found = row.get(key, "–")
    return found[0] if isinstance(found, list) else found


def text(times: Times, calls: dict[str, float]) -> str:
    measured = ROOT / "docs" / "scenes.json"
    quality = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else {}
    rows = []
    for name, values in times.items():
        if name in BATCHED:
            continue
        of = "" if name == DECODING else ratio(times, name, STUDENT)
        known = quality.get(name, {})
        figures = [value_of(known, key) for key in KEYS] if name != DECODING else [""] * len(KEYS)
        rows.append([name, spread(values), of, calls.get(name, ""), *figures])
    head = ["", "seconds", "of the student's", "full-size calls", "everything right"]
    runs = (
        f"Median of {len(times[STUDENT])} paired runs. 25 guided steps are the teacher's own way."
    )
    quality_table = table([*head, "Fréchet distance", "top octave"], rows)
    return f"{runs}\n\n{quality_table}\n\n{batches(times)}"


def batches(times: Times) -> str:
    """One picture and a batch: small calls have a fixed cost, the reading of the weights."""
    rows = []
    for many, one in BATCHED.items():
        each = spread([t / BATCH for t in times[many]])
        found = [ratio(times, one, FULL4), ratio(times, many, of_batch(FULL4))]
        goals = [r.against(0.62) for r in found] if one == STUDENT else ["", ""]
        rows.append([one, found[0], goals[0], each, found[1], goals[1]])
    head = ["", f"of {FULL4}", "goal", f"seconds each, {BATCH} at once", f"of {FULL4}", "goal"]
    return table(head, rows)


def main() -> None:
    a = arguments(parser(__doc__, runs=15))
    torch.set_num_threads(1)
    shipped = [way for way in ways(3.0) if not way.lora or way.title == STUDENT]
    shipped += [
        Way("student, 6 scale-wise steps", "scalewise6", *STUDENTS["scalewise6"]),
        Way("teacher, 28 full-size steps", "", (SIDE,) * 28, shifted(28), euler=True),
    ]
    student, teacher = SceneStudent.load(), SceneStudent.load(lora=None)
    prompt, prompts = (student.encode([PROMPT] * count) for count in (1, BATCH))
    sides: dict[str, Callable[[], object]] = {}
    for way in sorted(shipped, key=lambda way: way.calls):
        model = student if way.lora else teacher
        sides[way.title] = lambda model=model, way=way: generate(model, way, prompt, 7, range(1))
        if (many := of_batch(way.title)) in BATCHED:
            sides[many] = lambda model=model, way=way: generate(
                model, way, prompts, 7, range(BATCH)
            )
    latent = torch.zeros(1, 16, SIDE, SIDE)
    sides[DECODING] = lambda: student.decode(latent)
    calls = {way.title: round(way.calls, 2) for way in shipped}

    def show(times: Times) -> None:
        title = "Scale-wise against full-size, trained weights: the scene student"
        body = text(times, calls)
        written = section("scenes", title, body, a)
        if len(times[STUDENT]) == a.runs:
            log.info(written)

    paired(sides, a.runs, show)


if __name__ == "__main__":
    main()
