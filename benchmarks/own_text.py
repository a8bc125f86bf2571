"""Does text that Gemma writes make a better dictionary? Two dictionaries on equally many rows, with and without it,
judged on held-out text of three kinds. Needs the texts of `self:gemma`; with them about eight minutes on two cores.

    python benchmarks/own_text.py        writes benchmarks/results/own_text.json
"""
import argparse, json, time
from pathlib import Path

import numpy as np
import torch, torch.nn.functional as F

from sae_notebooks.core import cache_path
from sae_notebooks.dictionaries.objectives import TrainConfig
from sae_notebooks.dictionaries.training import train
from sae_notebooks.extraction.activations import extract
from sae_notebooks.extraction.concepts import describe
from sae_notebooks.extraction.corpus import Corpus, ListSource, open_corpus
from sae_notebooks.extraction.language_model import load_model
from sae_notebooks.extraction.own_text import own_text_folder, write_texts

KINDS = ("docs", "concepts", "self:gemma")


def rows(lm, corpus, split, tokens):
    "Activations of the middle layer, shuffled, without special tokens."
    folder = cache_path("own_text", f"{corpus.replace(':', '-')}-{split}-{tokens}")
    store = extract(lm, open_corpus(corpus, split=split), None, folder, fraction=1.0, tokens=tokens)
    parts = store.batches(8192, partial=True)
    return torch.cat([r.activations.float()[~store.special(r.token)] for r in parts])


def dictionary(x, seed):
    "Trained on standardised rows, those of more than three times the median norm left out."
    norm = x.norm(dim=1)
    x = x[norm <= 3 * norm.median()]
    mean, std = x.mean(0), x.std(0)
    sae = train((x - mean) / std, TrainConfig("topk", 2048, 32, lr=3e-3, batch=1024, seed=seed))
    limit = 3 * float(norm.median())

    def rebuild(y):  # rows that were left out stay as they are
        out = sae((y - mean) / std) * std + mean
        return torch.where(y.norm(dim=1, keepdim=True) <= limit, out, y)

    return rebuild, mean


@torch.no_grad()
def losses(lm, corpus, tokens, rebuilds, mean):
    "Loss of each document: clean, with the layer's mean in its place, and rebuilt."
    out, seen = [], 0
    for d in open_corpus(corpus, split="heldout"):
        ids = torch.from_numpy(lm.encode([d.text])[0].ids)[None, :256]
        if ids.shape[1] < 16:
            continue

        def swap(f):
            def change(x):
                new = x.clone()
                new[0, 1:] = f(x[0, 1:].float()).to(x)
                return new

            with lm.edited({lm.middle: change}):
                return float(lm.token_losses(ids).sum())

        row = dict(n=ids.shape[1] - 1, clean=float(lm.token_losses(ids).sum()))
        row["mean"] = swap(lambda x: mean.expand_as(x))
        row |= {k: swap(f) for k, f in rebuilds.items()}
        out.append(row)
        seen += ids.shape[1]
        if seen >= tokens:
            break
    return out


def recovered(table, name, replicates=1000, seed=0):
    "Share of the loss that is given back, and its 95 % interval over documents."
    v = {k: np.array([r[k] for r in table]) for k in ("clean", "mean", name)}
    share = lambda i: float((v["mean"][i].sum() - v[name][i].sum()) / (v["mean"][i].sum() - v["clean"][i].sum()))
    rng, n = np.random.default_rng(seed), len(table)
    drawn = [share(rng.integers(0, n, n)) for _ in range(replicates)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return dict(value=share(np.arange(n)), low=float(low), high=float(high), documents=n)


def speed(lm):
    "Tokens a second that it writes, in one batch."
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        started = time.time()
        texts = write_texts(lm, d, tokens=2000, size=32, length=80)
    return sum(t["tokens"] for t in texts) / (time.time() - started)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=200_000, help="training rows of each dictionary")
    p.add_argument("--judge", type=int, default=6_000, help="held-out tokens of each kind")
    a = p.parse_args()
    lm = load_model("gemma", "bfloat16")
    result = dict(rows=a.rows, features=2048, k=32, written_per_second=speed(lm))
    both, own = rows(lm, "docs+concepts", "train", a.rows), rows(lm, "self:gemma", "train", a.rows // 2)
    n = min(len(both), 2 * len(own))
    train_on = dict(without=both[:n], half=torch.cat([both[: n // 2], own[: n - n // 2]]))
    rebuilds = {}
    for name, x in train_on.items():
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
        rebuilds[name], mean = dictionary(x, seed=0)
    result["rows"] = n
    result["recovered"] = {}
    for kind in KINDS:
        table = losses(lm, kind, a.judge, rebuilds, mean)
        result["recovered"][kind] = {name: recovered(table, name) for name in rebuilds}
        result["recovered"][kind]["ce_clean"] = sum(r["clean"] for r in table) / sum(r["n"] for r in table)
        print(kind, result["recovered"][kind], flush=True)
    texts = write_texts(None, own_text_folder("gemma"))
    result["tokens"] = sum(t["tokens"] for t in texts)
    variety = {}
    words = lambda text: len(text.split())
    for kind in KINDS:
        docs, size = [], 0
        for d in open_corpus(kind):
            docs.append(d)
            size += words(d.text)
            if size > 100_000:
                break
        variety[kind] = describe(Corpus(ListSource(kind, docs)), words)["variety"]
    result["variety"] = variety
    path = Path(__file__).parent / "results" / "own_text.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
