// The tray of drafts put aside, which the host keeps as files: asked by name, never by a run.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { allPlaces, pathOf, runs, widgetOf } from "./swd_graph.js";
import { say, tell } from "./swd_known.js";

export const TRAY = "SwDTray";

async function ask(path, data) {
  const reply = await api.fetchApi(`/swd/tray${path}`, data && { method: "POST", body: JSON.stringify(data) });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

// Puts these numbers of a sheet on the tray. The error says why not.
const put = (sheet, numbers) => ask("", { sheet, pick: numbers.join(",") });

// Takes drafts off the tray by their names there; the host has them for a while yet, then none is put back.
const take = (names) => ask("/remove", { names });

// Gives the names of those that were.
const putBack = (names) => ask("/back", { names });

// The numbers of a sheet's drafts that lie on the tray, from whichever sheet they were kept.
export const keptOf = (sheet) => ask(`/${sheet}`);

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

export const keep = (own, numbers) =>
  changeTray(own, async () => {
    await put(own.cells.sheet, numbers);
    return `On the tray: ${numbers.join(", ")}`;
  });

export const remove = (own, numbers) =>
  changeTray(own, async () => {
    own.gone = numbers.map((number) => own.cells.kept[number - 1]);
    await take(own.gone);
    tell(own, "offer", { back: own.gone.length });
    return "";
  });

export const undo = (own) =>
  changeTray(own, async () => {
    const lost = own.gone.length - (await putBack(own.gone)).length;
    tell(own, "offer", { back: 0 });
    return lost ? `${lost} removed too long ago to put back` : "";
  });

// Drafts of another model, size or schedule lie on a sheet of their own.
export const nextKind = (own) =>
  changeTray(own, async () => {
    const { kind, kinds } = own.cells;
    widgetOf(own.place, "kind").value = (kind % kinds) + 1;
    return "";
  });
