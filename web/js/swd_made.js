// What is clicked on a sheet is what is finished, whatever was changed in the graph since: what the sheet was made with is
// asked of the host, and stands in the widgets while the page sends the graph.
import { api } from "../../../scripts/api.js";
import { allPlaces, pathOf, widgetOf } from "./swd_graph.js";

let running; // the run that the page is told of

api.addEventListener("execution_start", ({ detail }) => (running = detail.prompt_id));

export const runNow = () => running;

// The nodes that a node's outputs depend on, itself among them, as the host ran them.
function upstream(prompt, id, found = new Map()) {
  const node = prompt[id];
  if (!node || found.has(id)) return found;
  found.set(id, node.inputs);
  for (const input of Object.values(node.inputs)) if (Array.isArray(input)) upstream(prompt, String(input[0]), found);
  return found;
}

// Sets the widgets to what they were in that run, and gives what sets them to what they are now.
export async function setBack(place, run) {
  const reply = run && (await api.fetchApi(`/history/${run}`).catch(() => undefined));
  const prompt = (reply?.ok && (await reply.json())[run]?.prompt[2]) || {};
  const made = upstream(prompt, pathOf(place));
  const changed = [];
  for (const other of allPlaces()) {
    for (const [name, value] of Object.entries(made.get(pathOf(other)) ?? {})) {
      const widget = widgetOf(other, name);
      // Left as they are: links, and numbers of more digits than a page can count.
      const countable = typeof value !== "number" || Math.abs(value) <= Number.MAX_SAFE_INTEGER;
      if (!widget || typeof value === "object" || !countable || widget.value === value) continue;
      changed.push([widget, widget.value]);
      widget.value = value;
    }
  }
  return () => {
    for (const [widget, value] of changed.reverse()) widget.value = value;
  };
}
