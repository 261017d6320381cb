// What is clicked on a sheet goes into the finishing nodes behind it, and what lies behind those is queued.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { finishers, pickOf, resultsOf, runs } from "./swd_graph.js";
import { refresh, say, sheets } from "./swd_known.js";
import { setBack } from "./swd_made.js";
import { fixSeed, picked, write } from "./swd_picks.js";

// change: what makes of the numbers picked so far those picked now.
export function repick(own, change) {
  const { cells, place } = own;
  const back = fixSeed(place, cells.seed);
  for (const finisher of finishers(place)) {
    write(finisher, change(picked(pickOf(finisher).value, cells)), cells, sheets());
  }
  // What was refused no longer holds.
  say(own, back ? `The seed is that of these drafts again: ${cells.seed}` : own.said);
  app.canvas.setDirty(true, true);
  refresh();
}

// Queues once what lies behind the finishing nodes and nothing else: the drafts are the host's from the last run.
// one: a draft to finish alone; what else is picked stays so.
let queueing = false;
export async function finish(own, one) {
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
  // The page tells a widget that it was sent; what it answers us is always no on older hosts.
  let sent = false;
  const widget = behind[0].node.widgets.find((w) => w.name === "pick");
  widget.afterQueued = () => (sent = true);
  let putBackWidgets;
  try {
    putBackWidgets = await setBack(place, own.run);
    fixSeed(place, cells.seed); // where the host doesn't tell of that run
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
  if (own.queued && (await idle())) ended(own); // before the page had heard that it was taken
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

export function ended(own) {
  if (own.queued) say(own, (own.said = `Last queued: ${own.queued}`));
}
