"""The name of a drafts file, written as for the host's own savers."""

import pytest
from sheets import ONE_EDITOR

PROMPT = """async (prefix) => {
  app.graph.add(LiteGraph.createNode("EmptyLatentImage"));
  const save = Object.fromEntries(["SwDSaveDrafts", "SaveLatent"].map((type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.widgets.find((w) => w.name === "filename_prefix").value = prefix;
    return [type, node.id];
  }));
  const { output } = await app.graphToPrompt();
  const sent = (type) => output[save[type]].inputs.filename_prefix;
  return [sent("SwDSaveDrafts"), sent("SaveLatent")];
}"""


@ONE_EDITOR
@pytest.mark.parametrize(
    ("prefix", "begins"),
    [
        ("plain/name", "plain/name"),
        ("%date:yyyy%/swd", "20"),
        ("a_%EmptyLatentImage.width%", "a_"),
        ("%year%", "%year%"),  # which the host itself fills in
    ],
)
def test_the_page_fills_in_dates_and_widgets(page, prefix, begins):
    ours, theirs = page.evaluate(PROMPT, prefix)
    assert ours == theirs and ours.startswith(begins)
    assert "%date" not in ours and "Latent" not in ours
