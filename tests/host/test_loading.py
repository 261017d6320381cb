"""How the host loads the pack: every file with nodes, and a broken one says so."""

import ast
import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(pack, tmp_path) -> tuple[Path, Callable[[], dict]]:
    """A pack that may be changed, and what loads it as the host does: node id -> class."""
    root = tmp_path / "a.pack"  # a folder's name may have a dot, which the host replaces
    shutil.copytree(ROOT / "nodes", root / "nodes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", root)
    (root / "swd_core").symlink_to(ROOT / "swd_core")

    def load() -> dict:
        name = str(root).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(
            name, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        nodes = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
        return {node.__name__: node for node in nodes}

    yield root, load
    for name in [n for n in sys.modules if n.startswith(str(tmp_path).replace(".", "_x_"))]:
        del sys.modules[name]


def test_every_class_of_a_node_is_loaded_once(copy):
    root, load = copy
    written = [
        statement.name
        for file in (root / "nodes").glob("*.py")
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ClassDef)
        and "io.ComfyNode" in map(ast.unparse, statement.bases)
    ]
    assert sorted(load()) == sorted(written)


@pytest.mark.usefixtures("pack")
def test_it_loads_where_the_hosts_server_is_imported_and_does_not_run():
    """Scripts that use the host's nodes do so: one of the host's own files imports its server."""
    import nodes

    script = f"""
import sys
sys.path.insert(0, {str(Path(nodes.__file__).parent)!r})
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # first, as the host's own start does
import asyncio
import server
import nodes
assert not hasattr(server.PromptServer, "instance")
assert asyncio.run(nodes.load_custom_node({str(ROOT)!r}))
assert "SwDTray" in nodes.NODE_CLASS_MAPPINGS
"""
    command = [sys.executable, "-P", "-c", script, "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_broken_file_with_nodes_is_no_silence(copy, caplog):
    root, load = copy
    (root / "nodes" / "broken.py").write_text("import not_there\n\nNODES = []\n")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        load()
    assert "broken.py" in caplog.text, "the host prints one line; ours has the traceback"


def test_a_broken_file_without_nodes_takes_no_node_away(copy):
    root, load = copy
    (root / "nodes" / "twin.py").write_text("import not_there\n")
    assert "SwDSample" in load()


def test_a_begun_node_is_loaded_and_runs(copy):
    """`make node` leaves texts to write, and nothing to list."""
    import torch

    root, load = copy
    shutil.copytree(ROOT / "locales", root / "locales")
    shutil.copy(ROOT / "README.md", root)
    (root / "web" / "docs").mkdir(parents=True)
    command = [sys.executable, ROOT / "tools" / "new_node.py", "--root", root]
    subprocess.run([*command, "SwDSharpenMore", "the same size, with more detail"], check=True)
    node = load()["SwDSharpenMore"]
    assert node.GET_SCHEMA().display_name == "SwD Sharpen More"
    images = torch.rand(1, 8, 8, 3)
    assert node.execute(images=images).result[0] is images
    assert (root / "nodes" / "sharpen_more.py").is_file()
    row = "| [SwD Sharpen More](web/docs/SwDSharpenMore.md) | the same size, with more detail |"
    assert row in (root / "README.md").read_text(encoding="utf-8").splitlines()
    assert (root / "web" / "docs" / "SwDSharpenMore.md").is_file()
    texts = json.loads((root / "locales" / "SwDSharpenMore.json").read_text(encoding="utf-8"))
    assert sorted(texts) == ["ja", "ko", "pt-BR", "ru", "zh"]
    for translated in texts.values():
        assert translated["inputs"].keys() == node.GET_NODE_INFO_V1()["input"]["required"].keys()
