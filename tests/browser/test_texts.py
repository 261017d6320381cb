"""What the page shows of a node: English from its schema, other languages from the locale files."""

import json
from pathlib import Path

import pytest
from sheets import ONE_EDITOR, THERE

ROOT = Path(__file__).resolve().parents[2]
SHOWN = """(id) => {
    const node = LiteGraph.createNode(id);
    const label = (slot) => slot.label ?? slot.localized_name ?? slot.name;
    const widgets = (node.widgets ?? []).map((w) => [w.name, w.label ?? w.name]);
    return {
        title: node.constructor.title,
        inputs: Object.fromEntries([...node.inputs.map((i) => [i.name, label(i)]), ...widgets]),
        outputs: node.outputs.map(label),
    };
}"""


@ONE_EDITOR
@pytest.mark.parametrize("language", ["en", pytest.param("ja", marks=pytest.mark.own_page)])
def test_a_nodes_texts_are_of_the_chosen_language(page, host, language):
    if language != "en":  # the page's own
        page.evaluate("(k) => app.extensionManager.setting.set('Comfy.Locale', k)", language)
        page.reload()
        page.wait_for_function(THERE)
    for file in (ROOT / "locales").glob("*.json"):
        name, info = file.stem, host.get(f"/object_info/{file.stem}")[file.stem]
        names = [n for group in ("required", "optional") for n in info["input"].get(group, {})]
        expected = {
            "title": info["display_name"],
            "inputs": dict(zip(names, names, strict=True)),
            "outputs": info["output_name"],
        }
        if language != "en":
            texts = json.loads(file.read_text(encoding="utf-8"))[language]
            expected = {
                "title": texts["display_name"],
                "inputs": {n: texts["inputs"][n]["name"] for n in names},
                "outputs": [text["name"] for text in texts["outputs"].values()],
            }
        shown = page.evaluate(SHOWN, name)
        shown["inputs"] = {n: text for n, text in shown["inputs"].items() if n in names}
        assert shown == expected
