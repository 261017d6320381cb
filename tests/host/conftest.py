"""The real host, in this process (nodes called directly) and as a server (graphs posted to it)."""

import asyncio
import importlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(Path(__file__).parent))  # for `graphs`
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
# SWD_TEST_DEVICE=gpu runs the models where the host would: on the first graphics card it finds.
ON_CPU = os.environ.get("SWD_TEST_DEVICE", "cpu") == "cpu"


def host_python() -> str:
    """The host's own interpreter: COMFYUI_PYTHON, a venv beside or inside the tree, or this one."""
    given = os.environ.get("COMFYUI_PYTHON")
    suffix = COMFYUI.name.removeprefix("ComfyUI")
    beside = [
        COMFYUI.parent / f"venv{suffix}",
        COMFYUI / "venv",
        COMFYUI / ".venv",
        COMFYUI.parent / "venv",
    ]
    found = [str(v / "bin" / "python") for v in beside if (v / "bin" / "python").is_file()]
    return given or next(iter(found), sys.executable)


class Server:
    """A ComfyUI server with only this pack, its own folders and no other custom nodes."""

    def __init__(self, base: Path, *options: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.base, self.url = base, f"http://127.0.0.1:{self.port}"
        for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "ComfyUI-SwD").symlink_to(ROOT)
        self.log = base / "log.txt"
        command = [
            host_python(),
            "main.py",
            *(["--cpu"] if ON_CPU else []),
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--disable-auto-launch",
            "--base-directory",
            str(base),
            *options,
        ]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=COMFYUI, env=env, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 180
        while True:
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(
                        f"The host did not start:\n{self.log.read_text()[-3000:]}"
                    ) from None
                time.sleep(0.3)

    def get(self, path: str) -> dict:
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return json.load(reply)

    def post(self, path: str, data: dict) -> dict:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read() or b"{}")
        except urllib.error.HTTPError as error:
            return {"http_error": error.code, **json.loads(error.read() or b"{}")}

    def run(self, prompt: dict, client: str | None = None, workflow: dict | None = None) -> dict:
        """Posts an API graph and waits for its history entry.

        Args:
            workflow: the graph as it is drawn, which a page sends along.
        """
        asked = {"prompt": prompt, "client_id": client or uuid.uuid4().hex}
        if workflow is not None:
            asked["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        reply = self.post("/prompt", asked)
        if "prompt_id" not in reply:
            return {"refused": reply}
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{reply['prompt_id']}").get(reply["prompt_id"])
            if entry and entry.get("status", {}).get("completed") is not None:
                return entry
            time.sleep(0.1)
        raise TimeoutError(f"The graph did not end:\n{self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    running = Server(base)
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def pack():
    """The pack loaded as the host loads it, in this process; node id -> class."""
    if str(COMFYUI) not in sys.path:
        sys.path.insert(0, str(COMFYUI))
    try:
        import comfy.options

        comfy.options.enable_args_parsing(False)
        from comfy.cli_args import args

        args.cpu = ON_CPU
        import nodes  # noqa: F401  the host's own
    except ImportError as error:
        pytest.skip(
            f"the host's packages are not in this environment ({error}); run the host tests "
            "with its interpreter: <host venv>/bin/python -m pytest tests/host"
        )
    spec = importlib.util.spec_from_file_location(
        "swd_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["swd_pack"] = module
    spec.loader.exec_module(module)

    async def load():
        return await (await module.comfy_entrypoint()).get_node_list()

    return {c.GET_SCHEMA().node_id: c for c in asyncio.run(load())}


@pytest.fixture(scope="session")
def small(pack):
    """Small random models of every family (small_models.py), once the host can be imported."""
    pytest.importorskip("diffusers", reason="the references need diffusers: pip install diffusers")
    return importlib.import_module("small_models")


@pytest.fixture(scope="session")
def preview_server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy_preview")
    running = Server(base, "--preview-method", "latent2rgb")
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def controls(pack, small):
    """Small random ControlNets of the host's own classes: family -> (ControlNet, VAE or None)."""
    return importlib.import_module("small_controls").control_of


@pytest.fixture
def start_server(tmp_path):
    """Starts servers with given options; they end with the test."""
    running = []

    def start(*options: str) -> Server:
        running.append(Server(tmp_path / f"comfy{len(running)}", *options))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(autouse=True)
def without_gradients(request):
    """As in the host; where weights ask for gradients, graphs that nobody reads fill the memory."""
    import torch

    with torch.set_grad_enabled("distill" in request.module.__name__):
        yield


@pytest.fixture
def reproducible():
    """Trainings of the same bits on a card, too, which adds up some gradients in any order.

    Attention's even where it is asked not to, as long as it may only warn: it is written out.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if ON_CPU:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def as_the_host_runs_its_nodes():
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def wan(small):
    return small.wan_model()


@pytest.fixture(scope="module")
def models(small):
    """The host's float32 model of each family, loaded once a file."""
    return {family: small.host_model(family) for family in small.KINDS}


@pytest.fixture
def loras(pack, tmp_path, monkeypatch):
    """A models/loras folder of the host's."""
    import folder_paths

    extensions = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture
def folders(pack, tmp_path):
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    folder_paths.set_output_directory(str(tmp_path / "output"))
    folder_paths.set_input_directory(str(tmp_path / "input"))
    for name in ("temp", "output", "input"):
        (tmp_path / name).mkdir()


@pytest.fixture
def compare(pack, small, models, record_property):
    """Runs the sampler once and the host scale by scale (chain.py), and compares.

    They differ by float32 sums of differently grouped numbers.
    """
    chain = importlib.import_module("chain")
    relative = importlib.import_module("paper").relative

    def run(family, guider_at, tolerance=5e-6, **options):
        preset = chain.FAMILIES[family]
        target = chain.sizes_of(small, preset)[-1]
        ours = chain.scalewise(pack, preset, guider_at(-1, target))
        theirs = chain.host_chain(pack, small, preset, models[family], guider_at, **options)
        difference = relative(ours, theirs)
        record_property("difference", difference)
        assert ours.isfinite().all() and ours.shape == theirs.shape
        assert difference <= tolerance
        return ours

    return run


@pytest.fixture
def host_model(pack):
    """HostModel's module, while the host is told that gradients are wanted."""
    from host_training import packed

    with packed("nodes.twin").training_mode():
        yield packed("nodes.host_model")
