"""Extraction: `extract` (any length, shuffled store with provenance) against the loops it replaces and against SAELens.

    python benchmarks/extraction.py --json benchmarks/results/extraction.json [--peers-python PYTHON]

Every competitor is a process of its own that loads its model once and waits; the rounds are interleaved, and every round writes a fresh folder.
Only the competitors get the tokens ready made: `extract` reads and tokenises the texts within its time. Seconds are scaled to the same number of tokens
(contexts of one length leave a rest). Peak memory is taken from further processes, over 1, 4 and 16 times a corpus.
`--peers-python` is the interpreter of an environment that has sae-lens, if it cannot live in this one.
"""
import argparse, json, os, resource, shutil, statistics, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from common import parser, report, version

CONTEXT, BATCH = 256, 32 # of the competitors that cut the text into contexts of one length
PLAIN, BARE, SAELENS = "plain loop, all rows, fp32", "early stop, all rows in order", "SAELens cache, all rows, fp32"
TENTH, SHUFFLED, HALF = "extract, 1/10 shuffled, fp32", "extract, all rows shuffled, fp32", "extract, 1/10, bf16 compute"


def documents(lm, tokens, spec="concepts+docs"):
    """Documents of about so many tokens, and their ids."""
    from sae_notebooks.extraction.activations import tokenised
    from sae_notebooks.extraction.corpus import open_corpus
    docs, ids = [], []
    for d, t in zip((c := open_corpus(spec, seed=0)), tokenised(lm, c)):
        docs.append(d); ids.append(t.ids)
        if sum(map(len, ids)) >= tokens: break
    return docs, ids


def contexts(ids):
    flat = np.concatenate(ids)
    return flat[:len(flat) // CONTEXT * CONTEXT].astype(np.int64).reshape(-1, CONTEXT)


@torch.no_grad()
def plain_loop(lm, rows, folder, early=False):
    """What is usually written first: contexts of one length, the whole model, all hidden states, one file a batch. `early` ends the pass at the site."""
    for k in range(0, len(rows), BATCH):
        ids = torch.from_numpy(rows[k:k + BATCH])
        if early: hidden = lm.capture(ids, lm.middle, use_cache=False)[lm.middle]
        else: hidden = lm.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[lm.middle.layer + 1]
        np.save(folder/f"{k:08d}.npy", hidden.flatten(0, 1).float().numpy())
    return rows.size


def saelens(model_folder, rows, layer, width, folder):
    """SAELens' CacheActivationsRunner, built before the clock starts; it shuffles the order of whole contexts. Without a dtype it would compute in the weights' own, here fp16."""
    from datasets import Dataset
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
    batches = len(rows) // BATCH
    in_buffer = next(b for b in (4, 3, 5, 2, 1) if batches % b == 0)
    config = CacheActivationsRunnerConfig(dataset_path="documents", model_name=str(model_folder), model_class_name="AutoModelForCausalLM", model_from_pretrained_kwargs=dict(dtype="float32"), hook_name=f"model.layers.{layer}", d_in=width,
        model_batch_size=BATCH, context_size=CONTEXT, training_tokens=batches * BATCH * CONTEXT, buffer_size_gb=(in_buffer + 0.5) * BATCH * CONTEXT * width * 4 / 1e9,
        new_cached_activations_path=str(folder), dtype="float32", device="cpu", streaming=False, prepend_bos=False, shuffle=True)
    runner = CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"input_ids": rows[:batches * BATCH]}))
    def run():
        cached = runner.run()
        assert len(cached) == batches * BATCH, f"SAELens cached {len(cached)} of {batches * BATCH} contexts"
        return batches * BATCH * CONTEXT
    return run


def competitor(name, args):
    """A function of a folder (and a divisor of the text) that returns another function: the work, which returns the number of tokens."""
    from sae_notebooks.core import data_path
    from sae_notebooks.extraction.language_model import load_model
    lm, rows = load_model(args.preset, dtype="bfloat16" if name == HALF else "float32"), np.load(args.shared/"contexts.npy")
    if name == PLAIN: return lambda folder, part: lambda: plain_loop(lm, rows[:len(rows) // part], folder)
    if name == BARE: return lambda folder, part: lambda: plain_loop(lm, rows[:len(rows) // part], folder, early=True)
    if name == SAELENS: return lambda folder, part: saelens(data_path("workbook_model") if args.preset == "workbook" else args.preset, rows[:len(rows) // part], lm.middle.layer, lm.width, folder)
    from sae_notebooks.extraction.activations import extract
    from sae_notebooks.extraction.corpus import Corpus, Document, ListSource
    docs = [Document(i, "documents", text) for i, text in json.loads((args.shared/"documents.json").read_text())]
    settings = {TENTH: dict(dtype="float32"), SHUFFLED: dict(dtype="float32", fraction=1.0, specials="train"), HALF: {}}[name]
    return lambda folder, part: lambda: extract(lm, Corpus(ListSource("documents", docs[:len(docs) // part])), None, folder, **settings).meta["counts"]["tokens"]


def serve(name, args):
    """One competitor: a line in, a run, a line with its seconds and tokens out."""
    make, root = competitor(name, args), Path(tempfile.mkdtemp())
    print("ready", flush=True)
    for line in sys.stdin: # the number of the round; round 0 warms up with a tenth of the text
        shutil.rmtree(root/"store", ignore_errors=True); (root/"store").mkdir()
        work = make(root/"store", 10 if int(line) == 0 else 1); started, cpu = time.perf_counter(), time.process_time(); n = work()
        print(json.dumps(dict(seconds=time.perf_counter() - started, cpu=time.process_time() - cpu, tokens=n, bytes=size(root/"store"))), flush=True)
    shutil.rmtree(root)


def busy_seconds():
    """CPU time of the whole machine so far, all cores; 0 where the system does not tell."""
    try: user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError): return 0.0
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def quiet(patience, most=0.04):
    """Wait until other processes leave the machine alone, but not for ever."""
    late = time.time() + patience
    while time.time() < late:
        before, started = busy_seconds(), time.time(); time.sleep(0.5)
        if (busy_seconds() - before) / (time.time() - started) / os.cpu_count() < most: return


@contextmanager
def locked(path):
    """While something is timed, nobody else who uses this lock runs."""
    if not path: yield; return
    import fcntl
    with open(path, "a") as f: fcntl.flock(f, fcntl.LOCK_EX); yield


class Server:
    """A competitor in its process."""
    def __init__(self, name, args):
        python = args.peers_python or sys.executable if name == SAELENS else sys.executable
        command = [python, __file__, "--serve", name, "--tokens", str(args.tokens), "--preset", args.preset, "--threads", str(args.threads), "--shared", str(args.shared)]
        root = str(Path(__file__).resolve().parent.parent)
        self.name, self.errors = name, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env={**os.environ, "PYTHONPATH": root})
        self.answer()
    def answer(self):
        for line in self.process.stdout:
            if line.startswith(("ready", "{")): return None if line.startswith("ready") else json.loads(line)
        self.errors.seek(0); raise RuntimeError(f"{self.name}: {self.errors.read()[-2000:]}")
    def run(self, round_):
        before = busy_seconds()
        print(round_, file=self.process.stdin, flush=True)
        r = self.answer()
        return r | dict(others=max(0, busy_seconds() - before - r["cpu"]) / r["seconds"] / os.cpu_count())
    def end(self): self.process.stdin.close(); self.process.wait(60)


def size(folder): return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def peak_memory():
    """Bytes: since the counter was reset where the system can do that, else since the start."""
    status = Path("/proc/self/status")
    if status.exists(): return int(next(l for l in status.read_text().splitlines() if l.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_child(args):
    """Peak memory of an extraction of `args.times` times a corpus, all rows kept in order and a tenth shuffled."""
    from sae_notebooks.extraction.activations import extract
    from sae_notebooks.extraction.corpus import Corpus, ListSource
    from sae_notebooks.extraction.language_model import load_model
    lm = load_model(args.preset); docs, _ = documents(lm, args.tokens, "concepts:2000") # the documentation corpus has a peak of its own
    clear = Path("/proc/self/clear_refs")
    if clear.exists(): clear.write_text("5") # Linux: peak memory counts from here
    with tempfile.TemporaryDirectory() as d:
        store = extract(lm, Corpus(ListSource("repeated", docs * args.times)), None, d, keep="all", memory=2**23)
        print(json.dumps(dict(times=args.times, tokens=store.meta["counts"]["tokens"], store=size(Path(d)), peak=peak_memory())))


def memory(times, args):
    command = [sys.executable, __file__, "--times", str(times), "--tokens", str(args.memory_base), "--preset", args.preset, "--threads", str(args.threads)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def has_saelens(python):
    return subprocess.run([python, "-c", "from sae_lens import CacheActivationsRunner"], capture_output=True).returncode == 0


def peer_versions(python):
    code = "import importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in ('sae-lens', 'torch', 'transformers', 'datasets')}))"
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def memory_notes(grown): return "\n".join(f"{m['tokens']:>10,} tokens: store {m['store'] / 1e6:8.1f} MB, peak memory {m['peak'] / 1e6:8.1f} MB" for m in grown)


def add_memory(args):
    grown = [memory(k, args) for k in (1, 4, 16)]
    print(memory_notes(grown), f"\npeak_memory_16x_over_1x: {grown[-1]['peak'] / grown[0]['peak']:.3f}")
    if not args.json: return
    record = json.loads(Path(args.json).read_text())
    record["figures"]["peak_memory_16x_over_1x"], record["memory"] = grown[-1]["peak"] / grown[0]["peak"], grown
    Path(args.json).write_text(json.dumps(record, indent=1) + "\n")


def main():
    p = parser(__doc__.splitlines()[0]); p.set_defaults(repeats=3)
    p.add_argument("--preset", default="workbook")
    p.add_argument("--tokens", type=int, default=300_000)
    p.add_argument("--memory-base", type=int, default=80_000, help="tokens of the 1× run of the memory measurement (more than one group between commits holds); 0 leaves it out")
    p.add_argument("--peers-python", default=None, help="interpreter that has sae-lens")
    p.add_argument("--only", nargs="*", default=None, help="competitors whose names contain one of these")
    p.add_argument("--memory-only", action="store_true", help="measure memory, and add it to the JSON file of an earlier run")
    p.add_argument("--shared", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--patience", type=float, default=60, help="seconds to wait for a quiet machine before each timed run; a disturbed run is repeated, twice at most")
    p.add_argument("--lock", default=None, help="file to lock during each round, on a machine that several people share")
    p.add_argument("--serve", help=argparse.SUPPRESS)
    p.add_argument("--times", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.serve: return serve(args.serve, args)
    if args.times: return memory_child(args)
    if args.memory_only: return add_memory(args)
    python = args.peers_python or sys.executable
    peer = has_saelens(python)
    names = [n for n in (PLAIN, BARE, *([SAELENS] if peer else []), TENTH, SHUFFLED, HALF) if not args.only or any(o in n for o in args.only)]
    from sae_notebooks.extraction.language_model import load_model
    lm = load_model(args.preset); docs, ids = documents(lm, args.tokens)
    args.shared = Path(tempfile.mkdtemp())
    np.save(args.shared/"contexts.npy", contexts(ids)); (args.shared/"documents.json").write_text(json.dumps([(d.id, d.text) for d in docs]))
    servers = {name: Server(name, args) for name in names}
    runs = {name: [] for name in names}
    for round_ in range(args.repeats + 1): # round 0 is not counted
        with locked(args.lock):
            for name, s in servers.items():
                for attempt in range(3 if round_ else 1):
                    quiet(args.patience if round_ else 0)
                    r = s.run(round_)
                    if r["others"] < 0.04: break
                if round_: runs[name].append(r)
                print(f"round {round_}, {name}: {r['seconds']:.2f} s, {r['others']:.1%} of the machine taken by others", file=sys.stderr, flush=True)
    for s in servers.values(): s.end()
    shutil.rmtree(args.shared)
    n = max(r["tokens"] for rs in runs.values() for r in rs)
    times = {name: [r["seconds"] * n / r["tokens"] for r in rs] for name, rs in runs.items()}
    med = {k: statistics.median(t) for k, t in times.items()}
    ratio = lambda a, b: med[a] / med[b] if a in med and b in med else None
    grown = [memory(k, args) for k in (1, 4, 16)] if args.memory_base else []
    figures = dict(speedup_vs_plain_loop=ratio(PLAIN, TENTH), speedup_vs_saelens=ratio(SAELENS, TENTH), speedup_vs_plain_loop_bf16=ratio(PLAIN, HALF),
                   speedup_vs_plain_loop_all_rows=ratio(PLAIN, SHUFFLED), speedup_vs_saelens_all_rows=ratio(SAELENS, SHUFFLED), speedup_vs_early_stop=ratio(BARE, TENTH),
                   disk_overhead=runs[SHUFFLED][0]["bytes"] / (n * (4 * lm.width + 12)) - 1 if SHUFFLED in runs else None,
                   peak_memory_16x_over_1x=grown[-1]["peak"] / grown[0]["peak"] if grown else None)
    notes = memory_notes(grown)
    if peer: notes = f"SAELens ran with {', '.join(f'{k} {v}' for k, v in peer_versions(python).items())}\n{notes}"
    report(f"Extracting {lm.middle} of {lm!r}: {n:,} tokens, {args.threads} threads", times, n, "tokens", names[0], figures, () if peer else ("sae_lens",), ("torch", "transformers"), args.json, notes)
    if args.json: # what the chapter shows beside the figures
        record = json.loads(Path(args.json).read_text()); record.pop("argv")
        record |= dict(memory=grown, threads=args.threads, taken_by_others=max(r["others"] for rs in runs.values() for r in rs), peer_versions=peer_versions(python) if peer else {}, median_seconds=med)
        Path(args.json).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__": main()
