// Fills the menus of the loaders: the host's start and a page's load must not wait for what lies in its
// folders, so they come empty and are asked for by a page that has such a node.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const MENUS = { SwDLoadDrafts: "file", SwDLoadPrepared: "folder" };
const loaders = new Set();
let offered = {};

const kind = (node) => node.comfyClass ?? node.type;
const menuOf = (node) => node.widgets?.find((w) => w.name === MENUS[kind(node)]);

async function ask() {
  for (const node of loaders) if (!node.graph) loaders.delete(node);
  if (!loaders.size) return;
  const reply = await api.fetchApi("/swd/files");
  if (!reply.ok) return;
  offered = await reply.json();
  for (const node of loaders) {
    const menu = menuOf(node);
    // A new node's; a saved one keeps its own, also where it is no longer there.
    if (menu && !menu.value) menu.value = offered[kind(node)]?.[0] ?? menu.value;
    node.graph?.setDirtyCanvas(true, true);
  }
}

const askAnew = () =>
  ask().catch((error) => console.warn("SwD: the files on offer could not be listed", error));

app.registerExtension({
  name: "ComfyUI-SwD.files",
  setup() {
    api.addEventListener("execution_success", askAnew); // it may have saved drafts
  },
  nodeCreated(node) {
    const menu = kind(node) in MENUS && menuOf(node);
    if (!menu) return;
    Object.defineProperty(menu.options, "values", {
      get: () => offered[kind(node)] ?? [],
      set() {}, // the host's own list is empty
      enumerable: true,
      configurable: true,
    });
    loaders.add(node);
    setTimeout(askAnew); // when the node has its graph and its saved value
  },
  refreshComboInNodes: askAnew, // R
});
