// The page of one controller: every two seconds it asks for the cluster, as this
// controller reaches it, and draws all of it anew. What comes is set as text only.
import { chart, element, lineClass, map, percent, short, svg } from "./charts.js";

const every = 2000;
const byId = (id) => document.getElementById(id);

// text writes what has changed only, so that a selection or a reader is left alone.
function text(id, value) {
  if (byId(id).textContent !== value) byId(id).textContent = value;
}

const units = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];
function bytes(n) {
  const [size, unit] = units.find(([s]) => n >= s) ?? [1, "B"];
  return `${Number((n / size).toPrecision(3))} ${unit}`;
}

function lasting(seconds) {
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

// Each state has a mark and a word; the colour only repeats them.
const marks = { good: "✓", fair: "!", bad: "✕", gone: "–" };

// stateOf judges a controller by what gossip has, and by what itself says.
function stateOf(node, seen) {
  const failed = seen?.state === "failed";
  if (seen?.state === "left") return { kind: "gone", word: "left", why: "it was stopped on purpose, and nobody waits for it" };
  if (!node.view) {
    return failed
      ? { kind: "bad", word: "failed", why: node.error }
      : { kind: "fair", word: `${seen?.state ?? "unknown"}, and cannot be asked`, why: node.error };
  }
  if (failed) return { kind: "bad", word: "cut off", why: "its page answers, and gossip does not reach it" };
  if (node.view.health) return { kind: "bad", word: "not ready", why: node.view.health };
  return { kind: "good", word: "ready", why: "" };
}

function cell(state) {
  const td = element("td", {}, element("strong", { class: state.kind }, `${marks[state.kind]} ${state.word}`));
  if (state.why) td.append(` ${state.why}`);
  return td;
}

function rows(id, all) {
  byId(id).tBodies[0].replaceChildren(...all);
}

const row = (...cells) => element("tr", {}, ...cells.map((c) => (c instanceof Node ? c : element("td", {}, String(c)))));
const head = (name) => element("th", { scope: "row" }, name);

function draw(cluster) {
  const nodes = cluster.nodes;
  const asked = nodes.find((n) => n.name === cluster.asked);
  const views = nodes.filter((n) => n.view);
  // Only a leader knows how far the others are.
  const leading = views.find((n) => n.view.ordered?.role === "leader");
  const best = (leading ?? asked).view;
  const seenBy = (view, name) => view.members?.find((m) => m.name === name);
  for (const n of nodes) {
    n.seen = seenBy(asked.view, n.name);
    n.state = stateOf(n, n.seen);
    const role = (seenBy(best, n.name) ?? n.seen)?.role;
    n.role = n.view?.ordered?.role ?? (role === "self" ? "asked" : role) ?? "alone";
    if (n.role === "follower" && role === "voter") n.role = "follower, votes";
  }

  const here = nodes.filter((n) => n.state.kind !== "gone");
  const bad = here.filter((n) => n.state.kind !== "good");
  text("level", `${asked.view.level}, as ${asked.name} sees it`);
  const summary = bad.length === 0
    ? `✓ ${here.length === 1 ? "The controller is" : `All ${here.length} controllers are`} ready.`
    : `${bad.some((n) => n.state.kind === "bad") ? "✕" : "!"} ${bad.map((n) => `${n.name}: ${n.state.word}`).join("; ")}.`;
  text("summary", summary);
  byId("summary").className = bad.length === 0 ? "good" : bad.some((n) => n.state.kind === "bad") ? "bad" : "fair";
  document.title = `${bad.length === 0 ? "✓" : "✕"} attune ${asked.view.level}`;

  drawControllers(nodes, best, seenBy);
  drawNow(nodes);
  drawCharts(views, nodes);
  drawReach(nodes, views, seenBy);
  drawStores(views);
  drawEvents(views);
  text("foot", `attune ${asked.view.version}; asked at ${new Date(asked.view.now).toISOString()}. ` +
    "For programs: api/cluster, api/node, metrics.");
}

function drawControllers(nodes, best, seenBy) {
  rows("controllers", nodes.map((n) => {
    const v = n.view;
    const lag = seenBy(best, n.name)?.lag;
    const r = row(head(n.name), cell(n.state), n.role, v?.listen?.join(", ") ?? n.seen?.listen ?? "–", lag || "–",
      v ? short(v.items) : "–",
      v ? (v.memory_limit ? `${bytes(v.memory_used)} of ${bytes(v.memory_limit)}` : bytes(v.memory_used)) : "–",
      v ? v.connections : "–", v ? lasting(v.uptime) : "–");
    r.dataset.node = n.name;
    r.dataset.state = n.state.word;
    return r;
  }));
  map(byId("map"), nodes.filter((n) => n.state.kind !== "gone").map((n) => ({ name: n.name, kind: n.state.kind, mark: marks[n.state.kind], role: n.role.split(",")[0] })), (a, b) => {
    const ways = [[a, b], [b, a]]
      .map(([from, to]) => nodes.find((n) => n.name === from).view?.members?.find((m) => m.name === to))
      .filter((m) => m).map((m) => m.state !== "failed");
    return ways.length ? ways.every((w) => w) : undefined;
  });
  const notes = [];
  const { ordered, gossip } = best;
  if (ordered) {
    notes.push(ordered.leader
      ? `Leader ${ordered.leader}, term ${ordered.term}, ${ordered.voters} voters; log committed to ${ordered.commit}.`
      : `No leader for ${lasting(Math.round(ordered.leaderless / 1000))}: no quorum is known here, and writes are refused.`);
    if (ordered.refused) notes.push(`${ordered.refused} committed changes did not hold: report it, this is a bug.`);
  }
  if (gossip) {
    notes.push(`Clock: the median of all is ${gossip.skew} ms ahead. Dead items remembered: ${gossip.tombstones}` +
      `${gossip.waits ? ` (${gossip.waits})` : ""}. Reconciliations: ${gossip.reconciles}; keys that differed in the last: ${gossip.differing}.`);
  }
  text("notes", notes.join(" "));
}

function drawNow(nodes) {
  const figures = ["reads", "writes", "failed", "hits", "read_p50", "read_p99", "read_p999",
    "write_p50", "write_p99", "write_p999", "behind", "ahead", "differing"];
  rows("now", nodes.map((n) => row(head(n.name), ...figures.map((f) => {
    const v = n.view?.samples?.[f]?.at(-1);
    return f === "hits" ? percent(v) : short(v);
  }))));
}

const drawn = [
  ["Reads", "per second", "reads"], ["Writes", "per second", "writes"], ["Failed", "SERVER_ERROR per second", "failed"],
  ["Hit rate", "of keys read", "hits", { top: 1, format: percent }],
  ["Read latency p50", "ms", "read_p50"], ["Read latency p99", "ms", "read_p99"],
  ["Write latency p50", "ms", "write_p50"], ["Write latency p99", "ms", "write_p99"],
  ["Behind", "changes to come here", "behind"], ["Ahead", "changes a member lacks", "ahead"],
  ["Differing", "live members", "differing"],
];

function drawCharts(views, nodes) {
  const index = new Map(nodes.map((n, i) => [n.name, i]));
  byId("legend").replaceChildren(...views.map((n) => element("li", {},
    svg("svg", { viewBox: "0 0 36 8", "aria-hidden": "true" }, svg("path", { class: lineClass(index.get(n.name)), d: "M0 4L36 4" })), ` ${n.name}`)));
  const charts = [];
  for (const [title, unit, name, options] of drawn) {
    const series = views.map((n) => ({
      name: n.name, index: index.get(n.name), values: n.view.samples?.[name] ?? [],
      ages: (n.view.sampled_at ?? []).map((at) => n.view.now - at), // by its own clock
    })).filter((s) => s.values.some((v) => v !== null));
    if (series.length) charts.push(chart(title, unit, series, options));
  }
  byId("charts").replaceChildren(...charts.length ? charts : ["The first sample is taken five seconds after the start."]);
}

function drawReach(nodes, views, seenBy) {
  byId("reach").tHead.replaceChildren(element("tr", {}, element("th", { scope: "col" }, "says \\ of"),
    ...nodes.map((n) => element("th", { scope: "col" }, n.name))));
  rows("reach", views.map((n) => row(head(n.name), ...nodes.map((m) => {
    if (m === n) return "itself";
    const state = seenBy(n.view, m.name)?.state ?? "unknown";
    const kind = { ready: "good", failed: "bad", left: "gone" }[state] ?? "fair";
    return element("td", { class: kind }, `${marks[kind]} ${state}`);
  }))));
}

function drawStores(views) {
  const all = [];
  for (const { name, view: v } of views) {
    const r = v.repairs;
    const filling = !r ? "–" : r.fill_from
      ? `from ${r.fill_from}: ${r.fill_of ? Math.min(100, Math.floor((100 * r.fill_looked) / r.fill_of)) : 0}% of ${short(r.fill_of)}, ${short(r.fill_lacking)} lacking`
      : `no; ${short(r.filled)} values so far`;
    const shared = [r ? short(r.repaired) : "–", r ? bytes(r.waiting) : "–", filling];
    if (!v.stores?.length) {
      all.push(row(head(name), v.backend, cell({ kind: "good", word: v.backend.startsWith("pebble:") ? "files of this machine" : "in this process" }), "–", "–", "–", ...shared));
    }
    v.stores?.forEach((s, i) => all.push(row(head(name), s.server,
      cell(s.down ? { kind: "bad", word: "down" } : { kind: "good", word: "up" }),
      short(s.p50), short(s.p99), short(s.errors), ...(i === 0 ? shared : ["", "", ""]))));
  }
  rows("stores", all);
  byId("disks").replaceChildren(...views.flatMap(({ name, view: v }) => (v.disks ?? []).map((d) => {
    const kind = d.free < d.reserve ? "bad" : d.free < 4 * d.reserve || d.free < d.total / 20 ? "fair" : "good";
    return element("li", {}, `${name}: ${d.dir} has `, element("strong", { class: kind }, `${marks[kind]} ${bytes(d.free)} free`),
      ` of ${bytes(d.total)}`);
  })));
}

const kinds = { info: ["", "info"], warn: ["fair", "! warning"] };

function drawEvents(views) {
  const all = views.flatMap(({ name, view: v }) => (v.events ?? []).map((e) => ({ ...e, name })));
  all.sort((a, b) => Date.parse(b.time) - Date.parse(a.time));
  rows("events", all.slice(0, 100).map((e) => {
    const [kind, word] = kinds[e.level] ?? ["bad", `✕ ${e.level}`];
    const at = new Date(e.time);
    return row(element("td", {}, element("time", { datetime: e.time }, `${at.toLocaleDateString()} ${at.toLocaleTimeString()}`)), e.name,
      element("td", { class: kind }, word), e.text + (e.times > 1 ? ` (${e.times} times)` : ""));
  }));
}

async function ask() {
  try {
    const answer = await fetch("api/cluster", { signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    draw(await answer.json());
    byId("all").hidden = false;
    document.body.classList.remove("stale");
  } catch (error) {
    text("summary", `✕ This controller does not answer (${error.message}); what is below is old. Open the page of another one.`);
    byId("summary").className = "bad";
    document.body.classList.add("stale");
  }
  setTimeout(ask, every);
}

ask();
