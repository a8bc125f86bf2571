"""The main job from a cold start: wall time and stages of `sae_workbook run` with its defaults, in an empty cache folder.

    python benchmarks/run.py --json benchmarks/results/run.json
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path

from common import version

KEPT = ("explained_variance", "l0", "dead_fraction", "dead_tokens", "ce_recovered")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2, help="CPU threads, default 2"); p.add_argument("--json", metavar="FILE")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        out, started = Path(cache)/"out", time.time()
        subprocess.run([Path(sys.executable).parent/"sae_workbook", "run", "--out", out], env=os.environ | dict(SAE_NOTEBOOKS_CACHE=cache, OMP_NUM_THREADS=str(a.threads)), check=True)
        wall, m = time.time() - started, json.loads((out/"metrics.json").read_text())
        size = (out/"report.html").stat().st_size
    from sae_notebooks.appendix.workbook_model import _processor
    record = dict(figures=dict(seconds=round(wall, 1), report_bytes=size) | {k: m[k] for k in KEPT}, stages=m["stages"], threads=a.threads, processor=_processor(), versions={q: version(q) for q in ("torch", "transformers")})
    print(json.dumps(record, indent=1))
    if a.json: Path(a.json).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__": main()
