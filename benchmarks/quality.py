"""Explained variance of trainers on the same activations of the workbook model, seen once, at the same k.

Each trainer at the learning rate that does best on validation documents, measured on other documents, over seeds. Activations are normalised alike for all (mean 0, mean square norm d).
    python benchmarks/quality.py --tokens 400000 --seeds 3 --json benchmarks/results/quality.json
"""
import argparse, json, time
from pathlib import Path

from common import version

GRID = {"ours": (1.0, 1.5, 2.0, 3.0), "eai-sparsify": (0.0625, 0.125, 0.25, 0.5), "dictionary-learning": (2e-3, 3e-3, 4e-3, 6e-3), "sae-lens": (2e-3, 3e-3, 4e-3, 6e-3)} # ours, sparsify: times its own rule


def activations(tokens):
    "Training rows; and of held-out documents every other one's rows for validation, the others' for the test."
    import torch
    from sae_notebooks.core import cache_path
    from sae_notebooks.extraction.activations import extract, fingerprint
    from sae_notebooks.extraction.corpus import open_corpus
    from sae_notebooks.extraction.language_model import load_model
    lm = load_model("workbook")
    def rows(split, n):
        store = extract(lm, open_corpus("concepts+docs", split=split, seed=1), folder=cache_path("stores", f"quality-{fingerprint(lm)[:8]}-{split}-{n}"), fraction=1.0, tokens=n)
        parts = [(r.activations.float(), r.document) for r in store.batches(4096)]
        return torch.cat([x for x, _ in parts]), torch.cat([torch.as_tensor(d) for _, d in parts])
    (train, _), (held, document) = rows("train", tokens), rows("heldout", 80_000)
    return train, held[document % 2 == 0], held[document % 2 == 1]


def ours(x, F, k, batch, rate, seed):
    import dataclasses
    from sae_notebooks.dictionaries.training import Trainer, stream
    from sae_notebooks.dictionaries.objectives import default_lr, preset
    from sae_notebooks.extraction.normalisation import scale_and_mean
    c = preset("topk", n_features=F, k=k, batch=batch, seed=seed)
    c = dataclasses.replace(c, lr=rate * default_lr(c))
    t = Trainer(c, x.shape[1], len(x) // batch, *scale_and_mean(x))
    def run(y):
        sae = t.finished(); codes = sae.encode(y)
        return sae.decode(codes), codes.indices
    for part, _ in stream(x, batch, len(x) // batch, 0, seed): t.train_step(part); yield run


def sparsify(x, F, k, batch, rate, seed):
    import torch
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder
    from sparsify.sign_sgd import SignSGD
    from schedulefree import ScheduleFreeWrapper
    torch.manual_seed(seed)
    sae = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=F, k=k), dtype=torch.float32)
    opt = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=rate * 5e-3 / (F / 2**14) ** 0.5), momentum=0.95); opt.train()
    def run(y):
        opt.eval() # its running average of the weights
        out = [sae(x=p, y=p) for p in y.split(2048)]
        opt.train()
        return torch.cat([o.sae_out for o in out]), torch.cat([o.latent_indices[o.latent_acts > 0] for o in out])
    for part in x[:len(x) // batch * batch].split(batch):
        sae.set_decoder_norm_to_unit_norm()
        sae(x=part, y=part).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions(); opt.step(); opt.zero_grad()
        yield run


def dense(sae):
    "How a dictionary with dense codes is judged."
    import torch
    def run(y):
        f = [sae.encode(p) for p in y.split(2048)]
        return torch.cat([sae.decode(p) for p in f]), torch.cat([p.nonzero()[:, 1] for p in f])
    return run


def dictionary_learning(x, F, k, batch, rate, seed):
    from dictionary_learning.trainers.top_k import TopKTrainer
    steps = len(x) // batch
    t = TopKTrainer(steps=steps, activation_dim=x.shape[1], dict_size=F, k=k, layer=0, lm_name="none", lr=rate, device="cpu", warmup_steps=steps // 20, decay_start=int(0.8 * steps), threshold_start_step=steps, seed=seed)
    t.dead_feature_threshold = 100_000 # its 10 million rows would never be reached here
    for i, part in enumerate(x[:steps * batch].split(batch)): t.update(i, part); yield dense(t.ae)


def saelens(x, F, k, batch, rate, seed):
    import torch
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    torch.manual_seed(seed)
    steps = len(x) // batch
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=F, k=k))
    t = SAETrainer(SAETrainerConfig(total_training_samples=steps * batch, train_batch_size_samples=batch, lr=rate, lr_end=rate / 10, lr_warm_up_steps=steps // 20, lr_decay_steps=steps // 5, dead_feature_window=100_000 // batch), sae, iter([]))
    for part in x[:steps * batch].split(batch): t.step(part); yield dense(sae)


TRAINERS = {"ours": ours, "eai-sparsify": sparsify, "dictionary-learning": dictionary_learning, "sae-lens": saelens}


def judge(run, y, F):
    import torch
    with torch.no_grad(): y_hat, active = run(y)
    return dict(explained_variance=float(1 - (y - y_hat).square().sum() / (y - y.mean(0)).square().sum()), l0=len(active) / len(y), dead=float((torch.bincount(active.long(), minlength=F) == 0).float().mean()))


def course(trainer, steps, y=None, F=0, looks=16):
    "Train to the end; what it has come to on rows `y` at some steps, and the CPU and wall seconds of training alone until then."
    marks = {round(steps * (i / looks) ** 2) for i in range(2, looks + 1)} if y is not None else set()
    cpu = wall = 0.0; curve = []
    for step in range(1, steps + 1):
        c, w = time.process_time(), time.perf_counter()
        run = next(trainer)
        cpu, wall = cpu + time.process_time() - c, wall + time.perf_counter() - w
        if step in marks: curve.append(dict(step=step, cpu=cpu, wall=wall, explained_variance=judge(run, y, F)["explained_variance"]))
    return run, cpu, wall, curve


def seconds_to(curve, level, clock):
    "When a curve first reaches a level, between two looks along a straight line; None if it never does."
    for a, b in zip([dict(explained_variance=0.0, **{clock: 0.0}), *curve], curve):
        if b["explained_variance"] >= level:
            share = (level - a["explained_variance"]) / (b["explained_variance"] - a["explained_variance"])
            return a[clock] + share * (b[clock] - a[clock])
    return None


def figures(trainers, clock="cpu"):
    "Explained variance over the best peer's, dead features, and the time to the level that all trainers reach, and to that of the best peer, as shares of the fastest peer's."
    from statistics import mean
    ev = {n: mean(r["explained_variance"] for r in t["runs"]) for n, t in trainers.items()}
    out, peers = {"dead": mean(r["dead"] for r in trainers["ours"]["runs"])}, [n for n in trainers if n != "ours"]
    if not peers: return out
    out["explained_variance_minus_best_peer"] = ev["ours"] - max(ev[n] for n in peers)
    for name, level in (("least", min(ev.values())), ("best_peer", max(ev[n] for n in peers))):
        level -= 0.002 # runs differ by a few thousandths
        times = {n: [seconds_to(r["curve"], level, clock) for r in t["runs"]] for n, t in trainers.items()}
        times = {n: mean(v) for n, v in times.items() if None not in v}
        rivals = [v for n, v in times.items() if n != "ours"]
        if "ours" in times and rivals: out[f"time_to_{name}_over_fastest_peer"] = times["ours"] / min(rivals)
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 400_000), ("tune-tokens", 400_000), ("seeds", 3), ("features", 2048), ("k", 32), ("batch", 512), ("threads", 1)): p.add_argument("--" + name, type=int, default=default, help=f"default {default}")
    p.add_argument("--trainer", action="append", choices=list(TRAINERS)); p.add_argument("--json")
    a = p.parse_args()
    if min(a.tokens, a.tune_tokens) < a.batch: p.error(f"--tokens {a.tokens} and --tune-tokens {a.tune_tokens} must be at least one batch of {a.batch}")
    import torch
    torch.set_num_threads(a.threads)
    train, val, test = activations(a.tokens)
    mean = train.mean(0); scale = (train.shape[1] / (train - mean).square().sum(1).mean()).sqrt()
    train, val, test = ((r - mean) * scale for r in (train, val, test))
    file = Path(a.json) if a.json else None
    record = json.loads(file.read_text()) if file and file.exists() else dict(trainers={})
    for name in a.trainer or list(TRAINERS):
        f, tuned, runs = TRAINERS[name], {}, []
        few, steps = train[:a.tune_tokens], len(train) // a.batch
        try:
            for rate in GRID[name]: tuned[rate] = judge(course(f(few, a.features, a.k, a.batch, rate, 0), len(few) // a.batch)[0], val, a.features); print(name, rate, tuned[rate], flush=True)
        except ImportError as e: print(f"{name}: not installed ({e}), not measured"); continue
        rate = max(tuned, key=lambda r: tuned[r]["explained_variance"])
        for seed in range(1, a.seeds + 1):
            run, cpu, wall, curve = course(f(train, a.features, a.k, a.batch, rate, seed), steps, val[::4], a.features)
            runs.append(dict(seed=seed, rate=rate, wall=wall, cpu=cpu, **judge(run, test, a.features), curve=curve)); print(name, {k: v for k, v in runs[-1].items() if k != "curve"}, flush=True)
        record["trainers"][name] = dict(tuning={str(r): v for r, v in tuned.items()}, runs=runs)
        if "ours" in record["trainers"]: record["figures"] = figures(record["trainers"])
        record |= dict(settings={k: v for k, v in vars(a).items() if k not in ("json", "trainer")}, versions={q: version(q) for q in ("torch", "sae-lens", "dictionary-learning", "eai-sparsify")})
        if file: file.write_text(json.dumps(record, indent=1) + "\n")
    print(record.get("figures"))


if __name__ == "__main__": main()
