// Where drafts go in the graph: over links and rerouted ones, into subgraphs and out of them, past what is bypassed.
import { app } from "../../../scripts/app.js";

const PASS_ON = ["SwDSaveDrafts", "Reroute"];
const [ALWAYS, NEVER, BYPASS] = [0, 2, 4]; // the host's modes of a node

// Every graph of the page: the outermost, and those of the subgraphs in it.
function graphsIn(graph, found = new Set()) {
  found.add(graph);
  for (const { subgraph } of graph.nodes) if (subgraph && !found.has(subgraph)) graphsIn(subgraph, found);
  return [...found];
}

const allGraphs = () => graphsIn(app.rootGraph ?? app.graph);

export const allNodes = () => allGraphs().flatMap((graph) => graph.nodes);

// The nodes that stand for a graph in another one: none for the outermost.
const holdersOf = (graph) => allNodes().filter((node) => node.subgraph === graph);

// The node, and those that stand for the subgraphs that it is in, the innermost first.
export function outwards(node) {
  const [holder] = holdersOf(node.graph);
  return holder ? [node, ...outwards(holder)] : [node];
}

// What the host calls a node: its number, behind those of the subgraphs it is in.
export const pathOf = (node) => outwards(node).map(({ id }) => id).reverse().join(":");

// Whether neither it nor a subgraph that it is in is muted or bypassed.
export const runs = (node) => outwards(node).every(({ mode }) => mode === ALWAYS);

const linksOf = (graph, ids) =>
  (ids ?? []).map((id) => graph.links.get?.(id) ?? graph.links[id]).filter(Boolean);

// The input that a bypassed node hands on at one of its outputs, as the page has it.
function handedOn({ inputs, outputs }, slot) {
  const { type } = outputs[slot];
  return inputs[slot]?.type === type ? slot : inputs.findIndex((input) => input.type === type);
}

// The nodes that links lead to and that run.
function targetsOf(graph, ids) {
  return linksOf(graph, ids).flatMap(({ target_id, target_slot }) => {
    const target = graph.getNodeById(target_id);
    if (!target) return holdersOf(graph).flatMap((n) => targetsOf(n.graph, n.outputs[target_slot]?.links));
    if (target.mode === NEVER) return [];
    if (target.mode === BYPASS) {
      const on = target.outputs.filter((_, slot) => handedOn(target, slot) === target_slot);
      return on.flatMap((output) => targetsOf(graph, output.links));
    }
    if (target.subgraph) return targetsOf(target.subgraph, target.subgraph.inputs[target_slot]?.linkIds);
    return [target];
  });
}

// The node that a link comes from.
function sourceOf(graph, id) {
  const [link] = linksOf(graph, [id]);
  if (!link) return undefined;
  const { origin_id, origin_slot: slot } = link;
  const source = graph.getNodeById(origin_id);
  if (!source) {
    const [holder] = holdersOf(graph);
    return holder && sourceOf(holder.graph, holder.inputs[slot]?.link);
  }
  if (source.mode === BYPASS) return sourceOf(graph, source.inputs[handedOn(source, slot)]?.link);
  if (source.subgraph) return sourceOf(source.subgraph, source.subgraph.outputs[slot]?.linkIds[0]);
  return source;
}

const linkedTo = (node, outputs) => outputs.flatMap((output) => targetsOf(node.graph, output?.links));

// One whose pick comes by a link finishes what that says, whatever is clicked.
const isLinked = (node, name) => node.inputs?.some((i) => i.name === name && i.link != null);

// The nodes that finish what comes of a node with a sheet.
export function finishers(node) {
  return linkedTo(node, [node.outputs?.[0]]).flatMap((target) => {
    if (target.type === "SwDFinishDrafts") return isLinked(target, "pick") ? [] : [target];
    return PASS_ON.includes(target.type) ? finishers(target) : [];
  });
}

// The node whose drafts come to this one.
export function drafterOf(node) {
  const through = PASS_ON.includes(node.type) ? 0 : node.inputs?.findIndex((i) => i.name === "drafts");
  return sourceOf(node.graph, node.inputs?.[through]?.link);
}

// The nodes that save or show what comes of a node: what the host is asked to run.
export function resultsOf(node, seen = new Set()) {
  for (const target of linkedTo(node, node.outputs ?? [])) {
    if (seen.has(target)) continue;
    seen.add(target);
    resultsOf(target, seen);
  }
  return [...seen].filter((n) => n.constructor.nodeData?.output_node);
}

export const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name);
export const pickOf = (node) => widgetOf(node, "pick");
