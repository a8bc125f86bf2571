"""The explorers as a reader meets them, in a browser: pages without a kernel, and the live desk."""

import json, os, re, time, urllib.error, urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from sae_notebooks.cli import main
from sae_notebooks.explorers import EXPLORERS, write_explorers

ROOT = Path(__file__).resolve().parent.parent
SECOND = 1.0  # what a look may take; a machine that does other things besides gets three of it


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorers")
    return {Path(p).stem: folder / p for p in write_explorers(folder, ROOT)}


def until(browser, what: str, limit: float = 3 * SECOND) -> float:
    "Seconds until a JavaScript expression is true."
    started = time.time()
    while time.time() - started < limit:
        if browser.run(f"Boolean({what})"):
            return time.time() - started
        time.sleep(0.02)
    raise AssertionError(f"not after {limit:g} s: {what}")


def press(browser, x: float, y: float):
    "A press of the mouse at a place of the window."
    at = dict(x=x, y=y, button="left", clickCount=1)
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, **at)


def click(browser, element: str):
    "A press of the mouse on what a JavaScript expression gives."
    x, y = browser.run(
        f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}});"
        " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]})()"
    )
    press(browser, x, y)


def test_all_pages_are_there_and_small(pages):
    assert set(pages) == set(EXPLORERS)
    assert all(path.stat().st_size < 1.5e6 for path in pages.values())


def test_pages_quote_only_what_this_project_wrote():
    kept = {p.stem: json.loads(p.read_text("utf-8")) for p in (ROOT / "nbs/book/gallery").iterdir()}
    for name, data in kept.items():
        assert len(data["features"]) == 200, name
        quoted = " ".join(line for f in data["features"] for _, line in f["top"])
        assert not re.search(r"\bnumpy\b|\bndarray\b|>>> |:param|array_like", quoted), name


# test_book.py opens them wide and light, narrow and dark, among all pages of the book
@pytest.mark.parametrize("width,height,dark", ((1400, 900, True), (390, 844, False)))
def test_pages_open_without_an_error_or_a_request(pages, browser, width, height, dark):
    for name, path in pages.items():
        browser.open(path.as_uri(), width, height, dark)
        theme = browser.run("document.documentElement.dataset.theme")
        assert theme == ("dark" if dark else "light")
        wide = browser.run("document.documentElement.scrollWidth - innerWidth")
        away = [r for r in browser.requests() if not r.startswith(("file:", "data:"))]
        assert (browser.errors(), away, max(0, wide)) == ([], [], 0), name


@pytest.mark.parametrize("model", ("workbook", "gemma"))
def test_gallery_search_links_keys_map_and_back(pages, browser, model):
    browser.open(pages[model].as_uri())
    field = "document.getElementById('find')"
    title = "document.querySelector('#card h2').textContent"
    browser.run(f"{field}.value = 'spanish'; {field}.dispatchEvent(new Event('input')); 1")
    took = [until(browser, "document.querySelectorAll('#index .row').length")]
    click(browser, "document.querySelector('#index .row')")
    first = browser.run(title)
    assert "spanish (languages)" in browser.run("document.getElementById('card').textContent")
    to = browser.run("document.querySelector('#card [data-to]').dataset.to")
    click(browser, "document.querySelector('#card [data-to]')")
    took.append(until(browser, f"{title}.startsWith('Feature {to}:')"))
    assert browser.run("location.hash") == f"#f{to}"
    browser.run("history.back(); 1")
    took.append(until(browser, f"{title} === {json.dumps(first)}"))
    browser.run("document.activeElement.blur(); 1")
    for key in "n", "p":
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        different = "!==" if key == "n" else "==="
        took.append(until(browser, f"{title} {different} {json.dumps(first)}"))
    other = browser.run("order.find((id) => id !== here)")
    x, y = browser.run(
        "(() => { canvas.scrollIntoView(); const b = canvas.getBoundingClientRect();"
        f" const i = spot.get({other}), k = b.width / 800;"
        " return [b.x + k * px(m.x[i]), b.y + k * px(m.y[i])] })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert re.match(r"\d+: ", browser.run("tip.textContent"))
    press(browser, x, y)
    took.append(until(browser, f"{title} !== {json.dumps(first)}"))
    assert browser.errors() == [] and max(took) < 3 * SECOND
    browser.run(f"{field}.value = 'zzzz'; {field}.dispatchEvent(new Event('input')); 1")
    until(browser, "document.getElementById('count').textContent === 'nothing found'")


def test_gallery_opens_at_its_address(pages, browser):
    data = json.loads((ROOT / "nbs/book/gallery/gemma.json").read_text("utf-8"))
    ids = [f["id"] for f in data["features"]]
    browser.open("about:blank")  # the same page with another end is not loaded anew
    browser.open(pages["gemma"].as_uri() + f"#f{ids[7]}")
    assert browser.run("document.title").startswith(f"Feature {ids[7]}:")
    browser.open("about:blank")
    browser.open(pages["gemma"].as_uri() + "#f999999999")  # a feature that is not there
    assert browser.errors() == [] and browser.run("document.title").startswith("Feature ")


def test_steered_texts_follow_the_dose(pages, browser):
    browser.open(pages["steering"].as_uri())
    text = "document.querySelector('#texts .text:last-child').textContent"
    seen = set()
    for dose in range(4):
        browser.run(f"dose.value = {dose}; dose.dispatchEvent(new Event('input')); 1")
        seen.add(browser.run(text))
    assert len(seen) == 4 and browser.run("document.querySelectorAll('#curve polyline').length") > 1
    browser.run("model.value = 'workbook'; model.dispatchEvent(new Event('change')); 1")
    assert browser.run(text) not in seen and browser.errors() == []


@pytest.fixture(scope="module")
def desk(browser, tmp_path_factory):
    "The live desk on the workbook model, served and opened as a reader would."
    if find_spec("voila") is None:
        pytest.skip("Voila is not installed (pip install voila): JupyterLab waits for a click")
    from sae_notebooks.intervening.panel import explore

    folder = tmp_path_factory.mktemp("desk")
    kept = os.environ.get("SAE_NOTEBOOKS_RATINGS")
    os.environ["SAE_NOTEBOOKS_RATINGS"] = str(folder / "ratings")  # none of the reader's own
    server, address = explore(names=("workbook M",), folder=folder)
    os.environ.pop("SAE_NOTEBOOKS_RATINGS")
    if kept:
        os.environ["SAE_NOTEBOOKS_RATINGS"] = kept
    try:
        browser.open(address)
        until(browser, "document.querySelector('.desk article h3')", 240)  # kernel, torch, store
        yield browser, address
    finally:
        server.terminate()
        server.wait(20)


def heading(browser):
    return browser.run("document.querySelector('.desk article h3').textContent")


def asked(browser, words):
    browser.run(
        "(() => { const e = [...document.querySelectorAll('.desk input[type=text]')][0];"
        f" e.focus(); e.value = {json.dumps(words)};"
        " for (const k of ['input', 'change']) e.dispatchEvent(new Event(k, {bubbles: true})) })()"
    )


def tab(browser, name):
    every = "[...document.querySelectorAll('.desk .lm-TabBar-tab')]"
    click(browser, f"{every}.find((t) => t.textContent.trim() === '{name}')")


def test_live_desk_asks_for_its_token(desk):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    _, address = desk
    base, stay = address.split("?")[0], urllib.request.build_opener(Stay)
    assert base.startswith("http://127.0.0.1:")
    for place in ("", "api/kernels", "voila/render/explore.ipynb"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            stay.open(base + place, timeout=20)
        sent = refused.value.headers.get("Location", "")
        assert refused.value.code == 302 and sent.startswith("/login"), place
    with pytest.raises(urllib.error.HTTPError) as refused:
        stay.open(urllib.request.Request(base + "api/kernels", b"{}"), timeout=20)
    assert refused.value.code in (401, 403, 405)


def test_live_desk_searches_follows_and_types(desk):
    browser, _ = desk
    took = {}
    before = heading(browser)
    asked(browser, "london")
    h3 = "document.querySelector('.desk article h3').textContent"
    took["search"] = until(browser, f"{h3} !== {json.dumps(before)}", 10)
    before = heading(browser)
    near = "[...document.querySelectorAll('.desk button[title=\"go there\"]')]"
    click(browser, f"{near}.find((b) => b.offsetParent)")
    took["neighbour"] = until(browser, f"{h3} !== {json.dumps(before)}", 10)
    asked(browser, "99999")
    until(browser, "document.querySelector('.desk [role=alert]')", 10)
    tab(browser, "Tokens")
    until(browser, "[...document.querySelectorAll('.desk textarea')].find((t) => t.offsetParent)")
    browser.run(
        "(() => { const e = document.querySelector('.desk textarea'); e.focus();"
        " e.value = 'She moved to Camden.'; e.dispatchEvent(new Event('input', {bubbles: true}));"
        " e.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    buttons = "document.querySelectorAll('.desk .tokens button')"
    took["text"] = until(browser, f"{buttons}.length > 3", 10)
    click(browser, f"{buttons}[{buttons}.length - 2]")
    until(browser, "[...document.querySelectorAll('.desk select')].some((s) => s.offsetParent"
          " && s.options.length > 5)", 10)
    print({k: round(v, 2) for k, v in took.items()})
    limit = SECOND if os.cpu_count() > 2 else 3 * SECOND  # two cores have a browser to draw, too
    assert max(took.values()) < limit, took


def test_live_desk_steers_and_stops(desk):
    browser, _ = desk
    tab(browser, "Steering")
    button = "[...document.querySelectorAll('.desk button')].find((b) => b.textContent === '{}')"
    until(browser, button.format("add this feature") + ".offsetParent")
    click(browser, button.format("add this feature"))
    until(browser, button.format("remove"), 10)
    click(browser, button.format("write"))
    until(browser, "[...document.querySelectorAll('.desk h4')].some((h) => h.textContent ==="
          " 'steered')", 30)
    click(browser, button.format("stop"))
    until(browser, button.format("stop") + ".disabled", 30)
    assert not browser.run("[...document.querySelectorAll('.desk [role=alert]')].some((e) =>"
                           " e.offsetParent)")


def test_live_desk_rates(desk):
    browser, _ = desk
    tab(browser, "Rating")
    button = "[...document.querySelectorAll('.desk button')].find((b) => b.textContent === '{}')"
    until(browser, button.format("rate this feature") + ".offsetParent")
    click(browser, button.format("rate this feature"))
    until(browser, button.format("skip"), 30)
    said = "[...document.querySelectorAll('.desk .fc .mu')].some((e) => e.textContent === '{}')"
    before = next(k for k in range(1, 16) if browser.run(said.format(f"{k} of 15")))
    click(browser, button.format("3"))
    until(browser, said.format(f"{before + 1} of 15"), 10)


def test_live_desk_has_a_map_to_click(desk):
    browser, _ = desk
    if find_spec("anywidget") is None:
        pytest.skip("anywidget is not installed: the map is a picture")
    tab(browser, "Map")
    canvas = "document.querySelector('.desk canvas')"
    until(browser, f"{canvas} && {canvas}.offsetParent", 10)
    before = heading(browser)
    x, y, w = browser.run(
        f"(() => {{ const b = {canvas}.getBoundingClientRect(); return [b.x, b.y, b.width] }})()"
    )
    for k in range(40):  # some dot near the middle
        press(browser, x + w * (0.4 + 0.005 * k), y + w * 0.5)
        time.sleep(0.1)
        if heading(browser) != before:
            break
    h3 = "document.querySelector('.desk article h3').textContent"
    until(browser, f"{h3} !== {json.dumps(before)}")


def test_live_desk_is_light_or_dark_as_the_reader_wishes(desk):
    browser, _ = desk
    seen = {}
    for scheme in ("light", "dark"):  # changes under an open page
        wish = dict(name="prefers-color-scheme", value=scheme)
        browser.call("Emulation.setEmulatedMedia", features=[wish])
        light = json.dumps(str(scheme == "light").lower())
        until(browser, f"document.body.dataset.jpThemeLight === {light}")
        for what in ("body", ".desk article", ".desk .widget-toggle-buttons button"):
            paint = f"getComputedStyle(document.querySelector('{what}'))"
            found = [browser.run(f"{paint}.{k}") for k in ("color", "backgroundColor")]
            seen[scheme, what] = [sum(map(float, re.findall(r"[\d.]+", c)[:3])) for c in found]
    for (scheme, what), (ink, paper) in seen.items():
        assert (ink < paper) == (scheme == "light"), (scheme, what, ink, paper)
    browser.call("Emulation.setEmulatedMedia", features=[])


def test_live_desk_asks_no_other_host(desk):
    browser, address = desk
    own = address.split("?")[0]
    sent = [r for r in browser.requests() if not r.startswith((own, "data:", "blob:", "ws:"))]
    assert sent == []


def test_explore_says_in_one_line_what_is_wrong(capsys):
    assert main(["explore", "nowhere-at-all"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "holds no run" in said[0]
