"""A training step, side by side: ours, sae-lens, dictionary-learning, eai-sparsify, and the bare encoder product.

Each peer's own step as its own trainer does it (loss, backward, clip, optimiser, dead-feature bookkeeping, decoder norm), in float32, on the same batch held in memory, interleaved in one process.
The optional packages: benchmarks/README.md. One group (a size and a variant) at a time is merged into the same file:
    python benchmarks/training.py --group topk_large --json benchmarks/results/training.json
"""
import json, os, platform, statistics, subprocess, sys, time
from pathlib import Path

from common import parser, version, interleaved

SIZES = {"small": (256, 4096), "large": (512, 16_384)}
GROUPS = [f"{v}_{s}" for v in ("topk", "topk_bf16", "batchtopk", "relu") for s in SIZES]
K, BATCH, DENSITY = 32, 8192, 0.015
PACKAGES = ("torch", "numba", "sae-lens", "dictionary-learning", "eai-sparsify")


def rows(d, n=BATCH):
    "Sums of 24 of 4d random directions, and noise."
    import torch, torch.nn.functional as F
    torch.manual_seed(0)
    G = F.normalize(torch.randn(4 * d, d), dim=1)
    x = F.embedding_bag(torch.randint(0, 4 * d, (n, 24)), G, mode="sum", per_sample_weights=torch.rand(n, 24)) + 0.05 * torch.randn(n, d)
    x -= x.mean(0)
    return x * d**0.5 / x.norm(dim=1).square().mean().sqrt()


def biases(x, W): # [F, d] encoder rows → biases with which DENSITY of the features are active
    import torch
    z = x[:1024] @ W.T
    return -z.topk(max(1, round(DENSITY * len(z))), dim=0).values[-1]


def ours(variant, d, F, x, precision="float32"):
    from sae_notebooks.dictionaries.objectives import TrainConfig
    from sae_notebooks.dictionaries.training import Trainer
    c = TrainConfig(variant, F, K if variant != "relu" else None, 1e-3 if variant == "relu" else 0.0, lr=1e-6, batch=BATCH, precision=precision, aux=0.0)
    t = Trainer(c, d, 10**6)
    import torch
    with torch.no_grad():
        if variant == "relu": t.params["b_enc"].copy_(biases(x, t.params["W_enc"]))
    return lambda: t.train_step(x)


def sparsify(variant, d, F, x):
    import torch
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder
    from sparsify.sign_sgd import SignSGD
    from schedulefree import ScheduleFreeWrapper
    sae = SparseCoder(d, SparseCoderConfig(num_latents=F, k=K), dtype=torch.float32)
    opt = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=1e-6), momentum=0.95); opt.train() # its default; Adam is slower
    since, fired = torch.zeros(F, dtype=torch.long), torch.zeros(F, dtype=torch.bool)
    def step():
        variance = (x - x.mean(0)).pow(2).sum()
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x=x, y=x, dead_mask=None, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        opt.step(); opt.zero_grad()
        with torch.no_grad(): since.add_(len(x)); since[fired] = 0; fired.zero_()
    return step


def dictionary_learning(variant, d, F, x):
    import torch
    from dictionary_learning.trainers.top_k import TopKTrainer
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
    common = dict(steps=10**6, activation_dim=d, dict_size=F, layer=0, lm_name="none", lr=1e-6, device="cpu", warmup_steps=1)
    if variant == "relu":
        t = StandardTrainerAprilUpdate(**common, l1_penalty=1e-3, sparsity_warmup_steps=2)
        with torch.no_grad(): t.ae.encoder.bias.copy_(biases(x - t.ae.bias if hasattr(t.ae, "bias") else x, t.ae.encoder.weight))
    else: t = (TopKTrainer if variant == "topk" else BatchTopKTrainer)(**common, k=K)
    count = iter(range(1, 10**9)) # step 0 estimates a geometric median, once
    return lambda: t.update(next(count), x)


def saelens(variant, d, F, x):
    import torch
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    if variant == "topk": sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=F, k=K))
    elif variant == "batchtopk": sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d, d_sae=F, k=K))
    else:
        sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d, d_sae=F, l1_coefficient=1e-3))
        with torch.no_grad(): sae.b_enc.copy_(biases(x, sae.W_enc.T))
    t = SAETrainer(SAETrainerConfig(total_training_samples=BATCH * 10**6, train_batch_size_samples=BATCH, lr=1e-6, lr_end=1e-7), sae, iter([]))
    return lambda: t.step(x)


def product(d, F, x):
    import torch
    W, out = torch.randn(F, d), torch.empty(len(x), F)
    return lambda: torch.mm(x, W.T, out=out)


def competitors(group):
    size = group.rsplit("_", 1)[1]; variant = group[:-len(size) - 1]
    d, F = SIZES[size]; x = rows(d); plain = variant.split("_")[0]
    makers = {"ours": lambda: ours(plain, d, F, x, "bfloat16" if "bf16" in variant else "float32"), "dictionary-learning": lambda: dictionary_learning(plain, d, F, x), "sae-lens": lambda: saelens(plain, d, F, x)}
    if plain == "topk": makers["eai-sparsify"] = lambda: sparsify(plain, d, F, x)
    makers["encoder product"] = lambda: product(d, F, x)
    return makers


def memory(group, name): # peak resident MB of one competitor in a process of its own
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import torch, training, resource; torch.set_num_threads(2); f = training.competitors({group!r})[{name!r}](); f(); f(); print('MB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    return float(out.stdout.rsplit("MB", 1)[1]) if out.returncode == 0 and "MB" in out.stdout else None


def cpu_rounds(steps, repeats):
    "As `interleaved`, but CPU time of the process: for a machine that others use at the same time. Give it one thread."
    times = {n: [] for n in steps}
    for round_ in range(repeats + 1):
        for n, f in steps.items():
            started = time.process_time(); f(); seconds = time.process_time() - started
            if round_: times[n].append(seconds)
    return times


def profile(group, steps=5):
    "Seconds a step that our step spends in its parts, by the same clock."
    import torch, sae_notebooks.dictionaries.gradients as module, sae_notebooks.dictionaries.sparse as sparse, sae_notebooks.dictionaries.training as training
    spent, step = {}, competitors(group)["ours"]()
    def timed(owner, name, label):
        f = getattr(owner, name)
        def run(*a, **k):
            started = time.process_time(); out = f(*a, **k); spent[label] = spent.get(label, 0) + time.process_time() - started
            return out
        setattr(owner, name, run)
    for owner, name, label in ((torch, "mm", "encoder product"), (module, "select_top", "select"), (sparse, "_gather_top", "select"), (module, "dots", "recompute candidates"), (module, "best", "best of candidates"), (module, "_token_pass", "decode, error, gradient of activations"), (module, "transpose", "transpose"),
                               (module, "_feature_pass", "gradients of the weights"), (training, "adam_rows", "Adam")): timed(owner, name, label)
    step(); spent.clear(); started = time.process_time()
    for _ in range(steps): step()
    whole = (time.process_time() - started) / steps
    spent = {n: t / steps for n, t in spent.items()}
    return spent | {"rest": whole - sum(spent.values()), "whole step": whole}


def figures(groups):
    mid = lambda t: statistics.median(t)
    out = {}
    for g, r in groups.items():
        s = {n: mid(t) for n, t in r["seconds"].items()}
        peers = {n: t for n, t in s.items() if n not in ("ours", "encoder product")}
        size = g.rsplit("_", 1)[1]
        name = f"{g[:-len(size) - 1].replace('_bf16', '')}_{size}{'_bf16' if 'bf16' in g else ''}"
        if peers: out[f"{name}_vs_fastest_peer"] = min(peers.values()) / s["ours"]
        if g.startswith("topk_") and "encoder product" in s: out[f"{name}_over_encoder_gemm"] = s["ours"] / s["encoder product"]
        m = {n: v for n, v in r.get("peak_mb", {}).items() if v and n not in ("ours", "encoder product")}
        if m and r["peak_mb"].get("ours"): out[f"{name}_memory_over_leanest_peer"] = r["peak_mb"]["ours"] / min(m.values())
    return out


def main():
    p = parser(__doc__)
    p.add_argument("--group", action="append", choices=GROUPS, help="what to measure; all without it")
    p.add_argument("--skip", action="append", default=[], help="a peer to leave out (say so in the table: it is not counted)")
    p.add_argument("--cpu", action="store_true", help="CPU time instead of wall time (with --threads 1, on a busy machine)")
    p.add_argument("--profile", action="store_true", help="the parts of our own step instead, in CPU time")
    p.add_argument("--memory", action="store_true", help="measure peak memory instead, each in a process of its own")
    a = p.parse_args()
    import torch
    torch.set_num_threads(a.threads)
    file = Path(a.json) if a.json else None
    for group in a.group or GROUPS:
        makers, entry = competitors(group), {}
        makers = {n: m for n, m in makers.items() if n not in a.skip}
        if a.memory: entry["peak_mb"] = {n: memory(group, n) for n in makers}; print(group, entry["peak_mb"])
        elif a.profile: entry["profile"] = profile(group); print(group, {n: round(t, 4) for n, t in entry["profile"].items()})
        else:
            steps, absent = {}, []
            for n, m in makers.items():
                try: steps[n] = m()
                except ImportError as e: absent.append(n); print(f"{n}: not installed ({e}), not measured")
            entry |= dict(seconds=cpu_rounds(steps, a.repeats) if a.cpu else interleaved(steps, a.repeats), clock="CPU" if a.cpu else "wall", batch=BATCH, k=K, absent=absent, skipped=a.skip, threads=a.threads)
            for n, t in entry["seconds"].items(): print(f"{group:<18}{n:<22}{statistics.median(t):8.3f} s (min {min(t):.3f}, max {max(t):.3f}){BATCH / statistics.median(t):12,.0f} tokens/s")
        record = json.loads(file.read_text()) if file and file.exists() else dict(groups={})
        record["groups"][group] = {**record["groups"].get(group, dict(seconds={})), **entry}
        record |= dict(figures=figures(record["groups"]), versions={q: version(q) for q in PACKAGES}, machine=f"{os.cpu_count()} cores, {platform.machine()}")
        if file: file.parent.mkdir(exist_ok=True); file.write_text(json.dumps(record, indent=1) + "\n")
    print({k: round(v, 2) for k, v in record["figures"].items()})


if __name__ == "__main__": main()
