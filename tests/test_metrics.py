"""Metrics against slow, obvious versions, and at their edges."""
import json, math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from sae_notebooks.core import WorkbookError
from sae_notebooks.dictionaries import metrics
from sae_notebooks.dictionaries.metrics import DEFINITIONS, evaluate, sequence_batches
from sae_notebooks.dictionaries.sae import SAE, load_sae
from sae_notebooks.extraction.activations import extract
from sae_notebooks.extraction.corpus import Corpus, ListSource, open_corpus, text_source
from sae_notebooks.extraction.language_model import LanguageModel, load_model


@pytest.fixture(scope="module")
def lm():
    return load_model("workbook")


@pytest.fixture(scope="module")
def sae():
    return load_sae("S")


@pytest.fixture
def encoder(tmp_path):
    "A tiny BERT with a context of 32 tokens."
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    return LanguageModel(BertModel(config), tokenizer, "tiny")


def test_an_encoders_long_documents_are_read_as_the_extraction_reads_them(encoder, tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 50, n)) for n in (10, 100, 75)]
    corpus = Corpus(text_source(*texts))
    site = "resid_post.0"
    store = extract(encoder, corpus, site, tmp_path / "s", fraction=1.0, dtype="float32", keep="all")
    found = 0
    for p in sequence_batches(encoder, corpus, math.inf):
        x = encoder.capture(p.ids, site, p.real.long())
        x = next(iter(x.values()))
        keep = p.own & ~p.special
        rows = store.find(p.document[keep], p.position[keep])
        kept = rows >= 0
        assert kept.any()
        there = torch.stack([store.rows(int(r)).activations[0] for r in rows[kept]])
        torch.testing.assert_close(x[keep][torch.from_numpy(kept)], there.float(), rtol=1e-5, atol=1e-5)
        found += int(kept.sum())
    assert found > 150


def test_the_head_on_known_hidden_states_is_the_models_own(lm):
    ids = torch.randint(3, 4000, (2, 30))
    with torch.no_grad():
        hidden = lm.body(input_ids=ids, use_cache=False).last_hidden_state
        logits = lm.model(input_ids=ids).logits
        got = metrics._logits(lm, hidden.flatten(0, 1))
    torch.testing.assert_close(got, logits.flatten(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lm.model(input_ids=ids).logits, logits)  # nothing stays behind


def test_losses_in_small_chunks_are_those_of_one_large_one(lm, sae, monkeypatch):
    corpus = open_corpus("concepts:300", split="heldout")
    whole = evaluate(sae, corpus, lm, tokens=1500, downstream=1500, replicates=0)
    monkeypatch.setattr(metrics, "LOGITS", 2 * 7 * lm.vocabulary)  # seven rows at a time
    parts = evaluate(sae, corpus, lm, tokens=1500, downstream=1500, replicates=0)
    for k in whole:
        assert parts[k] == pytest.approx(whole[k], rel=1e-4, abs=1e-5), k


def test_the_repeated_context_of_a_later_window_is_replaced_too(lm, sae):
    text = " ".join(d.text for d in open_corpus("concepts:300", split="heldout", limit=12))
    corpus = Corpus(text_source(text))
    context = 128
    batches = list(sequence_batches(lm, corpus, math.inf, context=context))
    assert sum(len(p.ids) for p in batches) > 3
    zero, n = 0.0, 0
    for p in batches:
        clean = lm.capture(p.ids, lm.middle)[lm.middle]
        new = torch.where(p.special[..., None], clean, 0.0)
        with lm.edited({lm.middle: lambda x: new}), torch.no_grad():
            surprisal = lm.token_losses(torch.cat([p.ids, p.ids[:, :1]], 1))[:, :-1]
        zero += float(surprisal[p.own[:, 1:]].sum())
        n += int(p.own[:, 1:].sum())
    ev = metrics.Evaluation(sae, 0)
    mean = metrics._mean_activation(lm, lm.middle, batches)
    for p in batches:
        metrics._pass(ev, lm, lm.middle, p, mean, False)
    assert ev.summary()["ce_zero"] == pytest.approx(zero / n, rel=1e-4)


def test_the_mean_of_the_mean_ablation_is_over_all_rows(lm):
    batches = list(sequence_batches(lm, open_corpus("concepts:300", split="heldout"), 9000))
    rows = [lm.capture(p.ids, lm.middle)[lm.middle][p.own & ~p.special] for p in batches]
    x = torch.cat(rows)
    assert len(x) > 5000  # far more than the 4096 rows that a sample would take
    mean = metrics._mean_activation(lm, lm.middle, batches)
    torch.testing.assert_close(mean, x.double().mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("documents", (1, 2, 4))
def test_few_documents_have_no_interval_and_never_nan(lm, sae, documents):
    corpus = open_corpus("concepts:300", split="heldout").but(limit=documents)
    m = evaluate(sae, corpus, lm, tokens=10**6, downstream=300)
    json.dumps(m, allow_nan=False)
    assert m["documents"] == documents
    assert "explained_variance_low" not in m
    assert "documents" in metrics.describe_metrics(m).index


def test_rows_with_nan_are_refused(sae):
    x = torch.randn(100, sae.d)
    x[3, 5] = float("nan")
    with pytest.raises(WorkbookError, match="NaN"):
        evaluate(sae, x)


def test_explained_variance_is_over_the_rows_that_are_kept():
    "With a limit: that of the kept rows alone, about their own mean; the definition says so."
    sae, x = load_sae("S"), torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    x = sae.mean + x / sae.scale
    x[::20] = 5 * x[::20] + 3
    sae.limit = float(x.norm(dim=1).quantile(0.9))
    keep = x.norm(dim=1) <= sae.limit
    m, kept = evaluate(sae, x), x[keep]
    want = 1 - float((kept - sae(kept)).square().sum() / (kept - kept.mean(0)).square().sum())
    assert m["explained_variance"] == pytest.approx(want, abs=1e-5)
    whole = 1 - float((kept - sae(kept)).square().sum() / (x - x.mean(0)).square().sum())
    assert abs(want - whole) > 0.02  # over every row it would be another number
    assert m["left_out"] == pytest.approx(float((~keep).float().mean()))
    assert "rows that are kept" in DEFINITIONS["explained_variance"]
