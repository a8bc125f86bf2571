"""Chapter 30's stores under bad luck: kills in the middle of a write, and memory;
and the rows that a dictionary leaves out, in stores and in search."""

import json, os, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_notebooks.dictionaries.sae import load_sae
from sae_notebooks.extraction.corpus import Corpus, text_source
from sae_notebooks.extraction.language_model import as_site, load_model
from sae_notebooks.reading.building import build_store
from sae_notebooks.reading.search import by_prompts, excite, search

HERE = Path(__file__).resolve().parent


def helper(*args, seconds=240):
    "Run kill_features.py in an interpreter of its own, and take its last line."
    run = subprocess.run(
        [sys.executable, HERE / "kill_features.py", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_killed_builds_end_with_the_bytes_of_a_calm_one(tmp_path):
    "One and two processes, at random moments or in a random write; the script compares the bytes."
    killed = helper("crash", tmp_path, 0, 24)
    assert killed["kills"] >= 24 and killed["in_a_write"] >= 5


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    "Sixteen times the documents; memory is a buffer, and what the system lends for mapped files."
    few, _, many = helper("memory", tmp_path)
    grown = {k: many[k] - few[k] for k in ("store_MB", "memory_MB")}
    assert grown["store_MB"] > 30
    assert grown["memory_MB"] < 0.25 * grown["store_MB"]


TEXT = "The soup in Camden was cold, and the waiter of the old place by the canal was rude."


@pytest.fixture(scope="module")
def limited():
    "The workbook model, a dictionary that leaves out the longer half of a text's rows, the whole."
    lm, whole, sae = load_model(), load_sae("S"), load_sae("S")
    (e,) = lm.encode([TEXT])
    x = lm.capture(torch.from_numpy(e.ids)[None], sae.meta["site"])[as_site(sae.meta["site"])][0]
    sae.limit = float(x[torch.from_numpy(~e.special)].norm(dim=1).median())
    return lm, sae, whole, x


def test_a_store_counts_the_rows_that_it_leaves_out(limited, tmp_path):
    lm, sae, whole, x = limited
    corpus = lambda: Corpus(text_source(TEXT, TEXT), None)
    store = build_store(sae, lm, corpus(), tmp_path / "limited")
    (e,) = lm.encode([TEXT])
    out = 2 * int((x[torch.from_numpy(~e.special)].norm(dim=1) > sae.limit).sum())
    assert 0 < out < store.text_tokens
    assert store.meta["counts"]["left_out"] == out
    assert f"{out} beyond its limit left out" in repr(store)
    empty = (np.diff(store.row_ends) == 0).sum() - store.meta["counts"]["specials"]
    assert empty == out  # with TopK, a row without a feature is one that was left out
    plain = build_store(whole, lm, corpus(), tmp_path / "whole")
    assert "left_out" not in plain.meta["counts"] and "left out" not in repr(plain)


def test_search_reads_no_row_beyond_the_limit(limited, tmp_path):
    lm, sae, whole, x = limited
    keep = sae.keeps(x) & torch.from_numpy(~lm.encode([TEXT])[0].special)
    codes = whole.encode(x[keep]).dense().numpy()  # without a limit, on the kept rows alone
    found = excite(lm, sae, TEXT)
    assert found.features.tolist() == np.flatnonzero(codes.max(0) > 0).tolist()
    np.testing.assert_allclose(found.values, codes.max(0)[found.features], rtol=1e-4, atol=1e-4)
    assert set(excite(lm, whole, TEXT).features) > set(found.features)
    store = build_store(sae, lm, Corpus(text_source(TEXT, TEXT), None), tmp_path / "store")
    evidence = by_prompts(store, [found])
    for m in search(store, lm, sae, prompts=[TEXT], n=5):
        assert m.feature in found.features and np.isfinite(evidence.score[m.feature])
