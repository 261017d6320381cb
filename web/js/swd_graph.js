// Where drafts go in the graph: over links and rerouted ones, into subgraphs and out of them, past what is bypassed.
// A place is a node with the place of the subgraph's node around it: { node, inside }, the outermost inside none. The
// same subgraph may stand in a graph twice, with the same nodes in it: then each of them has two places.
import { app } from "../../../scripts/app.js";

const PASS_ON = ["SwDSaveDrafts", "Reroute"];
const [ALWAYS, NEVER, BYPASS] = [0, 2, 4]; // the host's modes of a node

function placesIn(graph, inside) {
  return graph.nodes.flatMap((node) => {
    const place = { node, inside };
    return node.subgraph ? [place, ...placesIn(node.subgraph, place)] : [place];
  });
}

export const allPlaces = () => placesIn(app.rootGraph ?? app.graph);

// The place, and those of the subgraphs that it is in, the innermost first.
export const outwards = (place) => (place.inside ? [place, ...outwards(place.inside)] : [place]);

// What the host calls a place: its node's number, behind those of the subgraphs it is in.
export const pathOf = (place) => outwards(place).map(({ node }) => node.id).reverse().join(":");

export const placeAt = (path) => allPlaces().find((place) => pathOf(place) === path);

// Whether neither it nor a subgraph that it is in is muted or bypassed.
export const runs = (place) => outwards(place).every(({ node }) => node.mode === ALWAYS);

const linksOf = (graph, ids) =>
  (ids ?? []).map((id) => graph.links.get?.(id) ?? graph.links[id]).filter(Boolean);

// The input that a bypassed node hands on at one of its outputs, as the page has it.
function handedOn({ inputs, outputs }, slot) {
  const { type } = outputs[slot];
  return inputs[slot]?.type === type ? slot : inputs.findIndex((input) => input.type === type);
}

// The places that links lead to and that run, in a graph that stands inside a place.
function targetsOf(graph, inside, ids) {
  return linksOf(graph, ids).flatMap(({ target_id, target_slot }) => {
    const node = graph.getNodeById(target_id);
    if (!node) return inside ? linkedTo(inside, [inside.node.outputs[target_slot]]) : [];
    if (node.mode === NEVER) return [];
    const place = { node, inside };
    if (node.mode === BYPASS) {
      return linkedTo(place, node.outputs.filter((_, slot) => handedOn(node, slot) === target_slot));
    }
    if (node.subgraph) return targetsOf(node.subgraph, place, node.subgraph.inputs[target_slot]?.linkIds);
    return [place];
  });
}

const linkedTo = ({ node, inside }, outputs) =>
  outputs.flatMap((output) => targetsOf(node.graph, inside, output?.links));

// The place that a link comes from.
function sourceOf(graph, inside, id) {
  const [link] = linksOf(graph, [id]);
  if (!link) return undefined;
  const { origin_id, origin_slot: slot } = link;
  const node = graph.getNodeById(origin_id);
  if (!node) return inside && sourceOf(inside.node.graph, inside.inside, inside.node.inputs[slot]?.link);
  if (node.mode === BYPASS) return sourceOf(graph, inside, node.inputs[handedOn(node, slot)]?.link);
  const place = { node, inside };
  if (node.subgraph) return sourceOf(node.subgraph, place, node.subgraph.outputs[slot]?.linkIds[0]);
  return place;
}

// The widget that an input has its value of: where a subgraph offers it outside, that of the subgraph's node. None where
// it comes by a link.
function widgetFor({ node, inside }, input) {
  if (input.link == null) return node.getWidgetFromSlot(input) ?? node.widgets?.find((w) => w.name === input.name);
  const [link] = linksOf(node.graph, [input.link]);
  const outer = inside && link && !node.graph.getNodeById(link.origin_id) && inside.node.inputs[link.origin_slot];
  return outer ? widgetFor(inside, outer) : undefined;
}

export function widgetOf(place, name) {
  const input = place.node.inputs?.find((i) => i.name === name);
  return input ? widgetFor(place, input) : place.node.widgets?.find((w) => w.name === name);
}

export const pickOf = (place) => widgetOf(place, "pick");

// The places that finish what comes of one with a sheet. One whose pick comes by a link finishes what that says,
// whatever is clicked.
export function finishers(place) {
  return linkedTo(place, [place.node.outputs?.[0]]).flatMap((target) => {
    if (target.node.type === "SwDFinishDrafts") return pickOf(target) ? [target] : [];
    return PASS_ON.includes(target.node.type) ? finishers(target) : [];
  });
}

// The place whose drafts come to this one.
export function drafterOf({ node, inside }) {
  const through = PASS_ON.includes(node.type) ? 0 : node.inputs?.findIndex((i) => i.name === "drafts");
  return sourceOf(node.graph, inside, node.inputs?.[through]?.link);
}

// The paths of what saves or shows what comes of a place: what the host is asked to run.
export function resultsOf(place, seen = new Map()) {
  for (const target of linkedTo(place, place.node.outputs ?? [])) {
    const path = pathOf(target);
    if (seen.has(path)) continue;
    seen.set(path, target);
    resultsOf(target, seen);
  }
  return [...seen].filter(([, { node }]) => node.constructor.nodeData?.output_node).map(([path]) => path);
}
