"""Whether prepared data is still what its source holds."""

from pathlib import Path

from .data import PreparedBatches
from .prepare import SKIPPED
from .sources import find_prompts, find_samples, has_pictures, prompts_alone

FEW = 3  # names that are shown of many


def check_source(source: Path, batches: PreparedBatches) -> None:
    """Raises ValueError if the data was prepared of another kind of source, or of other prompts,
    pictures or captions.

    A picture is known by its name and its size in bytes, so that none is opened. A source that is
    gone since it was prepared, or has no picture any more, is not missed.
    """
    if batches.pictures == prompts_alone(source):
        holds, named = "prompts alone", "pictures"
        if batches.pictures:
            holds, named = "pictures", "prompts"
        raise ValueError(
            f"{batches.folder} holds {holds}, and [data] source names {named} ({source}). "
            "Run prepare again, or name another folder in [data] prepared."
        )
    if not source.exists() or (source.is_dir() and not has_pictures(source)):
        return
    if not batches.pictures:
        if [prompt.caption for prompt in find_prompts(source)] != batches.captions():
            raise ValueError(
                f"{source} is not what {batches.folder} was prepared from. Run prepare again; a "
                "training that has begun goes on only with the prompts that it began with, so put "
                "them back to resume one."
            )
    elif changes := picture_changes(source, batches):
        raise ValueError(
            f"{source} is not what {batches.folder} was prepared from: {'; '.join(changes)}. Run "
            "prepare again, or leave [data] source out to train with what is prepared. A training "
            "that has begun goes on only with the pictures that it began with."
        )


def picture_changes(source: Path, batches: PreparedBatches) -> list[str]:
    """How the pictures in `source` differ from those that were prepared, in words."""
    now, before = {sample.name: sample for sample in find_samples(source)}, batches.origins()
    both = before.keys() & now.keys()
    listed = batches.folder / SKIPPED
    skipped = listed.read_text("utf-8").splitlines() if listed.is_file() else []
    left_out = {line.partition("\t")[0] for line in skipped}
    found = {
        ("is new", "are new"): now.keys() - both - left_out,
        ("is gone", "are gone"): before.keys() - both,
        ("has another caption", "have other captions"): {
            name for name in both if before[name].caption not in (None, now[name].caption)
        },
        ("is another picture", "are other pictures"): {
            name for name in both if before[name].size not in (None, now[name].size)
        },
    }
    return [
        f"{len(names)} {said[len(names) > 1]} ({_shown(names)})"
        for said, names in found.items()
        if names
    ]


def _shown(names: set[str]) -> str:
    return ", ".join(sorted(names)[:FEW]) + (", …" if len(names) > FEW else "")
