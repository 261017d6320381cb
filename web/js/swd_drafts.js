// Click to pick: a contact sheet whose cells write the `pick` widget of the finishing node behind it; and the saver's name.
// Without this file the host shows the sheet as a plain picture and the widget is typed into.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { allNodes, drafterOf, finishers, outwards, pathOf, pickOf, resultsOf, runs, widgetOf } from "./swd_graph.js";
import { runNow, setBack } from "./swd_made.js";
import { makeSheet } from "./swd_sheet.js";
import { keptOf, put, putBack, take } from "./swd_tray.js";

const TRAY = "SwDTray";
const SHEET = "swd_sheet"; // the widget's name: graphs that are apps know it by that
const WITH_SHEET = ["SwDDrafts", "SwDFinishDrafts", "SwDLoadDrafts", TRAY];
const KEEP_SEED = ["SwDDrafts", "SwDDistillTrain"]; // another seed is another sheet, another training
const sheets = new Map(); // node -> refresh
const living = new Set(); // nodes whose next sheet is being made

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
  if (node.type === "SwDDrafts") {
    const widget = widgetOf(node, "seed");
    keepSeed(widget);
    // One that is linked, or has more digits than a page can count, is left to the check of the sheet.
    if (widget && Number.isSafeInteger(seed)) widget.value = seed;
    return;
  }
  const source = drafterOf(node);
  if (source) fixSeed(source, seed);
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

function write(finisher, numbers, { count, sheet }) {
  const widget = pickOf(finisher);
  const text = numbers.size === count && count > 1 ? "all" : [...numbers].join(",");
  widget.value = text && sheet ? `${text} @${sheet}` : text;
  widget.callback?.(widget.value);
}

// change: what makes of the numbers picked so far those picked now.
function repick(node, cells, change) {
  fixSeed(node, cells.seed);
  for (const finisher of finishers(node)) {
    write(finisher, change(picked(pickOf(finisher).value, cells)), cells);
  }
  node.swdSheet.say(node.swdSaid); // what was refused no longer holds
  node.graph.setDirtyCanvas(true, true);
  refresh();
}

function toggled(numbers, number) {
  if (!numbers.delete(number)) numbers.add(number);
  return numbers;
}

// Queues once what lies behind the finishing nodes and nothing else: the drafts are the host's from the last run.
// one: a draft to finish alone; what else is picked stays so.
let queueing = false;
async function finish(node, cells, one) {
  const { say } = node.swdSheet;
  const behind = finishers(node);
  const kept = behind.map((finisher) => pickOf(finisher).value);
  const numbers = one ? [one] : [...picked(kept[0], cells)];
  const results = [...new Set(behind.flatMap((finisher) => resultsOf(finisher)))];
  if (queueing) return;
  if (!runs(node)) return say("This node is muted or bypassed");
  if (!numbers.length) return say("Nothing is picked");
  if (!results.length) return say("Nothing behind Finish SwD Drafts saves or shows a picture");
  queueing = true;
  node.swdQueued = numbers.join(", ");
  say((node.swdSaid = `Queued: ${node.swdQueued}`));
  if (one) repick(node, cells, () => new Set(numbers));
  else fixSeed(node, cells.seed);
  // The page tells a widget that it was sent; what it answers us is always no on older hosts.
  let sent = false;
  const widget = pickOf(behind[0]);
  widget.afterQueued = () => (sent = true);
  let putBackWidgets;
  try {
    putBackWidgets = await setBack(node, node.swdRun);
    await app.queuePrompt(0, 1, results.map(pathOf));
    if (sent) {
      if (one) behind.forEach((finisher, i) => (pickOf(finisher).value = kept[i]));
    } else {
      // Refused, or behind others that the page is still sending: then what is asked for stays picked.
      node.swdQueued = node.swdSaid = "";
      say("Not queued yet");
    }
    refresh();
  } finally {
    putBackWidgets?.();
    queueing = false;
    delete widget.afterQueued;
  }
}

// What is put on the tray and taken off it shows at once where the graph has one; no other node runs.
async function changeTray(node, change) {
  const { say } = node.swdSheet;
  try {
    say(await change());
    node.swdSheet.star(node.type === TRAY ? [] : await keptOf(node.swdCells.sheet));
  } catch (error) {
    return say(error.message);
  }
  const trays = allNodes().filter((n) => n.type === TRAY && runs(n));
  if (trays.length) await app.queuePrompt(0, 1, trays.map(pathOf));
}

const keep = (node, numbers) =>
  changeTray(node, async () => {
    await put(node.swdCells.sheet, numbers);
    return `On the tray: ${numbers.join(", ")}`;
  });

const remove = (node, numbers) =>
  changeTray(node, async () => {
    node.swdGone = numbers.map((number) => node.swdCells.kept[number - 1]);
    await take(node.swdGone);
    node.swdSheet.offer({ back: node.swdGone.length });
    return "";
  });

const undo = (node) =>
  changeTray(node, async () => {
    await putBack(node.swdGone);
    node.swdSheet.offer({ back: 0 });
    return "";
  });

// Drafts of another model, size or schedule lie on a sheet of their own.
const nextKind = (node) =>
  changeTray(node, async () => {
    const { kind, kinds } = node.swdCells;
    widgetOf(node, "kind").value = (kind % kinds) + 1;
    return "";
  });

function refresh() {
  const here = new Set(allNodes());
  for (const [node, update] of sheets) here.has(node) ? update() : sheets.delete(node);
}

// A node's sheet, and the same on each subgraph that it is in, where it is clicked as well.
function addSheets(node) {
  const found = outwards(node).map((on) => addSheet(node, on));
  const names = ["show", "mark", "offer", "empty", "live", "star", "say"];
  const all = (name) => [name, (...args) => found.forEach((sheet) => sheet[name](...args))];
  return { root: found[0].root, ...Object.fromEntries(names.map(all)) };
}

function addSheet(node, on) {
  let ratio = 1;
  const sheet = makeSheet({
    toggle: (number) => repick(node, node.swdCells, (numbers) => toggled(numbers, number)),
    all: () => repick(node, node.swdCells, () => picked("all", node.swdCells)),
    none: () => repick(node, node.swdCells, () => new Set()),
    finish: () => finish(node, node.swdCells),
    only: (number) => finish(node, node.swdCells, number),
    enter: refresh, // a finishing node may have come or gone
    pass: (event) => app.canvas.processMouseWheel(event),
    keep: (numbers) => keep(node, numbers),
    tray: node.type !== TRAY ? undefined : {
      remove: (numbers) => remove(node, numbers), undo: () => undo(node), next: () => nextKind(node),
    },
    resized(to) {
      ratio = to;
      const least = on.computeSize();
      if (on.size[1] < least[1]) on.setSize([on.size[0], least[1]]);
      on.graph?.setDirtyCanvas(true, true);
    },
  });
  const getMinHeight = () => (sheet.root.hidden ? 0 : (on.size[0] - 20) * ratio + sheet.bar());
  const widget = on.addDOMWidget(SHEET, SHEET, sheet.root, {
    serialize: false, hideOnZoom: false, getMinHeight, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  widget.label = "Drafts"; // where it stands in an app
  if (node.type === TRAY && on.size[0] < 440) on.setSize([440, on.size[1]]); // for its buttons
  if (on !== node) return sheet;
  // The host would show the same picture once more.
  node.hideOutputImages = true;
  node.onDrawBackground = undefined;
  return sheet;
}

// What is marked on the tray stays so when others come and go.
function carry(node, before, now) {
  for (const finisher of before?.kept ? finishers(node) : []) {
    const names = [...picked(pickOf(finisher).value, before)].map((number) => before.kept[number - 1]);
    const numbers = names.map((name) => now.kept.indexOf(name) + 1).filter(Boolean);
    if (names.length) write(finisher, new Set(numbers), now);
  }
}

const addressOf = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);

function show(node, output, run = runNow()) {
  const [cells] = output?.swd_sheet ?? [];
  const [file] = output?.images ?? [];
  if (!cells && node.type === TRAY) {
    node.swdSheet?.empty();
    sheets.delete(node);
  }
  if (!cells || !file) return;
  node.swdSheet ??= addSheets(node);
  living.delete(node);
  if (cells.kept) carry(node, node.swdCells, cells);
  node.swdRun = run;
  node.swdCells = { ...cells, drafts: cells.drafts?.map(addressOf) };
  node.swdSheet.show(addressOf(file), node.swdCells);
  node.swdSheet.offer({ kinds: cells.kinds });
  if (node.type !== TRAY) keptOf(cells.sheet).then(node.swdSheet.star, () => {});
  sheets.set(node, () => {
    const [first] = finishers(node);
    node.swdSheet.mark(picked(first && pickOf(first)?.value, cells), Boolean(first));
  });
  refresh();
}

// Drafts as they are made: the host's previews of a node with a sheet are drawn there, of SwDDrafts from the first on.
function showFrame({ blob, displayNodeId, nodeId }) {
  const id = String(displayNodeId ?? nodeId);
  const node = allNodes().find((n) => (n.type === "SwDDrafts" || n.swdCells) && pathOf(n) === id);
  if (!node) return;
  node.swdSheet ??= addSheets(node);
  node.swdSheet.live(blob);
  living.add(node);
}

function endFrames() {
  for (const node of living) node.swdSheet.live();
  living.clear();
}

// After a reload of the page the sheets come back from what the host remembers of this workflow.
async function restore() {
  const graph = app.rootGraph ?? app.graph;
  const nodes = allNodes().filter((n) => WITH_SHEET.includes(n.type) && !n.swdCells);
  if (!nodes.length) return;
  const reply = await api.fetchApi("/history?max_items=64");
  if (!reply.ok) return;
  const runs = Object.values(await reply.json()).sort((a, b) => b.prompt[0] - a.prompt[0]);
  const ours = runs.filter((r) => r.prompt[3]?.extra_pnginfo?.workflow?.id === graph.id);
  const here = new Set(allNodes()); // another graph may have been opened meanwhile
  for (const node of nodes.filter((n) => here.has(n))) {
    const run = ours.find((r) => r.outputs?.[pathOf(node)]?.swd_sheet);
    show(node, run?.outputs[pathOf(node)], run?.prompt[1]);
  }
}

// %date:yyyy-MM-dd% and %node.widget% in the file's name, which the host's page fills in for its own savers alone.
function fillIn(node) {
  const widget = node.widgets?.find((w) => w.name === "filename_prefix");
  const replace = window.comfyAPI?.utils?.applyTextReplacements;
  if (widget && replace) widget.serializeValue = () => replace(app, widget.value);
}

app.registerExtension({
  name: "ComfyUI-SwD.drafts",
  setup() {
    api.addEventListener("b_preview_with_metadata", ({ detail }) => showFrame(detail));
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, endFrames);
    }
    api.addEventListener("status", ({ detail }) => {
      if (detail?.exec_info?.queue_remaining !== 0) return;
      for (const node of sheets.keys()) {
        if (node.swdQueued) node.swdSheet.say((node.swdSaid = `Last queued: ${node.swdQueued}`));
      }
    });
  },
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
        if (type === "SwDDrafts" && value !== (node.swdCells?.seed ?? value)) dropClicks(node);
        refresh();
      };
    }
  },
  // An app (App Mode) that has the sheet asks for it once, when it opens.
  loadedGraphNode(node) {
    const parts = (app.rootGraph ?? app.graph).extra?.linearData?.inputs ?? [];
    if (parts.some(([id]) => String(id).endsWith(`:${node.id}:${SHEET}`))) node.swdSheet ??= addSheets(node);
  },
  afterConfigureGraph() {
    restore().catch((error) => console.warn("SwD: the contact sheets could not be restored", error));
  },
});
