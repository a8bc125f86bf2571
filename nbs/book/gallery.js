// What all explorers without a kernel share: light or dark, and a shorthand for elements.
"use strict";
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const redraw = [];

function saved() {
  try { return localStorage.getItem("theme"); } catch { return null; }
}
function paint() {
  root.dataset.theme = saved() || (system.matches ? "dark" : "light");
  for (const draw of redraw) draw();
}
paint();
system.addEventListener("change", paint);
document.getElementById("theme").onclick = () => {
  const next = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", next); } catch { /* a private window forgets it */ }
  root.dataset.theme = next;
  for (const draw of redraw) draw();
};
const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();

// el("p", {class: "soft"}, "text", other) makes an element; text is never read as HTML.
function el(name, given = {}, ...inside) {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(given)) {
    if (k.startsWith("on")) e[k] = v;
    else if (v !== null && v !== undefined && v !== false) e.setAttribute(k, v);
  }
  e.append(...inside.filter((x) => x !== null && x !== undefined));
  return e;
}
function svg(name, given, ...inside) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [k, v] of Object.entries(given)) e.setAttribute(k, v);
  e.append(...inside);
  return e;
}
