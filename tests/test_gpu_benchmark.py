"""benchmarks/gpu.sh in its tiny size: a CPU can't say how fast it is, but that all of it runs."""

import json, os, subprocess, sys, types
from pathlib import Path

import pytest
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
    peak = result["llama"]["peak_bytes"]  # a CPU counts none
    assert peak > 2 * result["llama"]["parameters"] if torch.cuda.is_available() else peak is None
    assert result["main_job"]["largest_difference"] < 0.02


def test_a_machine_that_lacks_packages_is_told_which(tmp_path):
    code = "import gpu; gpu.NEEDED['no_such_module'] = 'no-such-package'; gpu.main()"
    env = dict(os.environ, PYTHONPATH=str(ROOT / "benchmarks"))
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 1
    assert "no-such-package cannot be imported" in run.stderr
    assert "pip download" in run.stderr


def test_only_the_whole_at_full_size_goes_to_the_results_by_itself(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    assert gpu.target(None, False, list(gpu.CHECKS)) == ROOT / "benchmarks/results/gpu.json"
    assert gpu.target(None, True, list(gpu.CHECKS)) is None
    assert gpu.target(None, False, ["llama"]) is None
    assert gpu.target("r.json", True, ["llama"]) == Path("r.json")


@pytest.mark.parametrize("name, kernels", [("triton_decode", True), ("eager_decode", False)])
def test_whether_sparsifys_kernel_is_used_is_said(name, kernels, monkeypatch):
    "The name that its coder calls decides, as it does in the library."
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    coder, library = types.ModuleType("sparsify.sparse_coder"), types.ModuleType("sparsify")
    coder.decoder_impl = lambda: None
    coder.decoder_impl.__name__ = name
    library.sparse_coder = coder
    for module in (library, coder):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert gpu.sparsify_decoder() == dict(decoder=name, kernels=kernels)
