// What a node of this pack said of one run (guidance costs twice as much) is taken down when it runs and says nothing: the
// host's page keeps it until there is another text.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { placeAt } from "./swd_graph.js";

const TEXT = "$$node-text-preview"; // the host's widget
let silent = null; // the node that runs and hasn't said anything yet

function takeDown() {
  if (!silent) return;
  const { node } = placeAt(silent) ?? {};
  if (!String(node?.comfyClass ?? node?.type).startsWith("SwD")) return;
  const index = node.widgets?.findIndex((w) => w.name === TEXT) ?? -1;
  if (index < 0) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "ComfyUI-SwD.texts",
  setup() {
    api.addEventListener("progress_text", ({ detail }) => {
      if (String(detail.nodeId) === silent) silent = null;
    });
    api.addEventListener("executing", ({ detail }) => {
      takeDown(); // of the node before
      silent = detail == null ? null : String(detail);
    });
  },
});
