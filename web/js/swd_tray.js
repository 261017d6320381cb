// The tray of drafts put aside, which the host keeps as files: asked by name, never by a run.
import { api } from "../../../scripts/api.js";

async function ask(path, data) {
  const reply = await api.fetchApi(`/swd/tray${path}`, data && { method: "POST", body: JSON.stringify(data) });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

// Puts these numbers of a sheet on the tray. The error says why not.
export const put = (sheet, numbers) => ask("", { sheet, pick: numbers.join(",") });

// Takes drafts off the tray by their names there; the host has them for a while yet, then none is put back.
export const take = (names) => ask("/remove", { names });

// Gives the names of those that were.
export const putBack = (names) => ask("/back", { names });

// The numbers of a sheet's drafts that lie on the tray, from whichever sheet they were kept.
export const keptOf = (sheet) => ask(`/${sheet}`);
