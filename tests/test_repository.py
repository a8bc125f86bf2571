"""The repository as a whole: what no single notebook can check."""
import ast, json, re, subprocess, sys
from pathlib import Path

import pytest, yaml

from sae_notebooks.core import sha256_of
from sae_notebooks.testing import book_notebooks, outputs_are_fresh, readme_text

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [p.relative_to(ROOT) for p in map(Path.absolute, book_notebooks())]
TRACKED = [ROOT/f for f in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_outputs_come_from_the_code_beside_them(path):
    assert outputs_are_fresh(ROOT/path), f"code changed since the last run: sae_workbook execute {path}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook_is_light_and_without_errors(path):
    assert (ROOT/path).stat().st_size < 1.5e6
    outputs = [o for c in json.loads((ROOT/path).read_text())["cells"] for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"]



def code_cells(path):
    cells = json.loads((ROOT/path).read_text())["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def long_lines(path):
    "Lines of code that do not fit the page; captions and other directives are not on it."
    lines = [l for source in code_cells(path) for l in source.split("\n")]
    return [l for l in lines if len(l) > 100 and not l.startswith("#|")]


def crowded_lines(source):
    "Lines with more than one statement: `a; b`, or `if a: b`."
    source = "\n".join("" if l.startswith(("%", "!")) else l for l in source.split("\n"))
    found = []
    for node in ast.walk(ast.parse(source)):
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if not isinstance(body, list):
                continue
            found += [b.lineno for a, b in zip(body, body[1:]) if a.end_lineno == b.lineno]
            if isinstance(node, ast.stmt) and body and body is node.body:
                found += [body[0].lineno] * (body[0].lineno == node.lineno)
    return found


def test_what_counts_as_crowded():
    assert crowded_lines("a = 1; b = 2") == [1]
    assert crowded_lines("if a: b") == [1]
    assert crowded_lines("x = lambda: 0\n%time x()\nif a:\n    b\nelse:\n    c") == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_code_fits_the_page_one_statement_a_line(path):
    assert not [n for source in code_cells(path) for n in crowded_lines(source)]
    assert not long_lines(path)


def test_the_rooms_of_chapter_12_are_small():
    rooms = ("addresses", "passes", "shards", "writing", "store", "activations")
    sizes = {r: len((ROOT/f"sae_notebooks/extraction/{r}.py").read_text().splitlines()) for r in rooms}
    assert max(sizes.values()) < 500, sizes


def test_sidebar_lists_every_notebook_once():
    sections = yaml.safe_load((ROOT/"_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    listed = [item for s in sections for item in (s["contents"] if isinstance(s, dict) else [s])]
    assert sorted(listed) == sorted(p.relative_to("nbs").as_posix() for p in NOTEBOOKS)


def test_quarto_configuration_is_one_file():
    assert (ROOT/"nbs/_quarto.yml").is_symlink() and (ROOT/"nbs/_quarto.yml").resolve() == ROOT/"_quarto.yml"


def test_readme_is_the_index_notebook():
    assert (ROOT/"README.md").read_text() == readme_text(ROOT/"nbs/index.ipynb")


def test_readme_names_existing_files():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT/"README.md").read_text())
    assert links and not [l for l in links if not (ROOT/l).exists()]


def test_data_readme_matches_the_files():
    rows = re.findall(r"^\| `([^`]+)` \|.*\| `([0-9a-f]{64})` \|", (ROOT/"data/README.md").read_text(), re.M)
    named = {path: digest for path, digest in rows}
    assert {p.name for p in (ROOT/"data").iterdir() if p.name != "README.md"} == {p.rstrip("/") for p in named}
    assert not {p: sha256_of(ROOT/"data"/p) for p, digest in named.items() if sha256_of(ROOT/"data"/p) != digest}


def test_data_is_small_enough():
    assert sum(p.stat().st_size for p in (ROOT/"data").rglob("*") if p.is_file()) < 100e6
    assert (ROOT/"data/workbook_model/model.safetensors").stat().st_size < 16e6


def test_nothing_is_pickled_in_data():
    assert not [p for p in (ROOT/"data").rglob("*") if p.suffix in {".pt", ".pkl", ".bin", ".pth", ".joblib"}]


def test_no_committed_file_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(?:work|tmp|root|home/\w+|Users/\w+)/[\w.-]+")
    text = {p: p.read_text("utf-8", errors="ignore") for p in TRACKED if p.suffix in {".py", ".ipynb", ".md", ".yml", ".toml", ".ini", ".txt", ".json", ".jsonl", ""} and p.is_file() and p != Path(__file__)}
    assert not {str(p): m[0] for p, t in text.items() if (m := pattern.search(t))}


def test_every_requirement_is_pinned():
    import tomllib
    project = tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [r for k, v in project["optional-dependencies"].items() if k != "bench" for r in v if not r.startswith("sae_notebooks")]
    pinned = {re.split(r"==", l)[0].lower().replace("_", "-") for l in (ROOT/"constraints.txt").read_text().splitlines() if "==" in l}
    assert not [r for r in wanted if re.match(r"[\w-]+", r)[0].lower().replace("_", "-") not in pinned]


def test_versions_agree():
    import sae_notebooks
    import tomllib
    assert sae_notebooks.__version__ == tomllib.loads((ROOT/"pyproject.toml").read_text())["project"]["version"]
    assert f"version = {sae_notebooks.__version__}" in (ROOT/"settings.ini").read_text()


def test_console_command_is_installed():
    run = subprocess.run([Path(sys.executable).parent/"sae_workbook", "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and all(c in run.stdout for c in ("run", "extract", "metrics", "report", "corpus", "train-model", "test"))


def test_parts_import_only_from_parts_before_them():
    order = ["extraction", "dictionaries", "reading", "intervening", "neuroscience", "atlas", "scale", "appendix"]
    seen = set()
    for path in (ROOT/"sae_notebooks").rglob("*.py"):
        part = path.parent.name
        if part not in order: continue
        used = set(re.findall(r"from (?:sae_notebooks|\.)\.(\w+)", path.read_text())) & set(order) # nbdev writes `from ..part`
        seen |= used
        assert all(order.index(u) <= order.index(part) for u in used), f"{path.name} in {part} imports {used}"
    assert {"extraction", "dictionaries"} <= seen, "no import between parts was found: the pattern no longer fits what nbdev writes"


def test_pictures_at_the_head_of_chapters_are_what_the_chapters_show():
    from pictures import outdated

    assert not outdated(), "run: python tests/pictures.py"
