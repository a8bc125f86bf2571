"""The main job from a cold start: wall time and stages of `sae_workbook run` with its defaults, in an empty cache folder.

    python benchmarks/run.py --json benchmarks/results/run.json
    python benchmarks/run.py --preset gemma --json benchmarks/results/run_gemma.json
"""
import argparse, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

from common import version

KEPT = ("explained_variance", "explained_variance_standardised", "largest_dimension", "l0", "dead_fraction", "dead_tokens", "ce_recovered", "kl_recovered")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--preset", default="workbook"); p.add_argument("--threads", type=int, default=2, help="CPU threads, default 2"); p.add_argument("--json", metavar="FILE")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        out, started = Path(cache)/"out", time.time()
        subprocess.run([Path(sys.executable).parent/"sae_workbook", "run", "--preset", a.preset, "--out", out], env=os.environ | dict(SAE_NOTEBOOKS_CACHE=cache, OMP_NUM_THREADS=str(a.threads)), check=True)
        wall, m = time.time() - started, json.loads((out/"metrics.json").read_text())
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6 # GB
        size = (out/"report.html").stat().st_size
    from sae_notebooks.appendix.learning import _processor
    record = dict(figures=dict(seconds=round(wall, 1), report_bytes=size, peak_gb=round(peak, 2)) | {k: m[k] for k in KEPT if k in m}, stages=m["stages"], preset=a.preset, threads=a.threads, processor=_processor(), versions={q: version(q) for q in ("torch", "transformers")})
    print(json.dumps(record, indent=1))
    if a.json: Path(a.json).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__": main()
