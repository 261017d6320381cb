// What is picked of a sheet stands in the `pick` widget of the nodes that finish it, as in "2,5 @1f0c22ab": numbers, and the
// sheet they were clicked on. Two places of one subgraph share a widget: then it has a part for each of their sheets.
import { drafterOf, finishers, pickOf, widgetOf } from "./swd_graph.js";

const partsOf = (text) =>
  [...String(text ?? "").matchAll(/([^@]+)(?:@\s*(\w+)[\s,;]*)?/g)].map(([, numbers, sheet]) => ({ numbers: numbers.trim(), sheet }));

const written = ({ numbers, sheet }) => (sheet ? `${numbers} @${sheet}` : numbers);

// The numbers of "1,4-6" or "all", in the order they are named; what is no number is left out. Those of another sheet mark
// nothing on this one.
export function picked(text, { count, sheet }) {
  const mine = partsOf(text).find((part) => part.sheet === undefined || part.sheet === sheet);
  const plain = (mine?.numbers ?? "").toLowerCase().replace(/\s*[-–—]\s*/g, "-");
  const parts = (plain === "all" ? `1-${count}` : plain).split(/[\s,;]+/);
  const found = parts.flatMap((part) => {
    const [, first, last = first] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    const length = first ? Math.min(last, count) - first + 1 : 0;
    return Array.from({ length: Math.max(0, length) }, (_, i) => +first + i);
  });
  return new Set(found);
}

// others: the sheets whose picks stay beside these.
export function write(finisher, numbers, { count, sheet }, others = []) {
  const widget = pickOf(finisher);
  const mine = numbers.size === count && count > 1 ? "all" : [...numbers].join(",");
  const kept = partsOf(widget.value).filter((part) => part.sheet !== sheet && others.includes(part.sheet));
  widget.value = [...kept, ...(mine ? [{ numbers: mine, sheet }] : [])].map(written).join("; ");
  widget.callback?.(widget.value);
}

// What is clicked is what is finished: the seed goes back to the sheet's and stays. Gives whether it was another one.
export function fixSeed(place, seed) {
  if (place.node.type === "SwDDrafts") {
    keepSeed(place.node);
    const widget = widgetOf(place, "seed");
    // One that is linked, or has more digits than a page can count, is left to the check of the sheet.
    if (!widget || !Number.isSafeInteger(seed) || widget.value === seed) return false;
    widget.value = seed;
    return true;
  }
  const source = drafterOf(place);
  return Boolean(source) && fixSeed(source, seed);
}

export function keepSeed(node) {
  const [control] = node.widgets?.find((w) => w.name === "seed")?.linkedWidgets ?? [];
  if (control) control.value = "fixed";
}

// What is marked on the tray stays so when others come and go.
export function carry(place, before, now) {
  for (const finisher of before?.kept ? finishers(place) : []) {
    const names = [...picked(pickOf(finisher).value, before)].map((number) => before.kept[number - 1]);
    const numbers = names.map((name) => now.kept.indexOf(name) + 1).filter(Boolean);
    if (names.length) write(finisher, new Set(numbers), now);
  }
}

// Takes down what was clicked on a sheet that another one has replaced, and gives it.
export function drop(place, { sheet }) {
  let found = "";
  for (const finisher of finishers(place)) {
    const widget = pickOf(finisher);
    const gone = partsOf(widget.value).find((part) => sheet && part.sheet === sheet);
    if (!gone) continue;
    found = gone.numbers;
    widget.value = partsOf(widget.value).filter((part) => part.sheet !== sheet).map(written).join("; ");
    widget.callback?.(widget.value);
  }
  return found;
}
