// Click to pick: a contact sheet whose cells write the `pick` widget of the finishing node behind it; and the saver's name.
// Without this file the host shows the sheet as a plain picture and the widget is typed into.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const WITH_SHEET = ["SwDDrafts", "SwDFinishDrafts", "SwDLoadDrafts"];
const KEEP_SEED = ["SwDDrafts", "SwDDistillTrain"]; // another seed is another sheet, another training
const PASS_ON = ["SwDSaveDrafts", "Reroute"];
const STYLE = `
.swd-sheet { position: relative; width: 100%; }
.swd-sheet img { display: block; width: 100%; height: 100%; border-radius: 4px; }
.swd-sheet div { position: absolute; inset: 0; display: grid; }
.swd-sheet button { all: unset; box-sizing: border-box; cursor: pointer; border-radius: 6px; }
.swd-sheet button:hover { box-shadow: inset 0 0 0 2px #8cf8; }
.swd-sheet button[aria-pressed="true"] { box-shadow: inset 0 0 0 4px #5ab0ff; background: #5ab0ff22; }
.swd-sheet button:focus-visible { outline: 3px solid #ffb35a; outline-offset: -3px; }
`;
const sheets = new Map(); // node -> refresh

function finishers(node) {
  return (node.outputs?.[0]?.links ?? []).flatMap((id) => {
    const link = node.graph.links.get?.(id) ?? node.graph.links[id];
    const target = link && node.graph.getNodeById(link.target_id);
    if (target?.type === "SwDFinishDrafts") return [target];
    return PASS_ON.includes(target?.type) ? finishers(target) : [];
  });
}

const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name);
const pickOf = (node) => widgetOf(node, "pick");

// The numbers of "1,4-6" or "all", in the order they are named; what is no number is left out. A click
// also writes its sheet, as in "3 @1f0c22ab": on another sheet it marks nothing.
function picked(text, { count, sheet }) {
  const [numbers, of] = String(text ?? "").split("@");
  if (of !== undefined && of.trim() !== sheet) return new Set();
  const plain = numbers.trim().toLowerCase().replace(/\s*[-–—]\s*/g, "-");
  const parts = (plain === "all" ? `1-${count}` : plain).split(/[\s,;]+/);
  const found = parts.flatMap((part) => {
    const [, first, last = first] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    const length = first ? Math.min(last, count) - first + 1 : 0;
    return Array.from({ length: Math.max(0, length) }, (_, i) => +first + i);
  });
  return new Set(found);
}

// What was clicked is what is finished: the seed goes back to the sheet's and stays.
function fixSeed(node, seed) {
  if (node?.type === "SwDDrafts") {
    const widget = widgetOf(node, "seed");
    keepSeed(widget);
    // One that is linked, or has more digits than a page can count, is left to the check of the sheet.
    if (widget && Number.isSafeInteger(seed)) widget.value = seed;
    return;
  }
  const through = PASS_ON.includes(node?.type) ? 0 : node?.inputs?.findIndex((i) => i.name === "drafts");
  const link = node?.inputs?.[through]?.link;
  const { origin_id } = node?.graph.links.get?.(link) ?? node?.graph.links[link] ?? {};
  if (origin_id !== undefined) fixSeed(node.graph.getNodeById(origin_id), seed);
}

function keepSeed(widget) {
  const [control] = widget?.linkedWidgets ?? [];
  if (control) control.value = "fixed";
}

// Another seed is another sheet, asked for by hand: what was clicked on the one before is done with.
function dropClicks(node) {
  for (const finisher of finishers(node)) {
    const widget = pickOf(finisher);
    if (String(widget?.value).includes("@")) widget.value = "";
    dropClicks(finisher);
  }
}

function toggle(node, number, cells) {
  fixSeed(node, cells.seed);
  for (const finisher of finishers(node)) {
    const widget = pickOf(finisher);
    const numbers = picked(widget.value, cells);
    if (!numbers.delete(number)) numbers.add(number);
    const sheet = cells.sheet && numbers.size ? ` @${cells.sheet}` : "";
    widget.value = [...numbers].join(",") + sheet;
    widget.callback?.(widget.value);
  }
  node.graph.setDirtyCanvas(true, true);
  refresh();
}

function refresh() {
  for (const [node, update] of sheets) node.graph ? update() : sheets.delete(node);
}

function makeSheet(node) {
  const root = document.createElement("div");
  root.className = "swd-sheet";
  const image = root.appendChild(document.createElement("img"));
  const grid = root.appendChild(document.createElement("div"));
  root.addEventListener("pointerdown", (e) => e.button === 0 && e.stopPropagation());
  root.addEventListener("keydown", (e) => {
    if ([" ", "Enter"].includes(e.key) && !e.ctrlKey && !e.metaKey) e.stopPropagation();
  });
  let ratio = 1;
  const getMinHeight = () => (node.size[0] - 20) * ratio;
  const widget = node.addDOMWidget("swd_sheet", "swd_sheet", root, {
    serialize: false, hideOnZoom: false, getMinHeight, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  // The host would show the same picture once more.
  node.hideOutputImages = true;
  node.onDrawBackground = undefined;
  image.onerror = () => (root.hidden = true); // cleared by a restart of the host
  image.onload = () => {
    root.hidden = false;
    ratio = image.naturalHeight / image.naturalWidth;
    root.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
    const least = node.computeSize();
    if (node.size[1] < least[1]) node.setSize([node.size[0], least[1]]);
    node.graph?.setDirtyCanvas(true, true);
  };
  return { image, grid };
}

function show(node, output) {
  const [cells] = output?.swd_sheet ?? [];
  const [file] = output?.images ?? [];
  if (!cells || !file) return;
  node.swdSheet ??= makeSheet(node);
  node.swdSeed = cells.seed;
  const { image, grid } = node.swdSheet;
  image.alt = `Contact sheet of ${cells.count} drafts`;
  image.src = api.apiURL(`/view?${new URLSearchParams(file)}`);
  grid.style.gridTemplate = `repeat(${cells.rows}, 1fr) / repeat(${cells.columns}, 1fr)`;
  const buttons = Array.from({ length: cells.count }, (_, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.ariaLabel = button.title = `Draft ${i + 1}`;
    button.onclick = () => toggle(node, i + 1, cells);
    return button;
  });
  grid.replaceChildren(...buttons);
  sheets.set(node, () => {
    const [first] = finishers(node);
    const marked = picked(first && pickOf(first)?.value, cells);
    buttons.forEach((b, i) => b.setAttribute("aria-pressed", marked.has(i + 1)));
  });
  refresh();
}

// After a reload of the page the sheets come back from what the host remembers of this workflow.
async function restore() {
  const graph = app.rootGraph ?? app.graph;
  const nodes = graph.nodes.filter((n) => WITH_SHEET.includes(n.type) && !n.swdSheet);
  if (!nodes.length) return;
  const reply = await api.fetchApi("/history?max_items=64");
  if (!reply.ok) return;
  const runs = Object.values(await reply.json()).sort((a, b) => b.prompt[0] - a.prompt[0]);
  const ours = runs.filter((r) => r.prompt[3]?.extra_pnginfo?.workflow?.id === graph.id);
  for (const node of nodes) {
    show(node, ours.map((r) => r.outputs?.[node.id]).find((o) => o?.swd_sheet));
  }
}

// %date:yyyy-MM-dd% and %node.widget% in the file's name, which the host's page fills in for its own savers alone.
function fillIn(node) {
  const widget = node.widgets?.find((w) => w.name === "filename_prefix");
  const replace = window.comfyAPI?.utils?.applyTextReplacements;
  if (widget && replace) widget.serializeValue = () => replace(app, widget.value);
}

document.head.appendChild(document.createElement("style")).textContent = STYLE;
app.registerExtension({
  name: "ComfyUI-SwD.drafts",
  nodeCreated(node) {
    const type = node.comfyClass ?? node.type;
    if (type === "SwDSaveDrafts") fillIn(node);
    // A new node's; a saved one then gets its own. Newer hosts begin there by themselves.
    if (KEEP_SEED.includes(type)) keepSeed(widgetOf(node, "seed"));
    if (!WITH_SHEET.includes(type)) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      show(this, output);
    };
    const widget = { SwDDrafts: widgetOf(node, "seed"), SwDFinishDrafts: pickOf(node) }[type];
    const changed = widget?.callback;
    if (widget) {
      widget.callback = function (value) {
        changed?.apply(this, arguments);
        if (type === "SwDDrafts" && value !== node.swdSeed) dropClicks(node);
        refresh();
      };
    }
  },
  afterConfigureGraph() {
    restore().catch((error) => console.warn("SwD: the contact sheets could not be restored", error));
  },
});
