"""What to normalise on a real language model: dictionaries of Gemma on the same rows, one change at a time.

Each is judged on held-out text by what the model loses, by explained variance in two units, by dead features, and by
how well its best features know the labelled concepts. Two sites. About a quarter of an hour on two cores.

    python benchmarks/normalisation.py        writes benchmarks/results/normalisation_gemma.json; resumes
"""
import argparse, json, time
from pathlib import Path

import numpy as np
import torch

from sae_notebooks.core import cache_path
from sae_notebooks.dictionaries import detection, metrics, truth
from sae_notebooks.dictionaries.objectives import TrainConfig
from sae_notebooks.dictionaries.training import train
from sae_notebooks.extraction.activations import Store, extract
from sae_notebooks.extraction.corpus import open_corpus
from sae_notebooks.extraction.language_model import load_model

CORPUS, SITES = "docs+concepts", ("resid_post.8", "resid_post.14")
WAYS = {  # name → settings
    "one scalar": dict(centre=False),
    "mean and scalar": {},
    "long rows left out": dict(leave_out=3.0),
    "long rows left out, wide dimensions narrowed": dict(leave_out=3.0, spread="wide"),
    "long rows left out, all dimensions of one width": dict(leave_out=3.0, spread="all"),
}
KEEP = (
    "explained_variance", "explained_variance_standardised", "largest_dimension", "dead_fraction", "dead_tokens", "l0",
    "left_out", "ce_recovered_mean", "kl_recovered_mean", "ce_clean", "ce_sae", "ce_mean", "kl_sae", "kl_mean", "ce_tokens",
)


def knows(lm, saes, tokens, seeds=5):
    "Mean over concepts of the best feature's AUROC, chosen on half of the documents, and its spread over halves."
    corpus = open_corpus("concepts", split="heldout")
    text = truth.label_text(lm, corpus, tokens)
    out = {}
    for name, got in truth.collect(lm, corpus, text, saes, by_token=False, neurons=False).items():
        means = []
        for seed in range(seeds):
            half = detection.choosing_half(text.document, seed)
            enough = np.minimum(*(np.asarray(text.units[h].sum(0)).ravel() for h in (half, ~half))) >= 10
            a, b = (
                detection.detection(detection.take_rows(got.features, h), text.units[h], full=False)["auroc"]
                for h in (half, ~half)
            )
            means.append(float(b[a.argmax(0), np.arange(len(enough))][enough].mean()))
        out[name] = dict(auroc=float(np.mean(means)), auroc_sd=float(np.std(means, ddof=1)), concepts=int(enough.sum()))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--folder", help="a store that is there already")
    a = parser.parse_args()
    path = Path(__file__).parent / "results" / "normalisation_gemma.json"
    fast, folder = load_model("gemma", "bfloat16"), Path(a.folder or cache_path("stores", f"normalisation-{a.rows}"))
    if not a.folder:
        extract(fast, open_corpus(CORPUS, split="train"), SITES, folder, fraction=1.0, tokens=a.rows)
    stores, lm = {s: Store(folder, s) for s in SITES}, load_model("gemma")
    result = json.loads(path.read_text()) if path.exists() else dict(rows=a.rows, features=a.features, k=32, sites={})
    for site, store in stores.items():
        done, saes = result["sites"].setdefault(site, {}), {}
        parts = [r.activations.float()[~store.special(r.token)] for r in store.batches(8192, partial=True)]
        x = torch.cat(parts)[: a.rows]
        norm = x.norm(dim=1)
        result.setdefault("norms", {})[site] = dict(
            median=float(norm.median()),
            beyond={str(c): float((norm > c * norm.median()).float().mean()) for c in (1.5, 2, 3, 5, 8, 12)},
        )
        for name, how in WAYS.items():
            if name in done:
                continue
            started = time.time()
            config = TrainConfig("topk", a.features, 32, lr=2.2e-3, batch=512, **how)
            sae = train(x, config, meta=dict(site=site))
            seconds = time.time() - started
            m = metrics.evaluate(sae, open_corpus(CORPUS, split="heldout"), lm, tokens=a.tokens, downstream=a.tokens // 2)
            kept = {k: m[k] for k in m if k.removesuffix("_low").removesuffix("_high") in KEEP}
            done[name] = kept | dict(seconds=seconds) | knows(fast, {name: sae}, 15_000)[name]
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(site, name, {k: round(v, 4) for k, v in done[name].items() if "_low" not in k and "_high" not in k}, flush=True)


if __name__ == "__main__":
    main()
