"""What every benchmark shares: interleaved timing, one table, and `--json`."""
import argparse, importlib.metadata, json, platform, statistics, sys, time
from pathlib import Path


def parser(description):
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--repeats", type=int, default=5, help="timed rounds; in each, every competitor runs once")
    p.add_argument("--threads", type=int, default=2, help="CPU threads")
    p.add_argument("--json", metavar="FILE", default=None, help='write {"figures": {name: number}, ...}')
    return p


def version(package):
    try: return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError: return None


def interleaved(competitors, repeats):
    """Seconds of each round of each competitor (name → function of no arguments); one round is not counted. Interleaving shares out the machine's slow minutes."""
    times = {name: [] for name in competitors}
    for round_ in range(repeats + 1):
        for name, f in competitors.items():
            started = time.perf_counter(); f(); seconds = time.perf_counter() - started
            if round_: times[name].append(seconds)
    return times


def report(title, times, work, unit, baseline, figures, absent=(), packages=(), json_file=None, notes=""):
    """Print medians, spread and ratios to `baseline`; write the figures. `work` is what one round does, in `unit`s. A peer in `absent` was not measured and is not counted as beaten."""
    print(f"{title}\nPython {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}; {platform.machine()}, {platform.system()}\n")
    print(f"{'':<34}{'median s':>10}{'min':>8}{'max':>8}{unit + '/s':>14}{'ratio':>8}")
    base = statistics.median(times[baseline])
    for name, t in times.items():
        m = statistics.median(t)
        print(f"{name:<34}{m:>10.3f}{min(t):>8.3f}{max(t):>8.3f}{work / m:>14,.0f}{base / m:>8.2f}")
    for name in absent: print(f"{name:<34}absent: not installed, not measured (see benchmarks/README.md)")
    if notes: print(f"\n{notes}")
    print("\nfigures:", {k: None if v is None else round(v, 3) for k, v in figures.items()})
    if json_file:
        record = dict(figures={k: v for k, v in figures.items() if v is not None}, seconds=times, work=work, unit=unit, absent=list(absent), versions={p: version(p) for p in packages}, argv=sys.argv[1:])
        Path(json_file).write_text(json.dumps(record, indent=1) + "\n")
