// What the page knows of the places that show a sheet, and how it tells their sheets.
import { finishers, pathOf, pickOf, placeAt } from "./swd_graph.js";
import { picked } from "./swd_picks.js";

export const shown = new Set(); // what is known of each

// What is known of a place and its sheet: cells, as the host told them, and the run that they were told in; what its line
// says, what it has queued, what went off the tray last, and what was picked on the sheets before.
export function ownOf(place) {
  const path = pathOf(place);
  const found = (place.node.swd ??= new Map()); // by path, as a node has several places where its subgraph has
  if (!found.has(path)) found.set(path, { place, path, before: new Map() });
  return found.get(path);
}

export const sheets = () => [...shown].map(({ cells }) => cells.sheet);

// Tells a place's sheet, on all the nodes that show it.
export function tell(own, what, ...args) {
  for (const view of own.views) if (view.own === own) view.sheet[what](...args);
}

export const say = (own, text = own.said) => tell(own, "say", text);

// Marks on the sheets what is picked, and forgets those that are gone from the graph.
export function refresh() {
  for (const own of shown) {
    if (placeAt(own.path)?.node !== own.place.node) {
      shown.delete(own);
      continue;
    }
    const [first] = finishers(own.place);
    tell(own, "mark", picked(first && pickOf(first).value, own.cells), Boolean(first));
  }
}
