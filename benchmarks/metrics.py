"""What the model loses, measured in two ways on the same text: every pass with all its logits, and the package's way,
which keeps hidden states and applies the head in chunks. One run; equal numbers; Gemma's vocabulary of 262 144.

    python benchmarks/metrics.py [--preset gemma] [--tokens 2000]     writes benchmarks/results/metrics.json
"""
import argparse, json, resource, time
from pathlib import Path

import torch, torch.nn.functional as F

from sae_notebooks.dictionaries import metrics
from sae_notebooks.dictionaries.sae import SAE
from sae_notebooks.extraction.corpus import open_corpus
from sae_notebooks.extraction.language_model import load_model


@torch.no_grad()
def obvious(lm, sae, site, batches, mean):
    "Four whole passes, each with its logits for every row, padding included."
    sums, n = {}, 0
    for p in batches:
        rows = p.own[:, 1:]
        seen = {}
        with lm.edited({site: lambda x: seen.update(x=x)}):
            clean = lm.model(input_ids=p.ids, use_cache=False).logits[:, :-1].float()
        x, here, target = seen["x"], p.real & ~p.special, p.ids[:, 1:, None]
        full = x.clone()
        full[here] = sae(x[here].float()).to(x)
        changes = dict(sae=full)
        changes["zero"] = torch.where(here[..., None], 0.0, x)
        changes["mean"] = torch.where(here[..., None], mean.to(x), x)
        base = F.log_softmax(clean, -1)
        found = dict(ce_clean=-base.gather(2, target)[..., 0])
        for k, new in changes.items():
            with lm.edited({site: lambda x: new}):
                logits = lm.model(input_ids=p.ids, use_cache=False).logits[:, :-1].float()
            logp = F.log_softmax(logits, -1)
            found[f"ce_{k}"] = -logp.gather(2, target)[..., 0]
            found[f"kl_{k}"] = (base.exp() * (base - logp)).sum(-1)
        for k, v in found.items():
            sums[k] = sums.get(k, 0.0) + float(v[rows].double().sum())
        n += int(rows.sum())
    return {k: v / n for k, v in sums.items()}


def package(lm, sae, site, batches, mean):
    ev = metrics.Evaluation(sae, 0)
    for p in batches:
        metrics._pass(ev, lm, site, p, mean, False)
    return ev.summary()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gemma")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--dtype", default="float32")
    a = parser.parse_args()
    lm = load_model(a.preset, a.dtype)
    sae = SAE(lm.width, 1024, "topk", 32).initialise(0)  # any dictionary will do for a time
    corpus = open_corpus("docs+concepts", split="heldout")
    batches = list(metrics.sequence_batches(lm, corpus, a.tokens, context=1024))
    mean = metrics._mean_activation(lm, lm.middle, batches)
    result = dict(preset=a.preset, dtype=a.dtype, tokens=sum(int(p.own.sum()) for p in batches))
    for name, way in (("package", package), ("obvious", obvious)):
        started, cpu = time.time(), time.process_time()
        out = way(lm, sae, lm.middle, batches, mean)
        result[name] = dict(seconds=time.time() - started, cpu_seconds=time.process_time() - cpu,
                            peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        result[name]["values"] = {k: out[k] for k in out if k.startswith(("ce_", "kl_")) and "recovered" not in k and k != "ce_tokens" and not k.endswith(("_low", "_high"))}
    pairs = [(v, result["package"]["values"][k]) for k, v in result["obvious"]["values"].items()]
    result["largest_relative_difference"] = max(abs(a_ - b) / max(abs(a_), 1e-9) for a_, b in pairs)
    result["speedup"] = result["obvious"]["cpu_seconds"] / result["package"]["cpu_seconds"]
    path = Path(__file__).parent / "results" / "metrics.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("speedup", "largest_relative_difference", "tokens")}))
    print({k: result[k]["seconds"] for k in ("package", "obvious")}, {k: result[k]["peak_gb"] for k in ("package", "obvious")})


if __name__ == "__main__":
    main()
