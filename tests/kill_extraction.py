"""Extractions that are killed, in processes of their own; run by test_extraction.py, prints JSON.

    python kill_extraction.py crash FOLDER SEED KILLS
    python kill_extraction.py memory FOLDER

It forks while it has one thread and no tokenizer, so that no lock is copied.
"""

import json, os, random, resource, signal, sys, threading, time
from pathlib import Path

import torch

torch.set_num_threads(1)
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sae_notebooks.core import data_path, sha256_of
from sae_notebooks.extraction import activations, shards, store, writing
from sae_notebooks.extraction.corpus import Corpus, ListSource, open_corpus
from sae_notebooks.extraction.language_model import LanguageModel

MODULES = (activations, shards, store, writing)


def put(name, value):
    "Give a name of the extraction another value, wherever it was imported."
    for module in MODULES:
        if hasattr(module, name):
            setattr(module, name, value)


def toy():
    "A Llama of two layers and 16 dimensions."
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(data_path("workbook_model"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    return LanguageModel(LlamaForCausalLM(config), tokenizer, "toy")


def threads():
    tasks = Path("/proc/self/task")
    return len(os.listdir(tasks)) if tasks.exists() else threading.active_count()


def torn(die_at):
    "A `_write` that writes a part of its bytes and kills the process, the given time it is called."
    write, left = shards._write, [die_at]

    def some(f, data, at=None):
        left[0] -= 1
        if left[0]:
            return write(f, data, at)
        data = memoryview(data).cast("B")
        write(f, data[: random.Random(die_at).randrange(len(data) + 1)], at)
        os.kill(os.getpid(), signal.SIGKILL)

    return some


def child(work, die_at=0):
    "Run `work(model)` in a process, which kills itself in the middle of the given write."
    assert threads() == 1, "a fork would copy a lock that another thread holds"
    if pid := os.fork():
        return pid
    try:
        if die_at:
            put("_write", torn(die_at))
        work(toy())
        os._exit(0)
    except BaseException as e:
        print(type(e).__name__, e, file=sys.stderr, flush=True)
        os._exit(1)


def ended(pids, seconds=60):
    "How each process ended; none may take longer."
    codes, late = {}, time.time() + seconds
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (got := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = got[1]
        if time.time() > late:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"{len(pids) - len(codes)} processes hang")
        time.sleep(0.002)
    return [codes[pid] for pid in pids]


def crash(root, seed, wanted):
    """Start extractions by one process or two, kill them at random moments or within a random
    write, start them again up to three times, let them end: all bytes are those of a calm run."""
    put("SHARD", 256)  # more moments to be hit
    corpus = Corpus(ListSource("list", list(open_corpus("concepts:40"))))
    settings = dict(keep="all", fraction=0.5, buckets=4, group=512, token_budget=512, texts=True)

    def start(folder, rank, world, die_at=0):
        mine = corpus.but(rank=rank, world=world)
        run = lambda model: activations.extract(model, mine, "resid_post.0", folder, **settings)
        return child(run, die_at)

    clean, seconds = {}, {}
    for world in (1, 2):
        started = time.time()
        for rank in range(world):
            assert ended([start(root / f"clean-{world}", rank, world)]) == [0]
        seconds[world] = (time.time() - started) / world
        clean[world] = sha256_of(root / f"clean-{world}")

    rng, trial, kills, in_a_write = random.Random(seed), 0, 0, 0
    while kills < wanted:
        trial += 1
        world, folder = 1 + trial % 2, root / f"trial-{trial}"
        for attempt in range(4):
            calm = attempt == 3
            write = not calm and rng.random() < 0.5
            die_at = [rng.randrange(1, 150) if write else 0 for _ in range(world)]
            pids = [start(folder, rank, world, die_at[rank]) for rank in range(world)]
            if not calm and not write:
                time.sleep(rng.random() * seconds[world])
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            codes = ended(pids)
            failed = [os.WIFEXITED(c) and os.WEXITSTATUS(c) != 0 for c in codes]
            assert not any(failed), "an error, not a kill"
            killed = sum(map(os.WIFSIGNALED, codes))
            kills += killed
            in_a_write += write * killed
        assert sha256_of(folder) == clean[world], f"trial {trial} differs"
    return dict(trials=trial, kills=kills, in_a_write=in_a_write)


def memory(root):
    "What a process takes beyond its start, for a corpus that grows 16-fold."
    documents = list(open_corpus("concepts:40"))
    settings = dict(
        keep="all",
        fraction=1.0,
        token_budget=2048,
        group=4096,
        buckets=16,
        dtype="float32",
        memory=2**20,
    )

    def run(model, times):
        corpus = Corpus(ListSource("list", documents * times))
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        activations.extract(model, corpus, "mlp_neurons.0", root / str(times), **settings)
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
        size = sum(p.stat().st_size for p in (root / str(times)).rglob("*.*"))
        result = dict(store_MB=size / 1e6, memory_MB=taken / 1e3)
        (root / f"{times}.json").write_text(json.dumps(result))

    for times in (2, 8, 32):
        assert ended([child(lambda model: run(model, times))], 120) == [0]
    return [json.loads((root / f"{t}.json").read_text()) for t in (2, 8, 32)]


if __name__ == "__main__":
    what, folder, *numbers = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps(dict(crash=crash, memory=memory)[what](Path(folder), *map(int, numbers))))
