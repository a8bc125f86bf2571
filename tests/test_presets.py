"""The preset gemma: which of two sources its weights come from, and the main job on it, tiny."""

import importlib.util
import json

import pytest

from sae_notebooks.cli import main
from sae_notebooks.core import WorkbookError, data_path
from sae_notebooks.extraction import language_model, presets
from sae_notebooks.extraction.language_model import load_model

STANDIN = str(data_path("workbook_model"))  # a small model in the place of Gemma's files


def installed(monkeypatch, found):
    "What a look for the package with the weights finds; other packages as they are."
    real = importlib.util.find_spec
    look = lambda name, *a: found if name == presets.GEMMA_PACKAGE else real(name, *a)
    monkeypatch.setattr(presets.importlib.util, "find_spec", look)


@pytest.fixture
def package(monkeypatch):
    "The package with the weights is there; unpacking it gives the stand-in."
    unpacked = []

    def once(folder, _):
        unpacked.append(folder.name)
        return STANDIN

    installed(monkeypatch, True)
    monkeypatch.setattr(presets, "build_once", once)
    return unpacked


def test_a_hub_copy_wins_over_the_package_and_the_name_says_so(package, monkeypatch):
    for module in (presets, language_model):
        monkeypatch.setattr(module, "GEMMA", STANDIN)
    monkeypatch.setattr(presets, "_hub_copy", lambda name: name)
    lm = load_model("gemma")
    assert repr(lm).startswith("gemma (the hub's weights)") and not package


def test_without_a_hub_copy_the_package_is_unpacked_and_the_name_says_so(package, monkeypatch):
    monkeypatch.setattr(presets, "_hub_copy", lambda name: None)
    lm = load_model("gemma")
    assert repr(lm).startswith("gemma (4-bit weights from a package, unpacked)")
    assert package == ["gemma-3-270m-dequantised"]


def test_with_neither_the_way_to_both_is_named(monkeypatch):
    installed(monkeypatch, None)
    monkeypatch.setattr(presets, "_hub_copy", lambda name: None)
    assert not presets.has_gemma()
    with pytest.raises(WorkbookError, match=r"\.\[gemma\].*--download"):
        load_model("gemma")


@pytest.mark.skipif(not presets.has_gemma(), reason="Gemma's weights are not on this machine")
def test_the_main_job_on_gemma(tmp_path, capsys):
    "A few hundred tokens through every stage, with the preset's own normalisation."
    numbers = dict(tokens=500, batch=64, features=128, k=8, shown=2)
    numbers |= {"eval-tokens": 200, "loss-tokens": 60, "feature-tokens": 200}
    options = [x for k, v in numbers.items() for x in (f"--{k}", str(v))]
    where = ["--corpus", "concepts:40", "--max-length", "64", "--out", str(tmp_path)]
    assert main(["run", "--preset", "gemma", *options, *where]) == 0
    out, m = capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())
    assert "resid_post.8" in out and "Gemma3" in out
    assert m["left_out"] is not None and m["l0"] <= 8  # chapter 13's rule came with the preset
    assert m["ce_zero"] > m["ce_clean"] and 0 < m["largest_dimension"] < 1
    assert json.loads((tmp_path / "sae/sae.json").read_text())["d"] == 640
    assert (tmp_path / "report.html").read_text("utf-8").count("<article class=fc") == 2
