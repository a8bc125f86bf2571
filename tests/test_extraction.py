"""Chapter 12's stores under bad luck: kills, full disks, locks, damage, wrong arguments."""

import json, os, resource, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_notebooks.core import WorkbookError, sha256_of
from sae_notebooks.extraction.activations import extract
from sae_notebooks.extraction.corpus import Corpus, open_corpus, text_source
from sae_notebooks.extraction.language_model import LanguageModel, load_model
from sae_notebooks.extraction.passes import tokenised
from sae_notebooks.extraction.shards import _lock
from sae_notebooks.extraction.store import Store

HERE = Path(__file__).resolve().parent
SITE = "resid_post.0"
HOW = dict(fraction=0.3, buckets=16)


@pytest.fixture(scope="module")
def lm():
    return load_model("workbook")


def small(lm, seed=0):
    "A Llama of two layers and 16 dimensions, which asks the same questions of the store."
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(lm.tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    return LanguageModel(LlamaForCausalLM(config), lm.tokenizer, "toy")


@pytest.fixture(scope="module")
def toy(lm):
    return small(lm)


@pytest.fixture(scope="module")
def some():
    return open_corpus("concepts:120", seed=0)


@pytest.fixture(scope="module")
def few():
    return open_corpus("concepts:12", seed=0)


@pytest.fixture(scope="module")
def finished(toy, some, tmp_path_factory):
    "The folder of a finished store; not to be changed."
    folder = tmp_path_factory.mktemp("finished") / "store"
    extract(toy, some, SITE, folder, **HOW)
    return folder


def says(f):
    with pytest.raises(WorkbookError) as caught:
        f()
    return str(caught.value)


# Refusals: the value, the file, and a way out


@pytest.mark.parametrize(
    "changed, named",
    [
        (dict(fraction=0.2), ["fraction=0.3 (now 0.2)", "meta.json", "Use another folder"]),
        (dict(sites="resid_post.1"), ["sites.resid_post.1"]),
        (dict(model="other"), ["model.fingerprint"]),
        (dict(corpus="few"), ["corpus.documents=120 (now 12)"]),
        (dict(keep="most"), ["keep='most'", "sample, all"]),
        (dict(fraction=3), ["fraction=3", "at most 1"]),
        (dict(buckets=3), ["buckets=3", "power of two"]),
        (dict(sites="resid_post.9"), ["resid_post.9"]),
    ],
)
def test_another_meaning_or_a_wrong_argument_is_refused(
    changed, named, lm, toy, some, few, finished
):
    model = small(lm, seed=1) if changed.get("model") else toy
    corpus = few if changed.get("corpus") else some
    site = changed.get("sites", SITE)
    how = {**HOW, **{k: v for k, v in changed.items() if k not in ("model", "corpus", "sites")}}
    before = sha256_of(finished)
    message = says(lambda: extract(model, corpus, site, finished, **how))
    assert all(word in message for word in named), message
    assert sha256_of(finished) == before


def test_a_store_that_does_not_fit_the_question_is_refused(lm, toy, finished, tmp_path):
    two = tmp_path / "two"
    extract(toy, Corpus(text_source("One two three.")), [SITE, "resid_post.1"], two)
    cases = {
        "resid_post.0": lambda: Store(finished, "resid_pre.0"),
        "keep='all'": lambda: Store(finished, part="all"),
        "fingerprint": lambda: Store(finished, model=small(lm, seed=1)),
        "no such folder": lambda: Store(tmp_path / "nowhere"),
        "this is no store": lambda: Store(tmp_path),
        "name one of resid_post.0, resid_post.1": lambda: Store(two),
        "use 'sample' or 'all'": lambda: Store(finished, part="some"),
    }
    for named, opened in cases.items():
        message = says(opened)
        assert named in message, message


def test_a_finished_store_is_simply_opened(toy, some, finished):
    assert len(extract(toy, some, SITE, finished, **HOW)) == len(Store(finished))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "named, harm",
    [
        ("sample-000001.safetensors", lambda s: cut(s / "sample-000001.safetensors")),
        ("sample-000000.safetensors", lambda s: (s / "sample-000000.safetensors").unlink()),
        ("meta.json", lambda s: (s / "meta.json").write_text("{")),
        ("meta.json", lambda s: (s / "meta.json").write_text('{"format": 1}')),
        ("mean.safetensors", lambda s: cut(s / "mean.safetensors")),
        ("meta.json", lambda s: s.rename(s.parent / "resid_post.1")),
    ],
    ids=["cut", "missing", "not JSON", "incomplete", "mean cut", "renamed"],
)
def test_a_damaged_store_names_the_file(named, harm, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "store")
    harm(tmp_path / "store" / SITE)
    message = says(lambda: list(Store(tmp_path / "store").batches(partial=True)))
    assert named in message


def test_a_number_of_tokens_ends_with_the_document_that_reaches_it(toy, tmp_path):
    many = open_corpus("concepts:600", seed=0)
    store = extract(toy, many, SITE, tmp_path / "s", tokens=5000, group=1000)
    n = np.cumsum([len(d.ids) for d in tokenised(toy, many)])
    assert store.meta["counts"]["tokens"] == n[np.searchsorted(n, 5000)]


# Trouble on the way


def test_nan_in_the_model_names_the_document_and_makes_no_store(toy, few, tmp_path):
    def spoil(x):
        there = torch.arange(x.shape[1])[None, :, None] == 40
        return torch.where(there, torch.nan, x)

    with toy.edited({SITE: spoil}):
        message = says(lambda: extract(toy, few, SITE, tmp_path / "nan", fraction=1.0))
    assert "position 40" in message and "nan" in message and "document 'train:" in message
    assert "not finished" in says(lambda: Store(tmp_path / "nan"))


def test_after_a_full_disk_the_run_goes_on_to_the_same_bytes(toy, some, tmp_path):
    "The system refuses to let any file grow above 20 kB, as a full disk would."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    how = dict(fraction=0.5, buckets=4, group=2048, token_budget=2048)
    full, empty = tmp_path / "full", tmp_path / "empty"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        message = says(lambda: extract(toy, some, SITE, full, **how))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "bucket" in message and "disk is full" in message
    extract(toy, some, SITE, full, **how)
    extract(toy, some, SITE, empty, **how)
    assert sha256_of(full) == sha256_of(empty)


def test_a_second_process_on_the_same_part_is_turned_away(toy, few, tmp_path):
    work = tmp_path / "busy" / ".work" / "0"
    work.mkdir(parents=True)
    held = _lock(work / "lock", wait=False)
    message = says(lambda: extract(toy, few, SITE, tmp_path / "busy"))
    assert "another process" in message
    held.close()
    assert len(extract(toy, few, SITE, tmp_path / "busy")) > 0


# Processes


def in_a_process(script, *args, seconds=300):
    "Run a script in a fresh process, for so long at most; what it prints last is JSON."
    one = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "SAE_NOTEBOOKS_QUIET")
    env = {**os.environ, **dict.fromkeys(one, "1"), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(script), *map(str, args)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_killed_runs_end_with_the_bytes_of_a_calm_one(tmp_path):
    killed = in_a_process(HERE / "kill_extraction.py", "crash", tmp_path, 0, 24)
    assert killed["kills"] >= 20
    assert killed["in_a_write"] > 0


@pytest.mark.skipif("SAE_NOTEBOOKS_SLOW" not in os.environ, reason="SAE_NOTEBOOKS_SLOW is not set")
def test_many_more_kills(tmp_path):
    in_a_process(HERE / "kill_extraction.py", "crash", tmp_path, 1, 200, seconds=1200)


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    small, _, large = in_a_process(HERE / "kill_extraction.py", "memory", tmp_path)
    grown = {k: large[k] - small[k] for k in small}
    assert grown["memory_MB"] < 0.25 * grown["store_MB"]


def test_more_processes_than_documents_do_no_harm(toy, tmp_path):
    for rank in range(5):
        corpus = Corpus(text_source("One.", "Two."), rank=rank, world=5)
        store = extract(toy, corpus, SITE, tmp_path / "five", fraction=1.0)
    assert len(store.documents) == 2
    assert len(store) > 0


TORCHRUN = """
import sys
from sae_notebooks.extraction.activations import extract, process_share
from sae_notebooks.extraction.corpus import open_corpus
from sae_notebooks.extraction.language_model import load_model

corpus = open_corpus("concepts:24", **process_share())
extract(load_model("workbook"), corpus, None, sys.argv[1], fraction=0.5, keep="all")
"""


def test_torchrun_makes_the_rows_of_a_single_process(lm, tmp_path):
    (tmp_path / "ranks.py").write_text(TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += [str(tmp_path / "ranks.py"), str(tmp_path / "ranks")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]

    corpus = open_corpus("concepts:24")
    one = extract(lm, corpus, None, tmp_path / "single", fraction=0.5, keep="all")
    two = Store(tmp_path / "ranks")
    a, b = two.rows(np.arange(len(two))), one.rows(np.arange(len(one)))
    for k in ("document", "position", "token"):
        assert torch.equal(getattr(a, k), getattr(b, k))
    near = dict(rtol=1e-2, atol=1e-2)  # batches differ, and so last bits
    torch.testing.assert_close(a.activations.float(), b.activations.float(), **near)

    def addresses(folder):
        store = Store(folder, part="all")
        rows = store.rows(np.arange(len(store)))
        return set(zip(rows.document.tolist(), rows.position.tolist()))

    assert addresses(tmp_path / "ranks") == addresses(tmp_path / "single")
