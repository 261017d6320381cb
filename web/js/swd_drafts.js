// Click to pick: a contact sheet whose cells write the `pick` widget of the finishing node behind it; and the saver's name.
// Without this file the host shows the sheet as a plain picture and the widget is typed into.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { ended, finish, repick } from "./swd_finish.js";
import { allPlaces, finishers, outwards, pathOf, placeAt } from "./swd_graph.js";
import { ownOf, refresh, say, sheets, shown, tell } from "./swd_known.js";
import { runNow } from "./swd_made.js";
import { carry, drop, keepSeed, picked, write } from "./swd_picks.js";
import { makeSheet } from "./swd_sheet.js";
import { TRAY, keep, keptOf, nextKind, remove, undo } from "./swd_tray.js";

const SHEET = "swd_sheet"; // the widget's name: graphs that are apps know it by that
const WITH_SHEET = ["SwDDrafts", "SwDFinishDrafts", "SwDLoadDrafts", TRAY];
const KEEP_SEED = ["SwDDrafts", "SwDDistillTrain"]; // another seed is another sheet, another training
const living = new Set(); // what is known of places whose next sheet is being made

function toggled(numbers, number) {
  if (!numbers.delete(number)) numbers.add(number);
  return numbers;
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

// What draws a widget outside its node (favourites; pages that know no hideInPanel) leaves the width of that place on it,
// which would then be its width in the node for good.
const keepWide = (widget) =>
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true });

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
    serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  widget.label = "Drafts"; // where it stands in an app
  keepWide(widget);
  if (onTray && on.size[0] < 440) on.setSize([440, on.size[1]]); // for its buttons
  if (on === own.place.node) hidePicture(on);
  return view;
}

// The host would show the same picture once more.
function hidePicture(node) {
  node.hideOutputImages = true;
  node.onDrawBackground = undefined;
}

// What the page itself remembers of a node's last run, over an undo or while another tab is in front.
function remembered({ node }) {
  const { rootGraph = app.graph, nodeOutputs } = app;
  return nodeOutputs?.[node.graph === rootGraph ? node.id : `${node.graph?.id}:${node.id}`];
}

// Before the page draws it: a sheet only comes back once the host has been asked.
function hidePictures() {
  for (const place of allPlaces()) {
    if (WITH_SHEET.includes(place.node.type) && remembered(place)?.swd_sheet) hidePicture(place.node);
  }
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
  const runs = Object.values(reply.ok ? await reply.json() : {}).sort((a, b) => b.prompt[0] - a.prompt[0]);
  const ours = runs.filter((r) => r.prompt[3]?.extra_pnginfo?.workflow?.id === graph.id);
  // Another graph may have been opened meanwhile.
  for (const own of bare().filter(({ node }) => asked.has(node)).map(ownOf)) {
    const run = ours.find((r) => r.outputs?.[own.path]?.swd_sheet);
    show(own, run?.outputs[own.path] ?? remembered(own.place), run?.prompt[1]);
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
  onNodeOutputsUpdated: hidePictures,
  afterConfigureGraph() {
    hidePictures();
    restore().catch((error) => console.warn("SwD: the contact sheets could not be restored", error));
  },
});
