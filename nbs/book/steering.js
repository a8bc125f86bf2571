// Steered texts beside their doses: every way for one concept, and one text for each dose.
const main = document.getElementById("main");
const names = { workbook: "workbook model", gemma: "Gemma 3 270M" };
const about = {
  "prompt": "a line that asks for it, and that many examples",
  "feature by AUROC": "the feature that tells its sentences best",
  "feature by output": "the feature whose output has its words",
  "feature by both": "of the best detectors, the best by output",
  "multiples": "the same feature, in multiples of its own maximum",
  "difference in means": "no dictionary: mean of its sentences minus mean of others",
  "probe": "no dictionary: a linear probe", "neuron": "the best neuron",
  "random feature": "null: another feature of like density", "random direction": "null",
};
const kind = (way) => /random/.test(way) ? "" : /feature|multiples/.test(way) ? "feature"
  : way === "neuron" ? "neuron" : "other";
const shade = { feature: "var(--feature)", neuron: "var(--neuron)", "": "var(--null)",
  other: "#009E73" };
const unit = (way) => way === "prompt" ? "examples" : way === "multiples" ? "× maximum"
  : "× norm of a text's row";
const pick = (id, label, options) => el("select", { id, "aria-label": label },
  ...options.map(([v, t]) => el("option", { value: v }, t)));

const model = pick("model", "model", Object.keys(DATA.models).map((k) => [k, names[k]]));
const concept = pick("concept", "concept", []);
const way = pick("way", "way to steer", []);
const dose = el("input", { id: "dose", type: "range", min: 0, max: 3, value: 0,
  "aria-label": "dose" });
const said = el("output", { id: "said" });
const texts = el("div", { id: "texts" }), curve = el("div", { id: "curve" });
const table = el("div", { id: "table" });
main.replaceChildren(el("div", { class: "page" }, el("h1", {}, DATA.title),
  el("p", { class: "soft" }, "The model goes on from “I think that”, pushed towards a concept. "
    + "One text for each dose, not chosen: the first that was sampled. Chapter 40b says how texts "
    + "are judged, and how little a single one proves."),
  el("div", { class: "pick" }, el("label", {}, "model ", model),
    el("label", {}, "concept ", concept),
    el("label", {}, "way ", way), el("label", {}, "dose ", dose, " ", said)),
  texts, curve, el("h2", {}, "All ways at their strongest readable dose"), table));

const sets = (of, keep) => { // fill a list, keep the choice if it is still there
  const before = keep.value;
  keep.replaceChildren(...of.map((v) => el("option", { value: v }, v)));
  if (of.includes(before)) keep.value = before;
};
const now = () => DATA.models[model.value];
const rows = (c, w) => now().texts.filter((t) => t[0] === c && t[1] === w)
  .sort((a, b) => a[2] - b[2]);
const points = (c, w) => now().curves.filter((t) => t[0] === c && t[1] === w)
  .sort((a, b) => a[2] - b[2]);

function text(title, t, of, note) {
  return el("div", { class: "text " + of }, el("h3", {}, title),
    el("div", {}, "I think that", t), note ? el("p", { class: "soft" }, note) : null);
}
function drawing(c, w) {
  const W = 560, H = 230, L = 44, B = 40, all = points(c, w);
  const null_ = points(c, "random feature"), plain = now().curves.find((r) => r[1] === "nothing");
  const doses = all.map((p) => p[2]), low = Math.min(...doses), high = Math.max(...doses);
  const x = (d) => L + (W - L - 130) * (d - low) / (high - low || 1);
  const y = (v) => 12 + (H - B - 12) * (1 - v);
  const line = (ps, k, stroke, dash) => svg("polyline", { fill: "none", stroke, "stroke-width": 2,
    "stroke-dasharray": dash, points: ps.map((p) => `${x(p[2])},${y(p[k])}`).join(" ") });
  const words = (X, Y, t, anchor = "start", fill = "var(--soft)") => Object.assign(
    svg("text", { x: X, y: Y, "font-size": 12, fill, "text-anchor": anchor }), { textContent: t });
  const inside = all.length && all.some((p) => p[2] === +doses[dose.value])
    ? [svg("line", { x1: x(doses[dose.value]), x2: x(doses[dose.value]), y1: 12, y2: H - B,
      stroke: "var(--line)", "stroke-width": 6 })] : [];
  for (const v of [0, .5, 1]) inside.push(words(L - 6, y(v) + 4, v, "end"),
    svg("line", { x1: L, x2: W - 130, y1: y(v), y2: y(v), stroke: "var(--line)" }));
  for (const d of doses) inside.push(words(x(d), H - B + 16, d, "middle"));
  inside.push(words((L + W - 130) / 2, H - 4, `dose (${unit(w)})`, "middle"));
  const key = [];
  const draw = (ps, k, stroke, dash, name) => {
    if (ps.length < 2) return;
    inside.push(line(ps, k, stroke, dash));
    key.push([Math.min(H - B, Math.max(20, y(ps.at(-1)[k]) + 4)), name, stroke]);
  };
  draw(all, 3, shade[kind(w)], "", "concept");
  draw(all, 4, shade[kind(w)], "5 4", "fluency");
  if (w !== "multiples" && w !== "prompt" && w !== "random feature") {
    draw(null_, 3, "var(--null)", "", "random feature");
  }
  key.sort((a, b) => a[0] - b[0]).forEach((k, i, of) => {
    if (i) k[0] = Math.max(k[0], of[i - 1][0] + 14);
    inside.push(words(W - 124, k[0], k[1], "start", k[2]));
  });
  return el("figure", { style: "margin:.6em 0;overflow-x:auto" },
    svg("svg", { viewBox: `0 0 ${W} ${H}`, width: W, role: "img", style: "max-width:none",
      "aria-label": `concept and fluency over the dose, ${c}, ${w}` }, ...inside),
    el("figcaption", { class: "soft" }, "Concept: share of unsteered texts that the judge ranks "
      + `below this one (0.5 is chance; unsteered ${plain ? plain[3].toFixed(2) : ""}). Fluency: `
      + "1 as likely and as varied as unsteered text. Means over four openings."));
}
function show() {
  const c = concept.value, w = way.value, of = rows(c, w);
  dose.max = Math.max(0, of.length - 1);
  const t = of[dose.value] || of[0], plain = now().texts.find((r) => r[1] === "nothing");
  said.textContent = t ? `${t[2]} ${unit(w)}` : "";
  const p = t && points(c, w).find((q) => q[2] === t[2]);
  texts.replaceChildren(el("div", { class: "both" }, text("plain", plain[4], ""),
    t ? text(`${w}, ${t[2]} ${unit(w)}: ${about[w] || ""}`, t[4], kind(w),
      `judged ${t[3] ? "about it" : "not about it"}; at this dose concept ${p[3]}, fluency ${p[4]}`)
      : ""));
  curve.replaceChildren(drawing(c, w));
  const body = ways(c).map((v) => {
    const good = points(c, v).filter((q) => q[4] >= .5).sort((a, b) => b[3] - a[3])[0];
    const line = good && rows(c, v).find((r) => r[2] === good[2]);
    const cells = good ? [good[2] + " " + unit(v), good[3].toFixed(2), good[4].toFixed(2)]
      : ["none", "", ""];
    return el("tr", {}, el("td", {}, v), ...cells.map((k) => el("td", {}, k)),
      el("td", {}, line ? "…" + line[4] : ""));
  });
  table.replaceChildren(el("div", { style: "overflow-x:auto" }, el("table", {},
    el("tr", {}, ...["way", "dose", "concept", "fluency", "a text"].map((h) => el("th", {}, h))),
    ...body)));
}
const ways = (c) => [...new Set(now().texts.filter((t) => t[0] === c).map((t) => t[1]))];
function fresh() {
  sets([...new Set(now().texts.map((t) => t[0]).filter(Boolean))], concept);
  sets(ways(concept.value), way);
  show();
}
model.onchange = fresh;
concept.onchange = () => { sets(ways(concept.value), way); show(); };
way.onchange = () => { dose.value = 0; show(); };
dose.oninput = show;
if (DATA.models.gemma) model.value = "gemma";
fresh();
way.value = ways(concept.value).includes("feature by AUROC") ? "feature by AUROC" : way.value;
dose.max = 3;
dose.value = 2;
show();
