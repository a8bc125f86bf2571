"""Who meets whom among 16 k features on 1 M tokens, against a dense product in blocks.

The codes are simulated: k features on every token, by a Zipf law whose order each document changes.
The dense product (float32, blocks of features) is timed on a share of its work and scaled up, since
all of it takes an hour: `scaled` says by how much.
"""
import resource
import time

import numpy as np
import torch
from common import parser, report

from sae_notebooks.dictionaries.sparse import Codes
from sae_notebooks.neuroscience.connectivity import from_codes, partners


def simulated(tokens, features, k, length=512, seed=0):
    "Codes of `tokens` tokens in documents of `length`."
    rng = np.random.default_rng(seed)
    rate = 1 / np.arange(1, features + 1) ** 0.7
    out = np.empty((tokens, k), np.int32)
    for s in range(0, tokens, length):
        n = min(length, tokens - s)
        odds = rate * rng.gamma(0.3, size=features)
        draw = rng.choice(features, size=(n, 2 * k), p=odds / odds.sum())
        for t, row in enumerate(draw):
            one = np.unique(row)[:k]
            out[s + t, : len(one)] = one
            missing = k - len(one)
            if missing:  # rare features fill the rest
                free = np.setdiff1d(rng.integers(0, features, 4 * k), one)[:missing]
                out[s + t, len(one) :] = free
    out.sort(axis=1)
    codes = Codes(
        torch.arange(tokens + 1) * k,
        torch.from_numpy(out.ravel()),
        torch.ones(tokens * k),
        features,
    )
    return from_codes(codes, np.arange(tokens) // length)


def dense_block(a, rows, width):
    "Meetings of `width` features with `width` others on `rows` tokens, by a dense product."
    x = torch.zeros(rows, a.n_features)
    t = np.repeat(np.arange(rows), np.diff(a.indptr[: rows + 1]))
    x[t, torch.from_numpy(a.features[: a.indptr[rows]].astype(np.int64))] = 1
    started = time.perf_counter()
    x[:, :width].T @ x[:, width : 2 * width]
    return time.perf_counter() - started


if __name__ == "__main__":
    p = parser(__doc__)
    p.add_argument("--features", type=int, default=16384)
    p.add_argument("--tokens", type=int, default=1_000_000)
    p.add_argument("--k", type=int, default=48)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    a = simulated(args.tokens, args.features, args.k)
    few = torch.Generator().manual_seed(0)
    partners(a, features=torch.randint(args.features, (4,), generator=few).numpy())  # compile
    started = time.perf_counter()
    found = partners(a)
    ours = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows, width = min(16384, args.tokens), min(2048, args.features // 2)
    share = min(dense_block(a, rows, width) for _ in range(3))
    scaled = (args.tokens / rows) * (args.features / width) ** 2 / 2  # half: it is symmetric
    report(
        f"Partners of {args.features:,} features on {args.tokens:,} tokens, k = {args.k}",
        {"sparse, top partners": [ours], "dense blocks (scaled)": [share * scaled]},
        args.tokens,
        "tokens",
        "dense blocks (scaled)",
        {
            "seconds_16k_1m": ours,
            "speedup_vs_dense_blocks": share * scaled / ours,
            "peak_memory_gb": peak,
        },
        packages=("numpy", "torch", "numba"),
        json_file=args.json,
        notes=f"{len(found):,} pairs kept; the dense time is {scaled:,.0f} times {share:.3f} s",
    )
