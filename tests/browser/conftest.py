"""A real browser on a real host; says so where there is none.

SWD_FRONTEND names a folder of another comfyui-frontend-package, which the host then serves instead.
"""

import importlib.util
import json
import os
import shutil
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for what tests share
from sheets import PATIENCE, THERE, entry_beyond, small_graph  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
HOST_TESTS = ROOT / "tests" / "host" / "conftest.py"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

WINDOW = {"width": 1600, "height": 1100}

# Makes of a page that a test is done with a new user's; whether nothing of that test is left on it.
RENEW = """async () => {
    const { command, toast, workflow } = app.extensionManager;
    await command.execute("Comfy.NewBlankWorkflow");
    for (const other of [...workflow.openWorkflows]) {
        if (other !== workflow.activeWorkflow) await workflow.closeWorkflow(other);
    }
    toast.removeAll?.(); // the newest page has no such thing
    localStorage.clear();
    sessionStorage.clear();
    const over = [...document.querySelectorAll("[role=dialog], .p-toast-message")];
    return !over.some((element) => element.checkVisibility())
        && !app.graph.nodes.length && workflow.openWorkflows.length === 1;
}"""
# What a page keeps in the browser; what it has loaded stays.
FORGET = """async () => {
    localStorage.clear();
    sessionStorage.clear();
    for (const { name } of await indexedDB.databases()) {
        await new Promise((done) => {
            const request = indexedDB.deleteDatabase(name);
            request.onsuccess = request.onerror = request.onblocked = done;
        });
    }
}"""


def pytest_configure(config) -> None:
    config.addinivalue_line("markers", "own_page: leaves its page as no test begins with one")


def chromium_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def frontend() -> list[str]:
    """The host's options for the page that SWD_FRONTEND names."""
    if not (given := os.environ.get("SWD_FRONTEND")):
        return []
    pages = sorted(Path(given).expanduser().resolve().glob("**/index.html"))
    if not pages:
        pytest.fail(f"SWD_FRONTEND is {given}, which holds no index.html: name an unpacked package")
    return ["--front-end-root", str(pages[0].parent)]


@pytest.fixture(scope="session")
def chromium():
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium: install one, or set CHROMIUM to its path")
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install -r requirements-browser.txt"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def host(chromium, tmp_path_factory):
    spec = importlib.util.spec_from_file_location("host_conftest", HOST_TESTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not (module.COMFYUI / "main.py").is_file():
        pytest.skip(f"no ComfyUI at {module.COMFYUI}: set COMFYUI_PATH")
    base = tmp_path_factory.mktemp("comfy_browser")
    (base / "custom_nodes").mkdir()
    video = Path(__file__).with_name("small_video.py")
    (base / "custom_nodes" / video.name).symlink_to(video)
    running = module.Server(base, "--preview-method", "latent2rgb", *frontend())
    yield running
    running.stop()
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def context(chromium):
    """One for all tests: what it has loaded of the page need not be loaded again."""
    context = chromium.new_context(viewport=WINDOW)
    yield context
    context.close()


@pytest.fixture(scope="session")
def old_host(host) -> str | None:
    """What the host is called, if it is one of ComfyUI 0.3."""
    version = host.get("/system_stats")["system"]["comfyui_version"]
    return f"ComfyUI {version}" if version.startswith("0.3.") else None


@pytest.fixture(scope="session")
def old_page(old_host) -> str | None:
    """What the page is called, if it is the own one of such a host."""
    return f"the page of {old_host}" if old_host and not frontend() else None


@pytest.fixture(scope="session", params=["classic", "vue"])
def editor(request, old_page) -> str:
    """Which of the host's two editors: all tests of one, then those of the other."""
    if request.param == "vue" and old_page:
        pytest.skip(f"Vue nodes are an experiment on {old_page}, and no sheet appears there")
    return request.param


def opened(context, host, editor: str):
    """The host's page for a user whom neither browser nor host knows."""
    settings = {"Comfy.VueNodes.Enabled": editor == "vue", "Comfy.TutorialCompleted": True}
    folder = host.base / "user" / "default"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
    page = context.new_page()
    page.set_default_timeout(150_000)  # drawn without a graphics card
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(error.stack or str(error)))
    page.on("console", lambda m: m.type == "error" and page.faults.append(f"{m.text} {m.location}"))
    page.goto(host.url)
    page.wait_for_function(THERE, timeout=120_000)
    page.keyboard.press("Escape")  # a new user's begins with the templates dialog open
    page.evaluate(RENEW)
    return page


def close(page, host) -> None:
    page.goto(f"{host.url}/system_stats")  # the page's own place, without the page
    page.evaluate(FORGET)
    page.close()


@pytest.fixture(scope="session")
def pages(editor, context, host) -> Iterator[list]:
    """The editor's open page, if any: it takes seconds to load, so that tests share it."""
    found: list = []
    yield found
    for page in found:
        close(page, host)


@pytest.fixture
def page(request, pages, editor, context, host):
    """The host's page in one of its two editors, with what went wrong in it in `page.faults`.

    It is a new user's, or as one; after a test that failed, or that is marked own_page, the next
    test gets another.
    """
    if not pages:
        pages.append(opened(context, host, editor))
    [page] = pages
    page.faults.clear()
    failed = request.session.testsfailed
    yield page
    stop_all(host)
    spent = request.session.testsfailed > failed or request.node.get_closest_marker("own_page")
    if not spent:
        page.keyboard.press("Escape")
        page.mouse.move(0, 0)
        spent = not page.evaluate(RENEW)
    if spent:
        close(pages.pop(), host)


def stop_all(host) -> None:
    """Stops what a test left running."""
    deadline = time.monotonic() + PATIENCE
    while any(host.get("/queue").values()):
        if time.monotonic() > deadline:
            pytest.fail(f"The host still runs something {PATIENCE} s after the test")
        host.post("/queue", {"clear": True})
        host.post("/interrupt", {})
        time.sleep(0.3)


@pytest.fixture
def browse(page, host) -> Iterator[Callable[[], None]]:
    """Opens the templates dialog at this pack, as an artist does."""
    try:
        host.get("/templates/index.json")
    except urllib.error.HTTPError:
        pytest.fail(
            "The host has no templates of its own, and older pages then open no template at all: "
            "install what its requirements.txt names"
        )

    def open_dialog() -> None:
        page.keyboard.press("Escape")  # what the page has opened by itself
        page.get_by_role("button", name="Templates").first.click()
        ours = page.get_by_text("ComfyUI-SwD", exact=True).first
        ours.wait_for()
        # Older pages go to their first category once they have all, whatever was clicked before.
        page.locator(".p-progressspinner").first.wait_for(state="hidden")
        ours.click()

    # The host's own move, hundreds of them: minutes of drawing without a graphics card.
    page.route("**/templates/*.webp", lambda route: route.abort())
    yield open_dialog
    page.unroute_all()


@pytest.fixture
def small_window(page) -> Iterator[None]:
    """Where a third of the templates dialog's cards are drawn."""
    page.set_viewport_size({"width": 1300, "height": 650})
    yield
    page.set_viewport_size(WINDOW)


@pytest.fixture
def run(page, host) -> Callable[[], dict]:
    """Presses Run and gives the history entry of what that ran."""

    def press() -> dict:
        known = set(host.get("/history"))
        page.get_by_role("button", name="Run", exact=True).first.click()
        return entry_beyond(known, page, host)

    return press


@pytest.fixture
def look(page, request) -> Callable[[str], None]:
    """Keeps a screenshot where SCREENSHOTS names a folder."""
    folder = os.environ.get("SCREENSHOTS")

    def shoot(name: str) -> None:
        if folder:
            page.wait_for_timeout(1500)  # pictures on the canvas come when they like
            page.screenshot(path=str(Path(folder) / f"{request.node.name}-{name}.png"))

    return shoot


@pytest.fixture
def sheet(page, run):
    """The graph of drafts, run once with nothing picked."""
    page.evaluate("(graph) => app.loadGraphData(graph)", small_graph())
    entry = run()
    saver = str(page.evaluate("() => app.graph.nodes.find((n) => n.type === 'SaveImage').id"))
    assert saver not in entry["outputs"], "nothing was picked"
    page.wait_for_selector(".swd-grid button", state="visible", timeout=60_000)
    return page


@pytest.fixture
def posted(page) -> Iterator[list[dict]]:
    """What the page asks the host to run from here on."""
    found: list[dict] = []

    def keep(request) -> None:
        if request.method == "POST" and request.url.endswith("/prompt"):
            found.append(json.loads(request.post_data))

    page.on("request", keep)
    yield found
    page.remove_listener("request", keep)
