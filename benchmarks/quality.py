"""Explained variance of trainers on the same activations of the workbook model, seen once, at the same k.

Each trainer at the learning rate that does best on validation documents, measured on other documents, over seeds. Activations are normalised alike for all (mean 0, mean square norm d).
    python benchmarks/quality.py --tokens 400000 --seeds 3 --json benchmarks/results/quality.json
"""
import argparse, json, time
from pathlib import Path

from common import version

GRID = {"ours": (1.0, 2.0, 4.0), "eai-sparsify": (0.5, 1.0, 2.0), "dictionary-learning": (2e-3, 4e-3, 8e-3), "sae-lens": (1e-3, 2e-3, 4e-3)} # ours, sparsify: times its own rule


def activations(tokens, file):
    "Training rows, validation rows and test rows: three sets of documents."
    import torch
    if file:
        a = torch.load(file, weights_only=True); held = a["held"]; half = len(held) // 2 # concepts, then docs, in document order
        return a["train"][:tokens], torch.cat([held[:half // 2], held[half:half + half // 2]]), torch.cat([held[half // 2:half], held[half + half // 2:]])
    from sae_notebooks.core import cache_path
    from sae_notebooks.extraction.activations import extract
    from sae_notebooks.extraction.corpus import open_corpus
    from sae_notebooks.extraction.language_model import load_model
    lm = load_model("workbook")
    def rows(split, n, spec):
        store = extract(lm, open_corpus(spec, split=split, seed=1), folder=cache_path(f"quality_{split}_{spec}_{n}"), fraction=1.0, tokens=n)
        return torch.cat([r.activations.float() for r in store.batches(4096)])
    train = rows("train", tokens, "concepts+docs")
    return train, rows("heldout", 40_000, "concepts"), rows("heldout", 40_000, "docs")


def ours(x, F, k, batch, rate, seed):
    from sae_notebooks.dictionaries.training import default_lr, preset, train
    import dataclasses
    c = preset("topk", n_features=F, k=k, batch=batch, seed=seed)
    c = dataclasses.replace(c, lr=rate * default_lr(c))
    sae = train(x, c)
    return lambda y: (lambda codes: (sae.decode(codes), codes.indices))(sae.encode(y))


def sparsify(x, F, k, batch, rate, seed):
    import torch
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder
    from sparsify.sign_sgd import SignSGD
    from schedulefree import ScheduleFreeWrapper
    torch.manual_seed(seed)
    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=F, k=k), dtype=torch.float32)
    opt = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=rate * 5e-3 / (F / 2**14) ** 0.5), momentum=0.95); opt.train()
    for part in x.split(batch):
        sae.set_decoder_norm_to_unit_norm()
        sae(x=part, y=part).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions(); opt.step(); opt.zero_grad()
    opt.eval()
    def run(y):
        out = [sae(x=p, y=p) for p in y.split(2048)]
        return torch.cat([o.sae_out for o in out]), torch.cat([o.latent_indices[o.latent_acts > 0] for o in out])
    return run


def dictionary_learning(x, F, k, batch, rate, seed):
    import torch
    from dictionary_learning.trainers.top_k import TopKTrainer
    steps = -(-len(x) // batch)
    t = TopKTrainer(steps=steps, activation_dim=x.shape[1], dict_size=F, k=k, layer=0, lm_name="none", lr=rate, device="cpu", warmup_steps=steps // 20, decay_start=int(0.8 * steps), threshold_start_step=steps, seed=seed)
    t.dead_feature_threshold = 100_000 # its 10 million rows would never be reached here
    for i, part in enumerate(x.split(batch)): t.update(i, part)
    def run(y):
        f = [t.ae.encode(p) for p in y.split(2048)]
        return torch.cat([t.ae.decode(p) for p in f]), torch.cat([p.nonzero()[:, 1] for p in f])
    return run


def saelens(x, F, k, batch, rate, seed):
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    torch.manual_seed(seed)
    steps = len(x) // batch
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=F, k=k))
    t = SAETrainer(SAETrainerConfig(total_training_samples=steps * batch, train_batch_size_samples=batch, lr=rate, lr_end=rate / 10, lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5, dead_feature_window=100_000 // batch), sae, iter(x.split(batch)))
    t.fit()
    def run(y):
        f = [sae.encode(p) for p in y.split(2048)]
        return torch.cat([sae.decode(p) for p in f]), torch.cat([p.nonzero()[:, 1] for p in f])
    return run


TRAINERS = {"ours": ours, "eai-sparsify": sparsify, "dictionary-learning": dictionary_learning, "sae-lens": saelens}


def judge(run, y, F):
    import torch
    with torch.no_grad(): y_hat, active = run(y)
    return dict(explained_variance=float(1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()), l0=len(active) / len(y), dead=float((torch.bincount(active.long(), minlength=F) == 0).float().mean()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 400_000), ("tune-tokens", 400_000), ("seeds", 3), ("features", 2048), ("k", 32), ("batch", 512), ("threads", 1)): p.add_argument("--" + name, type=int, default=default, help=f"default {default}")
    p.add_argument("--activations", help="a torch file with train and held, instead of extracting")
    p.add_argument("--trainer", action="append", choices=list(TRAINERS)); p.add_argument("--json")
    a = p.parse_args()
    import torch
    torch.set_num_threads(a.threads)
    train, val, test = activations(a.tokens, a.activations)
    mean = train.mean(0); scale = (train.shape[1] / (train - mean).square().sum(1).mean()).sqrt()
    train, val, test = ((r - mean) * scale for r in (train, val, test))
    file = Path(a.json) if a.json else None
    for name in a.trainer or list(TRAINERS):
        f, tuned, runs = TRAINERS[name], {}, []
        for rate in GRID[name]: tuned[rate] = judge(f(train[:a.tune_tokens], a.features, a.k, a.batch, rate, 0), val, a.features); print(name, rate, tuned[rate], flush=True)
        rate = max(tuned, key=lambda r: tuned[r]["explained_variance"])
        for seed in range(1, a.seeds + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            run = f(train, a.features, a.k, a.batch, rate, seed)
            runs.append(dict(seed=seed, rate=rate, wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, **judge(run, test, a.features))); print(name, runs[-1], flush=True)
        record = json.loads(file.read_text()) if file and file.exists() else dict(trainers={})
        record["trainers"][name] = dict(tuning={str(r): v for r, v in tuned.items()}, runs=runs)
        record |= dict(settings={k: v for k, v in vars(a).items() if k not in ("json", "activations", "trainer")}, versions={q: version(q) for q in ("torch", "sae-lens", "dictionary-learning", "eai-sparsify")})
        if file: file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__": main()
