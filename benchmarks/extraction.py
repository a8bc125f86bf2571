"""Extraction: `extract` (shuffled store with provenance) against a plain loop with full forward, `output_hidden_states` and `numpy.save`.

    python benchmarks/extraction.py [--tokens 300000] [--repeats 3] [--json FILE]

Every round writes a fresh folder. Peak memory is taken from processes of their own, over 1, 4 and 16 times a corpus.
"""
import argparse, json, os, resource, shutil, statistics, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
import torch
from common import interleaved, parser, report

from sae_notebooks.extraction.activations import extract, tokenised
from sae_notebooks.extraction.corpus import Corpus, ListSource, open_corpus
from sae_notebooks.extraction.language_model import load_model


def documents(lm, tokens, spec="concepts+docs"):
    """Documents of about so many tokens, and their ids."""
    docs, ids = [], []
    for d, t in zip((c := open_corpus(spec, seed=0)), tokenised(lm, c)):
        docs.append(d); ids.append(t.ids)
        if sum(map(len, ids)) >= tokens: break
    return docs, ids


@torch.no_grad()
def plain_loop(lm, ids, folder, context=256, batch=32):
    """What is usually written first: contexts of one length, the whole model, all hidden states, one file a batch."""
    flat = np.concatenate(ids); rows = torch.from_numpy(flat[:len(flat) // context * context].astype(np.int64)).view(-1, context)
    for k in range(0, len(rows), batch):
        hidden = lm.model(input_ids=rows[k:k + batch], output_hidden_states=True, use_cache=False).hidden_states[lm.middle.layer + 1]
        np.save(folder/f"{k:08d}.npy", hidden.flatten(0, 1).float().numpy())


def size(folder): return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def peak(times, base, preset, threads):
    """Peak resident memory of a process that extracts `times` × `base` tokens."""
    out = subprocess.run([sys.executable, __file__, "--child", str(times), "--tokens", str(base), "--preset", preset, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def peak_memory():
    """Bytes: since the counter was reset where the system can do that, else since the start."""
    status = Path("/proc/self/status")
    if status.exists(): return int(next(l for l in status.read_text().splitlines() if l.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(args):
    lm = load_model(args.preset); docs, _ = documents(lm, args.tokens, "concepts:2000") # the documentation corpus has a peak of its own
    clear = Path("/proc/self/clear_refs")
    if clear.exists(): clear.write_text("5") # Linux: peak memory counts from here
    with tempfile.TemporaryDirectory() as d:
        store = extract(lm, Corpus(ListSource("repeated", docs * args.child)), None, d, token_budget=2048, keep="all", memory=2**23)
        print(json.dumps(dict(tokens=store.meta["counts"]["tokens"], store=size(Path(d)), peak=peak_memory())))


def main():
    p = parser(__doc__.splitlines()[0]); p.set_defaults(repeats=3)
    p.add_argument("--preset", default="workbook")
    p.add_argument("--tokens", type=int, default=300_000)
    p.add_argument("--memory-base", type=int, default=40_000, help="tokens of the 1× run of the memory measurement; 0 leaves it out")
    p.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.child: return child(args)
    lm, half = load_model(args.preset), load_model(args.preset, dtype="bfloat16")
    docs, ids = documents(lm, args.tokens); n, root = sum(map(len, ids)), Path(tempfile.mkdtemp())
    corpus = Corpus(ListSource("documents", docs))

    def fresh(name): shutil.rmtree(root/name, ignore_errors=True); (root/name).mkdir(); return root/name
    def ours(name, model=lm, **kw): return lambda: extract(model, corpus, None, fresh(name), **kw)
    competitors = {"plain loop, all rows, fp32": lambda: plain_loop(lm, ids, fresh("plain")),
                   "extract, 1/10 shuffled, fp32": ours("tenth", dtype="float32"),
                   "extract, all rows shuffled, fp32": ours("shuffled", dtype="float32", fraction=1.0, specials="train"),
                   "extract, 1/10, bf16 compute": ours("half", half)}
    times = interleaved(competitors, args.repeats)
    base, med = "plain loop, all rows, fp32", {k: statistics.median(t) for k, t in times.items()}
    overhead = size(root/"shuffled") / (n * (4 * lm.width + 12)) - 1
    shutil.rmtree(root)
    memory = [peak(k, args.memory_base, args.preset, args.threads) for k in (1, 4, 16)] if args.memory_base else []
    figures = dict(speedup_vs_plain_loop=med[base] / med["extract, 1/10 shuffled, fp32"], speedup_vs_plain_loop_all_rows=med[base] / med["extract, all rows shuffled, fp32"],
                   speedup_vs_plain_loop_bf16=med[base] / med["extract, 1/10, bf16 compute"], speedup_vs_saelens=None, disk_overhead=overhead,
                   peak_memory_16x_over_1x=memory[-1]["peak"] / memory[0]["peak"] if memory else None)
    notes = "\n".join(f"{m['tokens']:>10,} tokens: store {m['store'] / 1e6:8.1f} MB, peak memory {m['peak'] / 1e6:8.1f} MB" for m in memory)
    report(f"Extracting {lm.middle} of {lm!r}: {n:,} tokens of {len(docs)} documents, {args.threads} threads", times, n, "tokens", base, figures, ("sae_lens",), ("torch", "transformers"), args.json, notes)


if __name__ == "__main__": main()
