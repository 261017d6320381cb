"""The floors of the house, read from the imports of every file, those inside functions too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("nodes", "swd_core", "benchmarks", "tools", "tests")

# What each room may import, besides itself. The method is the files of swd_core/ itself.
METHOD = "swd_core"
ROOMS = {
    METHOD: set(),
    "swd_core.scenes": {METHOD},
    "swd_core.distill": {METHOD, "swd_core.scenes"},
    "swd_core.lab": {METHOD, "swd_core.scenes", "swd_core.distill"},
    "swd_core.commands": {METHOD, "swd_core.scenes", "swd_core.distill"},
    "nodes": {METHOD, "swd_core.scenes", "swd_core.distill"},
}
HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview")


def arrows(root: Path) -> dict[str, set[str]]:
    """Module -> what it imports; files of `root` by their dotted names, the rest by its first."""
    files = [f for folder in FOLDERS for f in (root / folder).rglob("*.py")]
    names = {".".join(f.relative_to(root).with_suffix("").parts): f for f in files}
    names = {name.removesuffix(".__init__"): f for name, f in names.items()}

    def module(name: str) -> str:
        """The file that `name` is in, which may be something inside of it."""
        while name not in names and "." in name:
            name = name.rpartition(".")[0]
        return name

    found = {}
    for name, file in names.items():
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        imported = set()
        for statement in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                imported |= {alias.name for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom):
                # `from ..swd_core` in nodes/ goes up to the pack, which has no name of its own.
                start = package[: len(package) - statement.level + 1] if statement.level else []
                base = ".".join([*start, *filter(None, [statement.module])])
                imported |= {f"{base}.{alias.name}" for alias in statement.names}
        found[name] = {module(target) for target in imported} - {name}
    return found


def room(module: str) -> str:
    """The folder of a file below nodes/ or swd_core/."""
    if module == "swd_core.__main__":
        return "swd_core.commands"
    inner = ".".join(module.split(".")[:2])
    return inner if (ROOT / inner.replace(".", "/")).is_dir() else module.split(".")[0]


@pytest.fixture(scope="module")
def house() -> dict[str, set[str]]:
    return arrows(ROOT)


def test_every_way_to_import_is_seen(tmp_path):
    for file, text in {
        "nodes/__init__.py": "from . import _host\nimport comfy.samplers",
        "nodes/_host.py": "def f():\n    from ..swd_core.lora import names",
        "swd_core/__init__.py": "",
        "swd_core/lora.py": "from . import noise, schedule\nfrom .scenes import WORDS, text",
        "swd_core/noise.py": "if TYPE_CHECKING:\n    from .scenes.text import Text",
        "swd_core/schedule.py": "import swd_core.noise as n, json",
        "swd_core/scenes/__init__.py": "",
        "swd_core/scenes/text.py": "from ..schedule import CELL\nfrom swd_core import lora",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert arrows(tmp_path) == {
        "nodes": {"nodes._host", "comfy"},
        "nodes._host": {"swd_core.lora"},
        "swd_core": set(),
        "swd_core.lora": {
            "swd_core.noise", "swd_core.schedule", "swd_core.scenes", "swd_core.scenes.text",
        },
        "swd_core.noise": {"swd_core.scenes.text"},
        "swd_core.schedule": {"swd_core.noise", "json"},
        "swd_core.scenes": set(),
        "swd_core.scenes.text": {"swd_core.schedule", "swd_core.lora"},
    }  # fmt: skip


def test_no_file_imports_in_a_circle(house):
    try:
        TopologicalSorter(house).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_room_imports_one_above_it(house):
    up = set()
    for module, imported in house.items():
        if module.split(".")[0] not in ("nodes", "swd_core"):
            continue
        own = room(module)
        assert own in ROOMS, f"{own} is new: give it a floor, in ROOMS and in docs/DESIGN.md"
        ours = {target for target in imported if target.split(".")[0] in FOLDERS}
        up |= {f"{module} -> {t}" for t in ours if room(t) not in {own, *ROOMS[own]}}
    assert not up, "\n" + "\n".join(sorted(up))


def test_the_method_knows_no_host(house):
    core = {m: t & {*HOST} for m, t in house.items() if m.split(".")[0] == "swd_core"}
    assert {module: found for module, found in core.items() if found} == {}


def test_the_host_is_adapted_in_its_seam_alone():
    """What is said to differ on the floor version stands in nodes/_host*.py, once."""
    rooms = [f for f in (ROOT / "nodes").glob("*.py") if not f.name.startswith("_host")]
    assert [f.name for f in rooms if "0.3.64" in f.read_text(encoding="utf-8")] == []
