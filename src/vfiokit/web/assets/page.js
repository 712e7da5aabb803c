// What a reader does: choose, find, move, change the theme, print.
const drawing = document.getElementById("drawing");
const detail = document.getElementById("detail");
const nodes = functions.map(({ number }) => document.getElementById(`f${number}`));
const wires = new Map();
for (const wire of drawing.querySelectorAll(".wire")) wires.set(wire.dataset.to, wire);
let lit = [], first = -1;

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function light(element, ...names) {
  if (!element) return;
  element.classList.add("lit", ...names);
  lit.push(element);
}

function darken() {
  for (const element of lit)
    element.classList.remove("lit", "above", "end", "turns", "chosen");
  lit = [];
  drawing.classList.remove("dim");
}

function lightWire(number, ...names) {
  const chips = nodes[number].closest(".chips");
  if (chips) light(wires.get(chips.id), ...names);
  else light(wires.get(`f${number}`), ...names);
  // A virtual function is drawn below its physical one, whose link it shares.
  if (functions[number].physfn >= 0) {
    light(nodes[functions[number].physfn], ...names);
    lightWire(functions[number].physfn, ...names);
  }
}

function reveal(number) {
  nodes[number]?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function choosePair(provider, client, { scroll = true } = {}) {
  first = -1;
  darken();
  const story = explain(provider, client);
  const turns = new Set(story.redirecting), ends = new Set([provider, client]);
  drawing.classList.add("dim");
  for (const number of story.path) {
    light(nodes[number], ...(ends.has(number) ? ["end"] : []), ...(turns.has(number) ? ["turns"] : []));
    if (number !== story.common) lightWire(number);
  }
  if (story.common < 0 || story.type !== "bus-addr") {
    if (story.common >= 0) lightWire(story.common, "above");
    for (const number of story.above) { light(nodes[number]); lightWire(number, "above"); }
    for (const number of [provider, client])
      light(document.getElementById(`h${functions[number].host}`));
  }
  matrix.mark(provider, client);
  tellPair(story);
  if (scroll) { reveal(client); reveal(provider); }
}

function end(word, number) {
  const { address, name } = functions[number];
  return [make("dt", {}, word), make("dd", {}, make("code", {}, address)), make("dd", { class: "name" }, name)];
}

function step(number, redirecting) {
  const { address, role, acs } = functions[number];
  const item = make("li", {}, make("code", {}, address), make("span", { class: "role" }, role));
  if (redirecting) item.append(make("span", { class: "redirects" }, "redirects"));
  if (acs) item.append(make("span", { class: "role" }, acs));
  return item;
}

function way(story) {
  const steps = story.path.map((number) => step(number, story.redirecting.includes(number)));
  if (story.common >= 0) return steps;
  // Without a bridge in common the way leads through the root complex, or from one to another.
  const hosts = new Set([story.provider, story.client].map((number) => functions[number].host));
  const middle = [...hosts].map((host) => make("li", {}, make("code", {}, data.hosts[host][0]),
    make("span", { class: "role" }, "root complex")));
  steps.splice(chainOf(story.provider).length, 0, ...middle);
  return steps;
}

function tellPair(story) {
  const style = { "bus-addr": "direct", "thru-host-bridge": "through", "not-supported": "none", unknown: "unknown" };
  const swap = make("button", { type: "button", id: "swap" }, "Swap");
  swap.addEventListener("click", () => choosePair(story.client, story.provider));
  const parts = [
    make("h2", { id: "detail-title" },
      make("span", { class: `verdict ${style[story.type]}` }, WORDS[story.type]),
      `${functions[story.client].address} to ${functions[story.provider].address}`),
    ...story.text.map((line) => make("p", {}, line)),
    make("p", { class: "hint" }, `${story.code}: ${data.codes[story.code]}.`),
    make("dl", { class: "ends" }, ...end("client", story.client), ...end("provider", story.provider)),
    make("h3", {}, story.common < 0 ? "The way, through the root complex" : "The way"),
    make("ol", { class: "way" }, ...way(story)),
  ];
  if (story.unknown.length)
    parts.push(make("h3", {}, "Not known"), ...story.unknown.map((line) => make("p", {}, `${line}.`)));
  if (story.hopeless)
    parts.push(make("h3", {}, "No remedy by ACS"), make("p", {}, `${capital(story.hopeless)}.`));
  parts.push(...remedy(story));
  if (story.assigned)
    parts.push(make("h3", {}, "When both are assigned"), make("p", {}, story.assigned));
  if (story.messages.length)
    parts.push(make("h3", {}, "What the kernel would log"), commands(story.messages));
  parts.push(make("div", { class: "actions" }, swap, clearButton()));
  detail.replaceChildren(...parts);
}

const SHOWN = 6;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const commands = (lines) => make("pre", {}, lines.join("\n"));

function remedy(story) {
  if (!story.redirecting.length) return [];
  const listed = (numbers) => numbers.map((number) => functions[number].address).join(", ");
  const cleared = story.redirecting.map((number) => data.changes[number]).filter(Boolean);
  const bits = (kind) => (changes) => `pci=config_acs=${changes.map((change) => change[kind]).join(";")}`;
  const parts = [
    make("h3", {}, "Remedy: no redirect on the way"),
    make("p", {}, `Take it off ${listed(story.redirecting)}, by kernel parameter or until the next boot:`),
    commands([bits(0)(cleared), ...cleared.map((change) => change[1])]),
  ];
  const between = [...new Set([...story.path.slice(1, -1), ...story.redirecting])].sort((one, other) => one - other);
  const outcome = data.outcomes[`${between.join(",")}|${functions[story.client].translating}`];
  const tell = (lines, kind, before) => lines.map((line) => make("p", { class: kind },
    `${before}${capital(line).replaceAll("{client}", functions[story.client].bdf).replace(/\.?$/, ".")}`));
  if (outcome) {
    const [price, obstacles] = outcome;
    parts.push(...tell(price.length ? price.slice(0, SHOWN) : ["No IOMMU group changes"], "price", "Price: "));
    if (price.length > SHOWN)
      parts.push(make("p", {}, `And ${price.length - SHOWN} more, which vfiokit p2p lists.`));
    parts.push(...tell(obstacles, "obstacle", "In the way: "));
  } else parts.push(make("p", {}, "What becomes of the IOMMU groups, vfiokit p2p tells."));
  const translated = between.map((number) => data.changes[number]).filter((change) => change?.[2]);
  parts.push(make("h3", {}, "Remedy that keeps the groups: ATS and Direct Translated P2P"));
  if (outcome && !outcome[2]) parts.push(make("p", {}, "This machine cannot have it."));
  else if (translated.length)
    parts.push(commands([bits(2)(translated), ...translated.map((change) => change[3])]));
  if (outcome) parts.push(...tell(outcome[3], "obstacle", "In the way: "));
  return parts;
}

function clearButton() {
  const button = make("button", { type: "button", id: "clear" }, "Clear");
  button.addEventListener("click", clear);
  return button;
}

const nothing = [...detail.children];
function clear() {
  first = -1;
  darken();
  matrix.picked = null;
  matrix.redraw();
  detail.replaceChildren(...nothing);
}

function chooseFunction(number) {
  const item = functions[number];
  if (first >= 0 && first !== number && item.peerClass >= 0) {
    choosePair(number, first, { scroll: false });
    return;
  }
  clear();
  light(nodes[number], "end");
  const row = document.getElementById(`g${item.group}`);
  const parts = [make("h2", { id: "detail-title" }, `${item.bdf} ${item.role}`), make("p", {}, item.name)];
  const facts = make("dl", { class: "ends" });
  const fact = (name, value) => facts.append(make("dt", {}, name), make("dd", {}, value), make("dd"));
  fact("driver", item.driver || "none");
  fact("group", String(item.group));
  fact("root bus", data.hosts[item.host][0]);
  if (data.hosts[item.host][1] !== null) fact("NUMA node", String(data.hosts[item.host][1]));
  if (item.acs) fact("ACS", item.acs.replace(/^ACS /, ""));
  parts.push(facts, ...[...row.querySelectorAll("p")].map((line) => make("p", {}, line.textContent)));
  if (item.peerClass >= 0) {
    first = number;
    parts.push(make("p", { class: "hint" }, "Choose a second function to see the way from this one to it."));
  }
  parts.push(make("div", { class: "actions" }, clearButton()));
  detail.replaceChildren(...parts);
}

function chooseGroup(group) {
  clear();
  drawing.classList.add("dim");
  const members = functions.filter((item) => item.group === group);
  for (const item of members) light(nodes[item.number]);
  light(document.getElementById(`g${group}`), "chosen");
  if (members.length) reveal(members[0].number);
  document.getElementById("topology").scrollIntoView({ block: "nearest" });
}

// Finding
const search = document.getElementById("search"), hits = document.getElementById("hits");
const haystack = functions.map((item) =>
  `${item.bdf} ${item.name} ${item.driver} ${item.kind} ${item.role}`.toLowerCase());
const groupRows = [...document.querySelectorAll("#group-table tbody tr")];
let found = [], at = -1;

function find() {
  const text = search.value.trim().toLowerCase();
  clear();
  at = -1;
  const group = /^group (\d+)$/.exec(text);
  found = !text ? [] : functions.filter((item) =>
    group ? item.group === Number(group[1]) : haystack[item.number].includes(text));
  hits.textContent = text ? `${found.length} of ${functions.length}` : "";
  if (text) {
    drawing.classList.add("dim");
    for (const item of found) light(nodes[item.number]);
    if (found.length) reveal(found[0].number);
  }
  const groups = new Set(found.map((item) => item.group));
  for (const row of groupRows) row.hidden = Boolean(text) && !groups.has(Number(row.dataset.group));
}

search.addEventListener("input", find);
search.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !found.length) return;
  event.preventDefault();
  at = (at + (event.shiftKey ? found.length - 1 : 1)) % found.length;
  chooseFunction(found[at].number);
  hits.textContent = `${at + 1} of ${found.length}`;
  reveal(found[at].number);
});

// The drawing by mouse and by keyboard: one tab stop, arrows within
const items = [...drawing.querySelectorAll("[role=treeitem]")];
const numberOf = (node) => Number(node.id.slice(1));
if (items.length) items[0].setAttribute("tabindex", "0");
let stop = items[0];
function focusItem(node) {
  if (!node) return;
  stop.setAttribute("tabindex", "-1");
  stop = node;
  stop.setAttribute("tabindex", "0");
  stop.focus();
}
drawing.addEventListener("click", (event) => {
  const node = event.target.closest("[role=treeitem]");
  if (node) { chooseFunction(numberOf(node)); focusItem(node); }
});
drawing.addEventListener("keydown", (event) => {
  const node = event.target.closest("[role=treeitem]");
  if (!node) return;
  const index = items.indexOf(node), { parent } = functions[numberOf(node)];
  const below = functions.find((item) => item.parent === numberOf(node));
  const moves = {
    ArrowDown: items[index + 1], ArrowUp: items[index - 1], Home: items[0], End: items.at(-1),
    ArrowLeft: parent >= 0 ? nodes[parent] : undefined,
    ArrowRight: below ? nodes[below.number] : undefined,
  };
  if (event.key in moves) { event.preventDefault(); focusItem(moves[event.key]); }
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); chooseFunction(numberOf(node)); }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (search.value) { search.value = ""; find(); } else clear();
  } else if (event.key === "/" && document.activeElement !== search) {
    event.preventDefault();
    search.focus();
  }
});
document.getElementById("group-table").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) chooseGroup(Number(button.dataset.group));
});

// Size of the drawing
const pane = document.getElementById("pane");
const natural = drawing.viewBox.baseVal;
let scale = 1;
function resize(factor) {
  scale = Math.max(.4, Math.min(2, factor));
  drawing.setAttribute("width", natural.width * scale);
  drawing.setAttribute("height", natural.height * scale);
}
const fit = () => resize(Math.min(1.15, Math.max(.62, (pane.clientWidth - 18) / natural.width)));
document.getElementById("fit").addEventListener("click", fit);
document.getElementById("larger").addEventListener("click", () => resize(scale * 1.2));
document.getElementById("smaller").addEventListener("click", () => resize(scale / 1.2));

// The theme: the system's, until the reader chooses
const theme = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme:dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
function themed() {
  theme.textContent = isDark() ? "Light" : "Dark";
  theme.setAttribute("aria-pressed", String(isDark()));
  matrix.redraw();
}
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  themed();
});
system.addEventListener("change", themed);

// The matrix, and which functions are in it
const matrix = new Matrix((provider, client) => choosePair(provider, client));
const kinds = document.getElementById("kinds"), virtual = document.getElementById("virtual");
virtual.parentElement.hidden = !functions.some((item) => item.physfn >= 0);
function fill() {
  const chosen = new Set([...kinds.querySelectorAll("[name=kind]:checked")].map((box) => box.value));
  matrix.show(functions.filter((item) => item.peerClass >= 0 && chosen.has(item.kind) &&
    (virtual.checked || item.physfn < 0)).map((item) => item.number));
}
kinds.addEventListener("change", fill);

// On paper nothing scrolls: the whole matrix, in light colours
let before = null;
window.addEventListener("beforeprint", () => {
  before = { zoom: matrix.zoom, theme: document.documentElement.dataset.theme };
  document.documentElement.dataset.theme = "light";
  const room = 660 / Math.max(1, matrix.order.length);
  matrix.zoom = Math.max(0, SIZES.findLastIndex((size) => size <= room - 6));
  matrix.measure();
  matrix.draw(true);
});
window.addEventListener("afterprint", () => {
  matrix.zoom = before.zoom;
  if (before.theme) document.documentElement.dataset.theme = before.theme;
  else delete document.documentElement.dataset.theme;
  matrix.measure();
});

fit();
fill();
themed();
