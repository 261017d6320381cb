// Click to pick: a contact sheet whose cells write the `pick` widget of the finishing node behind it; and the saver's name.
// Without this file the host shows the sheet as a plain picture and the widget is typed into.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { allPlaces, finishers, outwards, pathOf, pickOf, placeAt, resultsOf, runs, widgetOf } from "./swd_graph.js";
import { runNow, setBack } from "./swd_made.js";
import { carry, drop, fixSeed, keepSeed, picked, write } from "./swd_picks.js";
import { makeSheet } from "./swd_sheet.js";
import { keptOf, put, putBack, take } from "./swd_tray.js";

const TRAY = "SwDTray";
const SHEET = "swd_sheet"; // the widget's name: graphs that are apps know it by that
const WITH_SHEET = ["SwDDrafts", "SwDFinishDrafts", "SwDLoadDrafts", TRAY];
const KEEP_SEED = ["SwDDrafts", "SwDDistillTrain"]; // another seed is another sheet, another training
const shown = new Set(); // what is known of each place that shows a sheet
const living = new Set(); // of those whose next sheet is being made

// What is known of a place and its sheet: cells, as the host told them, and the run that they were told in; what its line
// says, what it has queued, what went off the tray last, and what was picked on the sheets before.
function ownOf(place) {
  const path = pathOf(place);
  const found = (place.node.swd ??= new Map()); // by path, as a node has several places where its subgraph has
  if (!found.has(path)) found.set(path, { place, path, before: new Map() });
  return found.get(path);
}

const sheets = () => [...shown].map(({ cells }) => cells.sheet);

// Tells a place's sheet, on all the nodes that show it.
function tell(own, what, ...args) {
  for (const view of own.views) if (view.own === own) view.sheet[what](...args);
}

const say = (own, text = own.said) => tell(own, "say", text);

// change: what makes of the numbers picked so far those picked now.
function repick(own, change) {
  const { cells, place } = own;
  fixSeed(place, cells.seed);
  for (const finisher of finishers(place)) {
    write(finisher, change(picked(pickOf(finisher).value, cells)), cells, sheets());
  }
  say(own); // what was refused no longer holds
  app.canvas.setDirty(true, true);
  refresh();
}

function toggled(numbers, number) {
  if (!numbers.delete(number)) numbers.add(number);
  return numbers;
}

// Queues once what lies behind the finishing nodes and nothing else: the drafts are the host's from the last run.
// one: a draft to finish alone; what else is picked stays so.
let queueing = false;
async function finish(own, one) {
  const { cells, place } = own;
  const behind = finishers(place);
  const kept = behind.map((finisher) => pickOf(finisher).value);
  const numbers = one ? [one] : [...picked(kept[0], cells)];
  const results = [...new Set(behind.flatMap((finisher) => resultsOf(finisher)))];
  if (queueing) return;
  if (!runs(place)) return say(own, "This node is muted or bypassed");
  if (!numbers.length) return say(own, "Nothing is picked");
  if (!results.length) return say(own, "Nothing behind Finish SwD Drafts saves or shows a picture");
  queueing = true;
  own.queued = own.said = "";
  if (one) repick(own, () => new Set(numbers));
  else fixSeed(place, cells.seed);
  // The page tells a widget that it was sent; what it answers us is always no on older hosts.
  let sent = false;
  const widget = behind[0].node.widgets.find((w) => w.name === "pick");
  widget.afterQueued = () => (sent = true);
  let putBackWidgets;
  try {
    putBackWidgets = await setBack(place, own.run);
    await app.queuePrompt(0, 1, results);
    if (sent) {
      own.queued = numbers.join(", ");
      say(own, (own.said = `Queued: ${own.queued}`));
      if (one) behind.forEach((finisher, i) => (pickOf(finisher).value = kept[i]));
    } else {
      // Refused, or behind others that the page is still sending: then what is asked for stays picked.
      say(own, "Not queued yet");
    }
    refresh();
  } finally {
    putBackWidgets?.();
    queueing = false;
    delete widget.afterQueued;
  }
  if (await idle()) ended(own); // before the page had heard that it was taken
}

// Whether the host has nothing left to do; not where it doesn't say.
async function idle() {
  try {
    const queue = await (await api.fetchApi("/queue")).json();
    return !Object.values(queue).flat().length;
  } catch {
    return false;
  }
}

function ended(own) {
  if (own.queued) say(own, (own.said = `Last queued: ${own.queued}`));
}

// What is put on the tray and taken off it shows at once where the graph has one; no other node runs.
async function changeTray(own, change) {
  try {
    say(own, await change());
    tell(own, "star", own.place.node.type === TRAY ? [] : await keptOf(own.cells.sheet));
  } catch (error) {
    return say(own, error.message);
  }
  const trays = allPlaces().filter((place) => place.node.type === TRAY && runs(place));
  if (trays.length) await app.queuePrompt(0, 1, trays.map(pathOf));
}

const keep = (own, numbers) =>
  changeTray(own, async () => {
    await put(own.cells.sheet, numbers);
    return `On the tray: ${numbers.join(", ")}`;
  });

const remove = (own, numbers) =>
  changeTray(own, async () => {
    own.gone = numbers.map((number) => own.cells.kept[number - 1]);
    await take(own.gone);
    tell(own, "offer", { back: own.gone.length });
    return "";
  });

const undo = (own) =>
  changeTray(own, async () => {
    const lost = own.gone.length - (await putBack(own.gone)).length;
    tell(own, "offer", { back: 0 });
    return lost ? `${lost} removed too long ago to put back` : "";
  });

// Drafts of another model, size or schedule lie on a sheet of their own.
const nextKind = (own) =>
  changeTray(own, async () => {
    const { kind, kinds } = own.cells;
    widgetOf(own.place, "kind").value = (kind % kinds) + 1;
    return "";
  });

function refresh() {
  for (const own of shown) {
    if (placeAt(own.path)?.node !== own.place.node) {
      shown.delete(own);
      continue;
    }
    const [first] = finishers(own.place);
    tell(own, "mark", picked(first && pickOf(first).value, own.cells), Boolean(first));
  }
}

// A place's sheet is on its node and on each subgraph's around it, where it is clicked as well. A subgraph that stands in
// the graph twice has the same nodes in it, and they show one place's: the last that ran, or was entered from outside.
function addViews(own) {
  own.views ??= outwards(own.place).map((place) => {
    const views = (place.node.swdViews ??= new Map());
    const within = own.path.slice(pathOf(place).length);
    if (!views.has(within)) views.set(within, addView(own, place.node));
    return views.get(within);
  });
}

function addView(own, on) {
  let ratio = 1;
  const view = { own };
  const onTray = own.place.node.type === TRAY;
  const sheet = (view.sheet = makeSheet({
    toggle: (number) => repick(view.own, (numbers) => toggled(numbers, number)),
    all: () => repick(view.own, () => picked("all", view.own.cells)),
    none: () => repick(view.own, () => new Set()),
    finish: () => finish(view.own),
    only: (number) => finish(view.own, number),
    enter: refresh, // a finishing node may have come or gone
    pass: (event) => app.canvas.processMouseWheel(event),
    keep: (numbers) => keep(view.own, numbers),
    tray: !onTray ? undefined : {
      remove: (numbers) => remove(view.own, numbers), undo: () => undo(view.own), next: () => nextKind(view.own),
    },
    resized(to) {
      ratio = to;
      const least = on.computeSize();
      if (on.size[1] < least[1]) on.setSize([on.size[0], least[1]]);
      on.graph?.setDirtyCanvas(true, true);
    },
  }));
  const getMinHeight = () => (sheet.root.hidden ? 0 : (on.size[0] - 20) * ratio + sheet.bar());
  const widget = on.addDOMWidget(SHEET, SHEET, sheet.root, {
    serialize: false, hideOnZoom: false, getMinHeight, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  widget.label = "Drafts"; // where it stands in an app
  if (onTray && on.size[0] < 440) on.setSize([440, on.size[1]]); // for its buttons
  if (on !== own.place.node) return view;
  // The host would show the same picture once more.
  on.hideOutputImages = true;
  on.onDrawBackground = undefined;
  return view;
}

// Shows a place's sheet in these views of its.
function paint(own, views) {
  for (const view of views) view.own = own;
  for (const { sheet } of views) {
    sheet.show(own.address, own.cells);
    sheet.offer({ kinds: own.cells.kinds });
    sheet.say(own.said);
  }
  if (own.place.node.type !== TRAY) keptOf(own.cells.sheet).then((kept) => tell(own, "star", kept), () => {});
  refresh();
}

const addressOf = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);

function show(own, output, run) {
  const [cells] = output?.swd_sheet ?? [];
  const [file] = output?.images ?? [];
  if (!cells && own.place.node.type === TRAY) {
    if (own.views) tell(own, "empty");
    shown.delete(own);
  }
  if (!cells || !file) return;
  addViews(own);
  living.delete(own);
  if (cells.kept) carry(own.place, own.cells, cells);
  const last = own.cells;
  own.run = run;
  own.cells = { ...cells, drafts: cells.drafts?.map(addressOf) };
  own.address = addressOf(file);
  shown.add(own);
  if (last && !cells.kept && last.sheet !== cells.sheet) replaced(own, last);
  paint(own, own.views);
}

// Another sheet has other drafts: what was clicked on the one before is done with, until that one is back.
function replaced(own, last) {
  const numbers = sheets().includes(last.sheet) ? "" : drop(own.place, last);
  own.queued = ""; // of the one before
  if (numbers) {
    own.said = `New drafts; picked before: ${numbers}`;
    own.before.set(last.sheet, numbers);
  }
  const again = picked(own.before.get(own.cells.sheet), own.cells);
  if (again.size) for (const finisher of finishers(own.place)) write(finisher, again, own.cells, sheets());
}

// Drafts as they are made: the host's previews of a node with a sheet are drawn there, of SwDDrafts from the first on.
function showFrame({ blob, displayNodeId, nodeId }) {
  const place = placeAt(String(displayNodeId ?? nodeId));
  const own = place && ownOf(place);
  if (!own || (place.node.type !== "SwDDrafts" && !own.cells)) return;
  addViews(own);
  tell(own, "live", blob);
  living.add(own);
}

function endFrames() {
  for (const own of living) tell(own, "live");
  living.clear();
}

// After a reload of the page the sheets come back from what the host remembers of this workflow.
async function restore() {
  const graph = app.rootGraph ?? app.graph;
  const bare = () => allPlaces().filter((place) => WITH_SHEET.includes(place.node.type) && !ownOf(place).cells);
  const asked = new Set(bare().map(({ node }) => node));
  if (!asked.size) return;
  const reply = await api.fetchApi("/history?max_items=64");
  if (!reply.ok) return;
  const runs = Object.values(await reply.json()).sort((a, b) => b.prompt[0] - a.prompt[0]);
  const ours = runs.filter((r) => r.prompt[3]?.extra_pnginfo?.workflow?.id === graph.id);
  // Another graph may have been opened meanwhile.
  for (const own of bare().filter(({ node }) => asked.has(node)).map(ownOf)) {
    const run = ours.find((r) => r.outputs?.[own.path]?.swd_sheet);
    show(own, run?.outputs[own.path], run?.prompt[1]);
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
    api.addEventListener("executed", ({ detail }) => {
      const place = placeAt(String(detail.display_node ?? detail.node));
      if (WITH_SHEET.includes(place?.node.type)) show(ownOf(place), detail.output, runNow());
    });
    api.addEventListener("b_preview_with_metadata", ({ detail }) => showFrame(detail));
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, endFrames);
    }
    api.addEventListener("status", ({ detail }) => {
      if (detail?.exec_info?.queue_remaining !== 0) return;
      shown.forEach(ended);
    });
    app.canvas.canvas.addEventListener("subgraph-opened", ({ detail }) => {
      for (const { own } of detail.fromNode?.swdViews?.values() ?? []) {
        if (own.cells) paint(own, own.views.filter((view) => view.own !== own));
      }
    });
  },
  nodeCreated(node) {
    const type = node.comfyClass ?? node.type;
    if (type === "SwDSaveDrafts") fillIn(node);
    // A new node's; a saved one then gets its own. Newer hosts begin there by themselves.
    if (KEEP_SEED.includes(type)) keepSeed(node);
    const widget = type === "SwDFinishDrafts" && node.widgets?.find((w) => w.name === "pick");
    if (!widget) return;
    const changed = widget.callback;
    widget.callback = function () {
      changed?.apply(this, arguments);
      refresh();
    };
  },
  // An app (App Mode) that has the sheet asks for it once, when it opens.
  loadedGraphNode(node) {
    const parts = (app.rootGraph ?? app.graph).extra?.linearData?.inputs ?? [];
    if (!parts.some(([id]) => String(id).endsWith(`:${node.id}:${SHEET}`))) return;
    for (const place of allPlaces()) if (place.node === node) addViews(ownOf(place));
  },
  afterConfigureGraph() {
    restore().catch((error) => console.warn("SwD: the contact sheets could not be restored", error));
  },
});
