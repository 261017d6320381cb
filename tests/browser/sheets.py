"""What the tests of contact sheets in the editor read and set."""

BUTTONS = ".swd-grid button"
PICK = (
    "() => app.graph.nodes.find((n) => n.type === 'SwDFinishDrafts')"
    ".widgets.find((w) => w.name === 'pick').value"
)
SEED = (
    "() => { const w = app.graph.nodes.find((n) => n.type === 'SwDDrafts').widgets"
    ".find((w) => w.name === 'seed'); return [w.value, w.linkedWidgets[0].value]; }"
)
SET_SEED = """([seed, control]) => {
  const node = app.graph.nodes.find((n) => n.type === 'SwDDrafts');
  const w = node.widgets.find((w) => w.name === 'seed');
  w.linkedWidgets[0].value = control;
  w.value = seed;
  w.callback?.(seed);
}"""
SET = """([type, values]) => {
  const { widgets } = app.graph.nodes.find((n) => n.type === type);
  for (const widget of widgets) if (widget.name in values) widget.value = values[widget.name];
}"""


def numbers(page) -> str:
    """The picks without the sheet they were clicked on."""
    return page.evaluate(PICK).partition(" @")[0]


def node_id(page, kind: str) -> str:
    return str(page.evaluate("(k) => app.graph.nodes.find((n) => n.type === k).id", kind))


def cached(entry: dict) -> set[str]:
    [nodes] = [m[1]["nodes"] for m in entry["status"]["messages"] if m[0] == "execution_cached"]
    return set(nodes)


def marked(page) -> list[str]:
    return page.locator(f'{BUTTONS}[aria-pressed="true"]').evaluate_all(
        "(all) => all.map((b) => b.title)"
    )
