"""Feature stores that are killed, in processes of their own; run by test_features.py, prints JSON.

    python kill_features.py crash FOLDER SEED KILLS
    python kill_features.py memory FOLDER
"""
import json, os, random, resource, signal, sys, time

import numpy as np, torch

torch.set_num_threads(1)
from pathlib import Path
from sae_notebooks.core import sha256_of
from sae_notebooks.dictionaries.sparse import Codes
from sae_notebooks.reading import building as S, files

root, n_features = Path(sys.argv[2]), 300

def codes(n, seed):  # random codes of n tokens, some features much denser than others
    rng = np.random.default_rng(seed)
    on = rng.random((n, n_features)) < np.geomspace(0.5, 0.001, n_features)
    return Codes.from_dense(torch.from_numpy(on * rng.gamma(2.0, 1.0, on.shape)).float())

def groups(documents, size, rank=0, world=1):  # a source for write_store
    def source(settings, state):
        mine = [
            i for i in range(rank, documents, world) if state["next"] is None or i >= state["next"]
        ]
        for k in range(0, len(mine), size):
            group = [
                S.Entry(
                    i,
                    f"d{i}",
                    f"text {i} " * 9,
                    np.arange(3 + i % 50, dtype=np.int32),
                    np.stack([np.arange(3 + i % 50)] * 2, 1) + [0, 1],
                )
                for i in mine[k : k + size]
            ]
            yield group, codes(sum(len(d.ids) for d in group), group[0].ordinal)

    return source

def child(work, die_at=0):  # a process that kills itself in the middle of the given write
    if pid := os.fork():
        return pid
    write, pwrite, left = S._write, os.pwrite, [die_at]

    def torn(do, data, cut):
        left[0] -= 1
        if left[0]:
            return do(data)
        do(memoryview(data).cast("B")[: cut(data)])
        os.kill(os.getpid(), signal.SIGKILL)

    part = lambda data: random.Random(die_at).randrange(memoryview(data).nbytes + 1)
    if die_at:
        S._write = files._write = lambda f, data, at=None: torn(lambda d: write(f, d, at), data, part)
        os.pwrite = lambda fd, data, at: torn(lambda d: pwrite(fd, d, at), data, part)
    try:
        work()
        os._exit(0)
    except BaseException as e:
        print(type(e).__name__, e, file=sys.stderr, flush=True)
        os._exit(1)

def ended(pids, seconds=60):  # how each ended; none may take longer
    late, codes = time.time() + seconds, []
    for pid in pids:
        while not (done := os.waitpid(pid, os.WNOHANG))[0]:
            if time.time() > late:
                [os.kill(p, signal.SIGKILL) for p in pids]
                raise TimeoutError("a child hangs")
            time.sleep(0.002)
        codes.append(done[1])
    return codes


def crash():
    def start(folder, rank, world, die_at=0):
        return child(
            lambda: S.write_store(
                groups(40, 4, rank, world), folder, n_features, rank=rank, world=world, memory=2**17
            ),
            die_at,
        )

    S.write_store(groups(4, 4), root / "compile", n_features)  # the kernels, before the clock runs
    clean, seconds, rng, trial, kills, torn = {}, {}, random.Random(int(sys.argv[3])), 0, 0, 0
    for world in (1, 2):
        t = time.time()
        for rank in range(world):
            assert ended([start(root / f"clean-{world}", rank, world)]) == [0]
        seconds[world], clean[world] = (time.time() - t) / world, sha256_of(root / f"clean-{world}")
    while kills < int(sys.argv[4]):
        trial += 1
        world, folder = 1 + trial % 2, root / f"trial-{trial}"
        for attempt in range(4):
            in_write = attempt < 3 and rng.random() < 0.5
            pids = [
                start(folder, rank, world, rng.randrange(1, 400) if in_write else 0)
                for rank in range(world)
            ]
            if attempt < 3 and not in_write:
                time.sleep(rng.random() * seconds[world])
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            codes_ = ended(pids)
            assert not any(
                os.WIFEXITED(c) and os.WEXITSTATUS(c) for c in codes_
            ), "an error, not a kill"
            kills += sum(map(os.WIFSIGNALED, codes_))
            torn += in_write * sum(map(os.WIFSIGNALED, codes_))
        assert sha256_of(folder) == clean[world], f"trial {trial} differs"
    print(
        json.dumps(
            dict(trials=trial, kills=kills, in_a_write=torn, seconds_undisturbed=round(seconds[1], 2))
        )
    )


def memory():
    def run(documents):
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store = S.write_store(groups(documents, 50), root / str(documents), n_features, memory=2**22)
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
        size = sum(p.stat().st_size for p in (root / str(documents)).rglob("*") if p.is_file())
        (root / f"{documents}.json").write_text(
            json.dumps(
                dict(
                    tokens=store.n_tokens,
                    entries=store.entries,
                    store_MB=size / 1e6,
                    memory_MB=taken / 1e3,
                )
            )
        )

    sizes = (400, 1600, 6400)
    for n in sizes:
        assert ended([child(lambda: run(n))], 120) == [0]
    print(json.dumps([json.loads((root / f"{n}.json").read_text()) for n in sizes]))


if __name__ == "__main__":
    {"crash": crash, "memory": memory}[sys.argv[1]]()
