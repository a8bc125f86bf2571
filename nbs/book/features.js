// A dictionary without a kernel: index, search, card, links, map. The address keeps the feature.
const card = new Map(DATA.features.map((f) => [f.id, f]));
const order = DATA.features.map((f) => f.id);
const main = document.getElementById("main");
let here = order[0];

const find = el("input", {
  id: "find", type: "search", placeholder: "word, concept, number  ( / )",
  "aria-label": "search the features of this page", autocomplete: "off",
});
const index = el("div", { class: "index", id: "index" });
const place = el("section", { class: "card", id: "card", "aria-live": "polite" });
const canvas = el("canvas", {
  id: "map", width: 800, height: 800, role: "img",
  "aria-label": "all features as dots, near ones by direction together; the index lists the same",
});
const tip = el("p", { id: "tip", class: "soft" });
const m = DATA.map;
const count = el("p", { class: "soft", id: "count" });

main.replaceChildren(el("div", { class: "desk" },
  el("aside", { class: "side" },
    el("h1", {}, DATA.title), el("p", { class: "soft" }, DATA.about), find, count, index),
  place,
  el("section", { class: "map" }, el("h3", {}, "The whole dictionary"), canvas, tip,
    el("p", { class: "soft" }, `A dot for each of ${m.id.length.toLocaleString("en")} features; `
      + "blue ones have a card here. Near dots have near directions, mostly: "
      + `${Math.round(100 * m.kept)} % of ten neighbours are kept `
      + `(${(100 * m.chance).toFixed(1)} % by chance).`))));

// The index
function row(id) {
  const f = card.get(id);
  return el("button", { class: "row", "data-id": id, onclick: () => go(id) },
    el("i", {}, id + " "), f.name || "(signs)");
}
function label(concept) {
  return concept.replace(/^.*\./, "").replaceAll("_", " ") + " (" + concept.split(".")[0] + ")";
}
function listed() {
  const groups = [];
  const add = (title, of) => groups.push(el("details", {},
    el("summary", {}, title), ...of.map(row)));
  groups.push(el("h3", {}, `By concept: F1 above ${DATA.bound}, the bound by chance`));
  for (const [c, of] of Object.entries(DATA.concepts)) add(label(c), of);
  groups.push(el("h3", {}, "A random sample, by topic"));
  for (const [t, of] of Object.entries(DATA.topics)) add(t, of);
  return groups;
}
const whole = listed();

// Every word must begin a word of the name, a concept, a promoted token or a context.
const words = new Map(DATA.features.map((f) => [f.id, [
  [f.id + " " + f.name, 8],
  [f.concepts.filter((c) => c[1] > DATA.bound).map((c) => label(c[0])).join(" "), 6],
  [f.up.join(" "), 2],
  [f.top.map((t) => t[1].replace(/<[^>]*>/g, "")).join(" "), 1],
].map(([text, weight]) => [" " + text.toLowerCase(), weight])]));
function search(asked) {
  const wanted = asked.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (const [id, fields] of words) {
    let score = 0;
    for (const q of wanted) {
      const hits = fields.filter(([t]) => t.includes(" " + q) || t.includes("(" + q));
      if (!hits.length) { score = 0; break; }
      score += Math.max(...hits.map(([, w]) => w));
    }
    if (score) found.push([score, id]);
  }
  return found.sort((a, b) => b[0] - a[0] || a[1] - b[1]).map(([, id]) => id);
}
function show() {
  const asked = find.value.trim();
  if (!asked) {
    count.textContent = `${order.length} features`;
    index.replaceChildren(...whole);
  } else {
    const found = search(asked);
    count.textContent = found.length ? `${found.length} found` : "nothing found";
    index.replaceChildren(...found.map(row));
  }
  mark();
}
function mark() {
  for (const r of main.querySelectorAll(".row")) {
    r.setAttribute("aria-current", +r.dataset.id === here);
  }
}

// The card
function bars(counts, top) {
  const most = Math.log1p(Math.max(...counts)), w = 240 / counts.length;
  const rects = counts.map((c, i) => {
    const h = 50 * Math.log1p(c) / (most || 1);
    return svg("rect", { x: i * w, y: 50 - h, width: w * .86, height: h, fill: "currentColor" });
  });
  return svg("svg", { viewBox: "0 0 240 66", width: 240, role: "img", style: "color:var(--feature)",
    "aria-label": `histogram of activations from 0 to ${top}, logarithmic heights` }, ...rects,
  Object.assign(svg("text", { y: 64, "font-size": 12, fill: "var(--soft)" }), { textContent: "0" }),
  Object.assign(svg("text", { x: 240, y: 64, "font-size": 12, fill: "var(--soft)",
    "text-anchor": "end" }), { textContent: top }));
}
function chips(title, found, unit) {
  if (!found.length) return null;
  return el("div", {}, el("h3", {}, title), ...found.map(([id, v, name]) => {
    const text = [el("i", {}, id + " "), name || "(signs)", el("i", {}, ` ${v.toFixed(2)}${unit}`)];
    return card.has(id)
      ? el("button", { class: "chip", "data-to": id, onclick: () => go(id) }, ...text)
      : el("span", { class: "chip soft" }, ...text);
  }));
}
function contexts(title, found) {
  const lines = found.map(([v, html]) => {
    const b = el("bdi");
    b.innerHTML = html; // made by chapter 31, which escapes what it quotes
    return el("li", {}, el("i", {}, String(v)), b);
  });
  return el("div", {}, el("h3", {}, title), el("ol", {}, ...lines));
}
function tokens(title, found) {
  if (!found.length) return null;
  return el("div", {}, el("h3", {}, title), ...found.map((t) => el("code", {},
    t.trim() ? t : "␣".repeat(Math.max(1, t.length)))));
}
function draw() {
  const f = card.get(here);
  const at = order.indexOf(here);
  const step = (text, to, tip) => el("button", { onclick: () => go(to), title: tip }, text);
  const wrap = (i) => order[(i + order.length) % order.length];
  const weak = f.weak.filter((w) => !f.top.some((t) => t[1] === w[1])); // few contexts: all shown
  const concepts = f.concepts.map(([c, v]) => `${label(c)} ${v.toFixed(2)}`).join(", ");
  place.replaceChildren(
    el("div", { class: "tools" }, step("◀ previous", wrap(at - 1), "key: p"),
      step("next ▶", wrap(at + 1), "key: n"),
      el("button", { onclick: any, title: "key: r" }, "random"),
      el("button", { onclick: () => history.back() }, "back")),
    el("h2", {}, `Feature ${f.id}: ${f.name || "(signs)"}`),
    el("p", { class: "soft" }, `active on ${(100 * f.density).toPrecision(2)} % of the tokens, in `
      + `${f.documents} documents; highest ${f.max}`),
    el("p", { class: "soft" }, `concepts by F1: ${concepts} (by chance below ${DATA.bound})`),
    el("p", { class: "soft" }, `nearest neuron: ${f.neuron[0]}, cosine ${f.neuron[1]} `
      + `(random directions: below ${f.neuron[2]})`),
    el("div", { class: "facts" }, el("div", {}, el("h3", {}, "Activations"), bars(f.hist, f.max)),
      el("div", {}, tokens("Promotes", f.up), tokens("Suppresses", f.down))),
    chips("Nearest of all by direction (cosine)", f.near, ""),
    chips("Nearest on this page", f.links, ""),
    chips("Active together with (overlap)", f.company, ""),
    contexts("Strongest, one a document", f.top),
    ...(weak.length ? [contexts("Weakest", weak)] : []));
  document.title = `Feature ${f.id}: ${f.name} · ${DATA.title}`;
  mark();
  dots();
}
function go(id) {
  if (id !== here) history.pushState(null, "", "#f" + id);
  here = id;
  draw();
  if (innerWidth < 800) place.scrollIntoView();
}
function any() { go(order[Math.floor(Math.random() * order.length)]); }
function fromAddress() {
  const asked = /^#f(\d+)$/.exec(location.hash);
  here = asked && card.has(+asked[1]) ? +asked[1] : asked ? here : order[0];
  draw();
}

// The map
const spot = new Map(m.id.map((id, i) => [id, i]));
const px = (v) => 12 + v * .776;
function dots() {
  const c = canvas.getContext("2d");
  c.clearRect(0, 0, 800, 800);
  const put = (i, r) => { c.beginPath(); c.arc(px(m.x[i]), px(m.y[i]), r, 0, 7); c.fill(); };
  c.fillStyle = colour("null");
  c.globalAlpha = .5;
  m.id.forEach((id, i) => { if (!card.has(id)) put(i, 1.8); });
  c.globalAlpha = 1;
  c.fillStyle = colour("feature");
  for (const id of order) put(spot.get(id), 4);
  const i = spot.get(here);
  c.lineWidth = 4;
  c.strokeStyle = colour("neuron");
  c.beginPath(); c.arc(px(m.x[i]), px(m.y[i]), 12, 0, 7); c.stroke();
}
function under(e, only) {
  const box = canvas.getBoundingClientRect();
  const x = (e.clientX - box.left) * 800 / box.width, y = (e.clientY - box.top) * 800 / box.height;
  let best = -1, least = only ? 900 : 250;
  m.id.forEach((id, i) => {
    if (only && !card.has(id)) return;
    const d = (px(m.x[i]) - x) ** 2 + (px(m.y[i]) - y) ** 2;
    if (d < least) { least = d; best = i; }
  });
  return best;
}
const idle = "Point at a dot; click a blue one.";
tip.textContent = idle;
canvas.onmousemove = (e) => {
  const i = under(e, false);
  const more = i >= 0 && !card.has(m.id[i]) ? "; no card on this page" : "";
  tip.textContent = i < 0 ? idle : `${m.id[i]}: ${m.name[i] || "(signs)"}${more}`;
};
canvas.onclick = (e) => { const i = under(e, true); if (i >= 0) go(m.id[i]); };

find.oninput = show;
find.onkeydown = (e) => {
  const first = index.querySelector(".row");
  if (e.key === "Enter" && find.value.trim() && first) first.click();
};
addEventListener("popstate", fromAddress);
addEventListener("keydown", (e) => {
  if (/INPUT|SELECT|TEXTAREA/.test(e.target.tagName)) {
    if (e.key === "Escape") e.target.blur();
    return;
  }
  const at = order.indexOf(here), n = order.length;
  const keys = { n: () => go(order[(at + 1) % n]), p: () => go(order[(at + n - 1) % n]), r: any,
    "/": () => { e.preventDefault(); find.focus(); } };
  if (keys[e.key] && !e.ctrlKey && !e.metaKey && !e.altKey) keys[e.key]();
});
redraw.push(dots);
show();
fromAddress();
