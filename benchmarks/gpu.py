"""What the workbook does on a GPU: correct, how fast, and how near to what the machine can do.

    bash benchmarks/gpu.sh [--tiny] [--json FILE]

Five checks, each in its own part of the result; one that fails doesn't stop the others:

kernels   Triton's kernels against dense products and against plain PyTorch.
training  a step of TopK 64 with 2^17 features of width 3072: tokens/s, the share of the time that
          the encoder's product alone would take, peak memory; beside a dense step, and sparsify's
          where it is installed.
encode    the same for reading: tokens/s and the product's share.
llama     a Llama with the shape of Llama-3.2-3B and random weights through the extraction:
          tokens/s, and arithmetic as a share of what the machine reaches in one large product.
main_job  `run --preset workbook`, smaller, on the GPU and on the CPU: the same metrics.

All of it at full size goes to results/gpu.json, or where --json says. Without a GPU, or with
--tiny, everything is small, says nothing about speed, and is written only where --json says.
"""

import argparse, importlib.util, json, math, platform, statistics, sys, tempfile, time, traceback
from pathlib import Path

NEEDED = dict(
    transformers="transformers",
    tokenizers="tokenizers",
    huggingface_hub="huggingface_hub",
    regex="regex",
    safetensors="safetensors",
    fastcore="fastcore",
    numba="numba",
    llvmlite="llvmlite",
    scipy="scipy",
    pandas="pandas",
    dateutil="python-dateutil",
    matplotlib="matplotlib",
    cycler="cycler",
    kiwisolver="kiwisolver",
    pyparsing="pyparsing",
    contourpy="contourpy",
    PIL="pillow",
    yaml="PyYAML",
    tqdm="tqdm",
    filelock="filelock",
    packaging="packaging",
)  # what the checks below import, beside PyTorch

FULL = dict(
    side=8192,  # of the square product that measures the machine
    d=3072,
    features=2**17,
    k=64,
    batch=8192,
    seconds=12,  # for each timed thing
    llama=dict(hidden_size=3072, intermediate_size=8192, num_hidden_layers=28),
    heads=dict(num_attention_heads=24, num_key_value_heads=8, head_dim=128),
    vocabulary=128_256,
    tokens=1_500_000,
    documents=2000,
    job=dict(corpus="concepts", tokens=300_000, features=1024, k=16, eval_tokens=20_000),
    within=0.02,
)
TINY = dict(
    side=256,
    d=64,
    features=1024,
    k=8,
    batch=256,
    seconds=0.3,
    llama=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4),
    heads=dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
    vocabulary=4096,
    tokens=4000,
    documents=20,
    job=dict(corpus="concepts:120", tokens=6000, features=128, k=8, eval_tokens=600),
    within=0.02,
)


def lacking():
    "Packages without which the workbook can't be imported."
    return [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]


def synchronise(device):
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(f, device, at_most):
    "Median seconds of a call, over as many calls as fit (three at least), after one to warm up."
    f()
    synchronise(device)
    times, until = [], time.perf_counter() + at_most
    while len(times) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        f()
        synchronise(device)
        times.append(time.perf_counter() - started)
        if len(times) >= 200:
            break
    return statistics.median(times)


def peak_of(f, device):
    "Most bytes that a call holds on the device, with what lies there already; None on a CPU."
    import torch

    if device.type != "cuda":
        f()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    f()
    return torch.cuda.max_memory_allocated(device)


def free(device):
    import gc, torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def machine(size, device):
    "The machine by its name, and what it reaches in one large bfloat16 product."
    import torch

    n = size["side"]
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    t = seconds_of(lambda: torch.mm(a, b, out=out), device, min(2, size["seconds"]))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return dict(name=name, torch=torch.__version__, product_flops=2 * n**3 / t)


def kernels(size, device):
    "Triton's two kernels against dense products, and their time beside plain PyTorch."
    import torch
    from sae_notebooks.dictionaries import sparse

    if sparse.triton is None or device.type != "cuda":
        return dict(absent="Triton's kernels need a GPU here; tests/peers/test_triton.py interprets")
    n, m, k, d = size["batch"], size["features"], size["k"], size["d"]
    small = 512  # tokens for which the dense matrix is small
    g = torch.Generator(device).manual_seed(0)

    def codes(n):
        indices = torch.rand(n, m, device=device, generator=g).topk(k, dim=1).indices.sort().values
        indptr = torch.arange(0, n * k + 1, k, device=device)
        values = torch.rand(n * k, device=device, generator=g)
        return sparse.Codes(indptr, indices.flatten().int(), values, m)

    A = torch.randn(m, d, device=device, generator=g)
    c = codes(small)
    G = torch.randn(small, d, device=device, generator=g)
    dense = c.dense()
    rows = c.rows()
    pairs = {
        "weighted_rows": (sparse.weighted_rows_triton(c, A), dense @ A),
        "dots": (sparse.dots_triton(c, G, A), (G[rows] * A[c.indices.long()]).sum(1)),
    }
    errors = {k: float((a - b).abs().max() / b.abs().max()) for k, (a, b) in pairs.items()}
    del dense, pairs
    assert max(errors.values()) < 1e-2, errors  # the dense product may use TF32
    parts = [codes(small) for _ in range(max(1, n // small))]
    c = sparse.join(parts)
    t = {
        "triton": seconds_of(lambda: sparse.weighted_rows_triton(c, A), device, 1),
        "plain": seconds_of(lambda: sparse.weighted_rows_torch(c, A), device, 1),
    }
    return dict(errors=errors, weighted_rows_seconds=t, speedup=t["plain"] / t["triton"])


def rows(size, device):
    "Sums of some of many random directions, and noise: [batch, d]."
    import torch

    g = torch.Generator().manual_seed(0)
    n, d = size["batch"], size["d"]
    G = torch.nn.functional.normalize(torch.randn(2 * d, d, generator=g), dim=1)
    picked = torch.randint(0, 2 * d, (n, 16), generator=g)
    weight = torch.rand(n, 16, generator=g)
    x = torch.nn.functional.embedding_bag(picked, G, mode="sum", per_sample_weights=weight)
    x = x + 0.02 * torch.randn(n, d, generator=g)
    return (x * (d**0.5 / x.norm(dim=1).square().mean().sqrt())).to(device)


def our_step(size, device, x):
    from sae_notebooks.dictionaries.objectives import TrainConfig
    from sae_notebooks.dictionaries.training import Trainer

    shape = dict(n_features=size["features"], k=size["k"], batch=size["batch"])
    c = TrainConfig("topk", **shape, lr=1e-5, precision="bfloat16")
    trainer = Trainer(c, size["d"], 10**6, device=device)
    return lambda: trainer.train_step(x)


def dense_step(size, device, x):
    "The plain way: the whole [batch, features] matrix, its backward pass, and Adam over everything."
    import torch

    W = torch.randn(size["features"], size["d"], device=device) / size["d"] ** 0.5
    enc, dec = (W.clone().requires_grad_() for _ in range(2))
    optimiser = torch.optim.Adam([enc, dec], lr=1e-5)

    def step():
        with torch.autocast(device.type, torch.bfloat16):
            z = (x @ enc.T).relu()
            values, places = z.topk(size["k"], dim=1)
            f = torch.zeros_like(z).scatter(1, places, values)
            out = f @ dec
        loss = (out.float() - x).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def sparsify_step(size, device, x):
    "eai-sparsify's own coder, with its kernels where it has them."
    import torch
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    config = SparseCoderConfig(num_latents=size["features"], k=size["k"])
    coder = SparseCoder(size["d"], config, device=device, dtype=torch.float32)
    optimiser = torch.optim.Adam(coder.parameters(), lr=1e-5)

    def step():
        with torch.autocast(device.type, torch.bfloat16):
            out = coder(x=x, y=x, dead_mask=None)
        out.fvu.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def sparsify_decoder():
    "Which decoder sparsify uses here: its Triton kernel, or plain PyTorch (it only prints that)."
    from sparsify import sparse_coder

    name = sparse_coder.decoder_impl.__name__
    return dict(decoder=name, kernels="triton" in name)


def product_seconds(size, device, x):
    "The encoder's product alone, in bfloat16: less than this no exact step can take."
    import torch

    W = torch.randn(size["features"], size["d"], device=device, dtype=torch.bfloat16)
    half = x.to(torch.bfloat16)
    part = max(1, min(len(x), 2**28 // size["features"]))
    out = torch.empty(part, size["features"], device=device, dtype=torch.bfloat16)

    def product():
        for p in half.split(part):
            torch.mm(p, W.T, out=out[: len(p)])

    return seconds_of(product, device, size["seconds"] / 3)


def training(size, device):
    x = rows(size, device)
    alone = product_seconds(size, device, x)
    steps = {"ours": our_step, "dense": dense_step}
    if importlib.util.find_spec("sparsify"):
        steps["sparsify"] = sparsify_step
    result = dict(product_seconds=alone)
    for name, make in steps.items():
        free(device)
        try:
            step = make(size, device, x)
            t = seconds_of(step, device, size["seconds"])
            result[name] = dict(
                seconds=t,
                tokens_per_second=len(x) / t,
                product_share=alone / t,
                peak_bytes=peak_of(step, device),
            )
            del step
            if name == "sparsify":
                result[name] |= sparsify_decoder()
        except Exception as e:  # out of memory, or a peer that does not fit
            if name == "ours":
                raise
            result[name] = dict(failed=f"{type(e).__name__}: {e}"[:300])
    if "seconds" in result["dense"]:
        result["speedup_vs_dense"] = result["dense"]["seconds"] / result["ours"]["seconds"]
    return result


def encode(size, device):
    import torch
    from sae_notebooks.dictionaries.sae import SAE

    x = rows(size, device)
    sae = SAE(size["d"], size["features"], "topk", size["k"]).initialise().to(device)
    few = x[:64]
    z = torch.nn.functional.linear(few, sae.W_enc, sae.b_enc)  # the obvious way
    least = z.topk(size["k"], dim=1).values[:, -1:]
    got = sae.encode(few).dense().to(device)
    missed = ((got == 0) & (z > least * 1.01)).sum() + ((got > 0) & (z < least * 0.99)).sum()
    assert int(missed) == 0, f"{int(missed)} features are not the k largest"
    t = seconds_of(lambda: sae.encode(x), device, size["seconds"])
    alone = product_seconds(size, device, x)
    return dict(
        seconds=t,
        tokens_per_second=len(x) / t,
        bfloat16_product_share=alone / t,
        peak_bytes=peak_of(lambda: sae.encode(x), device),
    )


def random_llama(size, device):
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from sae_notebooks.core import data_path
    from sae_notebooks.extraction.language_model import LanguageModel

    config = LlamaConfig(
        **size["llama"],
        **size["heads"],
        vocab_size=size["vocabulary"],
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    tokenizer = AutoTokenizer.from_pretrained(data_path("workbook_model"))
    return LanguageModel(model, tokenizer, "random-llama")


def llama(size, device):
    "Extraction from a model of the true shape; each parameter of a block is two operations a token."
    from sae_notebooks.extraction.activations import extract
    from sae_notebooks.extraction.corpus import Corpus, ListSource, open_corpus

    lm = random_llama(size, device)
    texts = list(open_corpus(f"concepts:{size['documents']}"))
    n = sum(len(e) for e in lm.encode([d.text for d in texts]))
    corpus = Corpus(ListSource("list", texts * math.ceil(size["tokens"] / n)))
    blocks = list(lm.blocks)[: lm.middle.layer + 1]
    parameters = sum(p.numel() for b in blocks for p in b.parameters())
    how = dict(fraction=0.1, dtype="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        extract(lm, corpus.but(limit=max(1, len(texts) // 4)), None, Path(folder) / "warm", **how)
        made, whole = [], Path(folder) / "store"
        started = time.perf_counter()
        peak = peak_of(lambda: made.append(extract(lm, corpus, None, whole, **how)), device)
        store, seconds = made[0], time.perf_counter() - started
        tokens, kept = store.meta["counts"]["tokens"], len(store)
        first = next(store.batches(1024, partial=True)).activations
    assert first.isfinite().all() and abs(kept / tokens - 0.1) < 0.02
    flops = 2 * parameters * tokens / seconds
    return dict(
        parameters=sum(p.numel() for p in lm.model.parameters()),
        block_parameters=parameters,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        flops=flops,
        peak_bytes=peak,
    )


def main_job(size, device):
    "The same small run on both: what is measured must not depend on where."
    from sae_notebooks.pipeline import Run, RunConfig

    names = ("explained_variance", "l0", "dead_fraction", "ce_recovered")
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for place, where in (("here", str(device)), ("cpu", "cpu")):
            started = time.perf_counter()
            config = RunConfig(device=where, **size["job"])
            metrics = Run(config, Path(folder) / place).metrics()
            found[place] = {k: float(metrics[k]) for k in names}
            seconds[place] = time.perf_counter() - started
    a, b = found["here"], found["cpu"]
    apart = {k: abs(a[k] - b[k]) for k in names}
    worst = max(apart, key=apart.get)
    assert apart[worst] < size["within"], f"{worst}: {a[worst]} against {b[worst]} on the CPU"
    return dict(metrics=found, seconds=seconds, largest_difference=apart[worst])


CHECKS = dict(kernels=kernels, training=training, encode=encode, llama=llama, main_job=main_job)


def shown(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    return str(value)


RESULTS = Path(__file__).resolve().parent / "results" / "gpu.json"


def target(asked, tiny, only) -> Path | None:
    "Where the numbers go: where it was said, else into the results if all was measured at size."
    whole = not tiny and set(only) == set(CHECKS)
    return Path(asked) if asked else RESULTS if whole else None


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--tiny", action="store_true", help="a size for a test; taken without a GPU")
    p.add_argument("--json", metavar="FILE", help="where to write what was measured")
    p.add_argument("--only", choices=list(CHECKS), nargs="+", default=list(CHECKS))
    a = p.parse_args()
    if missing := lacking():
        sys.exit(
            f"gpu.py: {', '.join(missing)} cannot be imported; on a machine with a network:"
            f" pip download --only-binary=:all: --no-deps -d wheels {' '.join(missing)}"
        )
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = a.tiny or device.type == "cpu"
    size = TINY if tiny else FULL
    result = dict(tiny=tiny, device=str(device), machine=machine(size, device))
    print(f"{result['machine']['name']}: {shown(result['machine'])}", flush=True)
    failed, written = [], target(a.json, tiny, a.only)
    for name in a.only:
        started = time.perf_counter()
        try:
            result[name] = CHECKS[name](size, device)
        except Exception as e:
            traceback.print_exc()
            result[name] = dict(failed=f"{type(e).__name__}: {e}"[:500])
            failed.append(name)
        free(device)
        if "flops" in result[name]:
            share = result[name]["flops"] / result["machine"]["product_flops"]
            result[name]["share_of_product_flops"] = share
        took = time.perf_counter() - started
        print(f"{name} ({took:.0f} s): {shown(result[name])}", flush=True)
        if written:
            written.write_text(json.dumps(result, indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
