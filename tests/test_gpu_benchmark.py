"""benchmarks/gpu.sh in its tiny size: a CPU can't say how fast it is, but that all of it runs."""

import json, os, subprocess, sys
from pathlib import Path

import torch

from sae_notebooks.core import cache_path

ROOT = Path(__file__).resolve().parent.parent


def test_the_gpu_check_runs_here_in_a_tiny_size(tmp_path):
    env = dict(os.environ, PYTHON=sys.executable, SAE_NOTEBOOKS_CACHE=str(cache_path()))
    env["SECONDS_AT_MOST"] = "900"  # other tests may run beside it
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), "--tiny", "--json", str(tmp_path / "r")]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]

    result = json.loads((tmp_path / "r").read_text())
    assert not [k for k, v in result.items() if isinstance(v, dict) and "failed" in v]
    assert result["tiny"]
    assert set(result) >= {"machine", "kernels", "training", "encode", "llama", "main_job"}
    if not torch.cuda.is_available():
        assert "absent" in result["kernels"]
    for part in ("ours", "dense"):
        assert result["training"][part]["tokens_per_second"] > 0
    assert 0 < result["llama"]["share_of_product_flops"] < 1
    assert result["main_job"]["largest_difference"] < 0.02


def test_a_machine_that_lacks_packages_is_told_which(tmp_path):
    code = "import gpu; gpu.NEEDED['no_such_module'] = 'no-such-package'; gpu.main()"
    env = dict(os.environ, PYTHONPATH=str(ROOT / "benchmarks"))
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 1
    assert "no-such-package cannot be imported" in run.stderr
    assert "pip download" in run.stderr
