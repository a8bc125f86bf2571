"""Chapter 93 says where every line of the notes runs: it must be true."""
import json, re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _notes_rows():
    cells = json.loads((ROOT / "nbs/appendix/93_notes.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    rows = [r.split("|")[1:-1] for r in text.splitlines() if r.startswith("| ") and ".ipynb" in r]
    return [[c.strip() for c in r] for r in rows]


def test_every_line_of_the_notes_names_what_runs():
    "Chapter 93: each row's chapters are there, and one of them exports each function it names."
    rows = _notes_rows()
    assert len(rows) > 40, "the notes have more than forty lines that ask for something"
    for row in rows:
        chapters = re.findall(r"\(\.\./([^)]+\.ipynb)\)", " ".join(row))
        names = re.findall(r"`(\w+)`", row[2]) if len(row) > 2 else []
        said = set()
        for chapter in chapters:
            path = ROOT / "nbs" / chapter
            assert path.exists(), f"{row[0]}: {chapter} is not there"
            module = re.search(r"#\|\s*default_exp ([\w.]+)", path.read_text())
            if module:
                source = ROOT / "sae_notebooks" / (module[1].replace(".", "/") + ".py")
                said |= set(re.findall(r"(?:def|class) (\w+)", source.read_text()))
        assert set(names) <= said, f"{row[0]}: {set(names) - said} is in none of {chapters}"
