// The book's only script: light or dark, the menu of a narrow screen, the search field.
"use strict";
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");

function saved() {
  try { return localStorage.getItem("theme"); } catch { return null; }
}
function paint() {
  root.dataset.theme = saved() || (system.matches ? "dark" : "light");
}
paint();
system.addEventListener("change", paint);

// The search reads its index on the first key, so that a page stays light.
let loading;
function index() {
  loading ||= new Promise((done) => {
    const s = document.createElement("script");
    s.src = root.dataset.root + "book/index.js";
    s.onload = done;
    document.head.append(s);
  });
  return loading;
}

// Every word must occur; a heading counts twenty times a mention, a whole word twice a part.
function search(words) {
  const found = [];
  for (const [page, anchor, heading, text] of window.BOOK) {
    const head = heading.toLowerCase(), body = text.toLowerCase();
    let score = 0;
    for (const w of words) {
      const whole = new RegExp("(^|[^\\p{L}\\p{N}])" + w.replace(/[^\p{L}\p{N}]/gu, "\\$&"), "u");
      const part = (head.includes(w) ? 20 : 0) + Math.min(body.split(w).length - 1, 8);
      if (!part) { score = 0; break; }
      score += part * (whole.test(head) || whole.test(body) ? 2 : 1);
    }
    if (score) found.push({ page, anchor, heading, text, score });
  }
  return found.sort((a, b) => b.score - a.score).slice(0, 20);
}

function shown(hit, words) {
  const a = document.createElement("a");
  a.href = root.dataset.root + hit.page + "#" + hit.anchor;
  const at = Math.max(0, hit.text.toLowerCase().indexOf(words[0]) - 60);
  const title = document.createElement("b"), where = document.createElement("small");
  title.textContent = hit.heading.replace(/ #$/, "");
  where.textContent = hit.page.replace(/.*\//, "").replace(".html", "") + " · …"
    + hit.text.slice(at, at + 150) + "…";
  a.append(title, where);
  return a;
}

document.addEventListener("DOMContentLoaded", () => {
  const get = (id) => document.getElementById(id);
  get("theme").onclick = () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", next); } catch { /* a private window forgets it */ }
    root.dataset.theme = next;
  };
  get("menu").onclick = (e) => {
    const open = document.body.classList.toggle("menu");
    e.currentTarget.setAttribute("aria-expanded", open);
  };
  const side = get("side"), here = side.querySelector("[aria-current]");
  if (here) side.scrollTop = here.offsetTop - side.clientHeight / 2;

  const find = get("find"), hits = get("hits");
  find.oninput = async () => {
    const words = find.value.toLowerCase().split(/\s+/).filter((w) => w.length > 1);
    if (!words.length) { hits.hidden = true; return; }
    await index();
    const found = search(words);
    hits.replaceChildren(...found.map((h) => shown(h, words)));
    if (!found.length) hits.textContent = "Nothing found.";
    hits.hidden = false;
  };
  document.addEventListener("keydown", (e) => {
    const links = [...hits.querySelectorAll("a")], at = links.indexOf(document.activeElement);
    if (e.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) {
      e.preventDefault();
      find.focus();
    } else if (e.key === "Escape") {
      hits.hidden = true;
    } else if (e.key === "Enter" && document.activeElement === find && links[0]) {
      links[0].click();
    } else if (!hits.hidden && /Arrow(Down|Up)/.test(e.key) && links.length) {
      e.preventDefault();
      links[Math.max(0, Math.min(links.length - 1, at + (e.key === "ArrowDown" ? 1 : -1)))].focus();
    }
  });
  document.addEventListener("click", (e) => {
    if (!e.target.closest(".find")) hits.hidden = true;
  });
});
