"""The book as a reader meets it: rendered once, then looked at as files and, where there is one, in
a browser."""

import base64, json, re, time
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml")
from sae_notebooks.markup import chapter_map
from sae_notebooks.site import book, chapters, faults

ROOT = Path(__file__).resolve().parent.parent
SIZES = ((1400, 900), (390, 844))  # a desk and a telephone


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "site"
    started = time.time()
    made = book(folder, ROOT)
    return folder, made, time.time() - started


def test_every_chapter_has_a_page_and_can_be_downloaded(site):
    folder, made, seconds = site
    found = chapters(ROOT)
    assert made["pages"] == len(found) + 1 and seconds < 120
    for c in found:
        text = (folder / c.page).read_text("utf-8")
        assert "<h1 id=" in text and 'class="way"' in text
        assert (folder / c.path).read_bytes() == (ROOT / "nbs" / c.path).read_bytes()


def test_nothing_is_broken_missing_fetched_or_without_a_description(site):
    assert faults(site[0]) == []


def test_no_directive_and_no_raw_formula_is_left(site):
    for page in site[0].rglob("*.html"):
        text = page.read_text("utf-8")
        prose = re.sub(r"<pre.*?</pre>|<code.*?</code>|<math.*?</math>", "", text, flags=re.S)
        assert not re.search(r"^#\| ", text, re.M), page
        assert "$$" not in prose and not re.search(r"\$\\\w", prose), page
        results = re.findall(r'<pre class="out".*?</pre>', text, re.S)
        assert not [r for r in results if re.search(r"np\.(float|int)\d+\(", r)], page


def test_no_placeholder_is_left_in_a_chapter():
    left = {
        c.path: m[0]
        for c in chapters(ROOT)
        for cell in _cells(c.path)
        if cell["cell_type"] == "markdown"
        if (m := re.search(r"\b(FOUND|HEADLINE|TODO|XXX+|TBD)\b", "".join(cell["source"])))
    }
    assert not left


def test_the_search_knows_every_section(site):
    text = (site[0] / "book/index.js").read_text("utf-8")
    rows = json.loads(text.removeprefix("BOOK="))
    assert {page for page, *_ in rows} >= {c.page for c in chapters(ROOT)}
    for page, anchor, heading, words in rows:
        assert f'id="{anchor}"' in (site[0] / page).read_text("utf-8")


@pytest.mark.parametrize("width,height", SIZES)
def test_every_page_opens_in_a_browser(site, browser, width, height):
    wrong = []
    for page in sorted(site[0].rglob("*.html")):
        name = page.relative_to(site[0]).as_posix()
        browser.open(page.as_uri(), width, height, dark=width < 600)
        browser.run("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager' })")
        dead = browser.run(
            "Promise.all([...document.images].map((i) => i.decode().then(() => '', () => i.src)))"
            ".then((all) => all.filter(Boolean))"
        )
        wide = browser.run("document.documentElement.scrollWidth - innerWidth")
        away = [r for r in browser.requests() if not r.startswith(("file:", "data:"))]
        found = dict(errors=browser.errors(), pictures=dead, away=away, wide=max(wide, 0))
        wrong += [(name, k, v) for k, v in found.items() if v]
    assert wrong == []


def test_the_search_finds_a_term_and_leads_to_it(site, browser):
    browser.open((site[0] / "index.html").as_uri())
    field = "document.getElementById('find')"
    browser.run(f"{field}.value = 'superposition'; {field}.dispatchEvent(new Event('input'))")
    deadline = time.time() + 10
    while not browser.run("document.querySelectorAll('#hits a').length") and time.time() < deadline:
        time.sleep(0.05)
    first = browser.run("document.querySelector('#hits a').href")
    page, name = first.split("#")
    browser.open(page)
    assert browser.run(f"document.getElementById({json.dumps(name)}) !== null")
    assert browser.errors() == []


def test_light_and_dark_reach_the_cards(site, browser):
    page = next(p for p in site[0].rglob("31_examples.html")).as_uri()
    paper = "getComputedStyle(document.querySelector('.fc') || document.body).backgroundColor"
    seen = {}
    for dark in (False, True):  # what the system wishes
        browser.open(page, dark=dark)
        browser.run("localStorage.removeItem('theme'); paint(); 1")
        for pressed in (False, True):
            if pressed:
                browser.run("theme.click()")
            theme = browser.run("document.documentElement.dataset.theme")
            page_colour = browser.run("getComputedStyle(document.body).backgroundColor")
            seen.setdefault(theme, set()).add((page_colour, browser.run(paper)))
    browser.run("localStorage.removeItem('theme')")
    assert {t: len(v) for t, v in seen.items()} == {"light": 1, "dark": 1}, seen
    assert seen["light"] != seen["dark"]


def _cells(path):
    return json.loads((ROOT / "nbs" / path).read_text("utf-8"))["cells"]


def test_numbers_of_the_first_page_stand_in_their_chapters():
    texts = ["".join(c["source"]) for c in _cells("index.ipynb")]
    found = next(t for t in texts if "## What was found" in t)
    lines = re.findall(r"^- .*$", found, re.M)
    assert len(lines) >= 5
    for line in lines:
        path = re.search(r"\]\((\S+\.ipynb)\)", line)[1]
        said = json.dumps(_cells(path), ensure_ascii=False)
        claimed = re.sub(r"\]\([^)]*\)|chapter \w+", "", line)
        for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])", claimed):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", said), (path, number)


def test_the_map_and_the_first_picture_are_fresh():
    drawn = (ROOT / "nbs/images/map.svg").read_text("utf-8")
    assert drawn == chapter_map(chapters(ROOT)), "sae_notebooks.site.write_map() draws it anew"
    picture = (ROOT / "nbs/images/feature.png").read_bytes()
    shown = [
        base64.b64decode(o["data"]["image/png"])
        for c in _cells("05_what_is_a_feature.ipynb")
        for o in c.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert picture in shown, "images/feature.png is not a figure of chapter 05"
