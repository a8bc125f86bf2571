"""Tests of different folders in one process: what one of them changes for good must not break the next."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Item:
    "As much of a collected test as the ordering looks at."

    def __init__(self, name):
        self.path = HERE / name


def test_the_pretend_accelerator_comes_first_whatever_was_named_first(pytestconfig):
    hooks = [p for p in pytestconfig.pluginmanager.get_plugins() if hasattr(p, "__file__")]
    (ours,) = [p for p in hooks if Path(p.__file__) == HERE / "conftest.py"]
    names = ["peers/test_a.py", "test_b.py", "pretend/test_c.py", "peers/test_d.py"]
    items = [Item(n) for n in names]
    ours.pytest_collection_modifyitems(items)
    kept = [str(i.path.relative_to(HERE)) for i in items]
    assert kept == ["pretend/test_c.py", "peers/test_a.py", "test_b.py", "peers/test_d.py"]


PEER = '''
import torch
from sae_notebooks.dictionaries.objectives import TrainConfig
from sae_notebooks.dictionaries.training import train
from sae_notebooks.extraction.language_model import default_device

def test_backward_as_a_peer_trains():
    x = torch.randn(512, 16)
    w = torch.randn(16, 4).requires_grad_()
    (x @ w).relu().sum().backward()
    assert w.grad.device.type == "cpu"

def test_training_stays_on_the_cpu():
    assert str(default_device(None)) != "pretend"
    sae = train(torch.randn(512, 16), TrainConfig(n_features=32, k=4, batch=128), device="cpu")
    assert sae.W_dec.device.type == "cpu"
'''


def test_backward_passes_of_others_beside_the_pretend_accelerator(tmp_path):
    "The peers' own packages are not needed: what they do to the process is a backward pass."
    other = tmp_path / "test_backward.py"
    other.write_text(PEER)
    asked = [str(other), str(HERE / "peers"), str(HERE / "pretend")]
    which = "backward or training_stays or keeps_its_tensors_apart"
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *asked, "-k", which]
    root = str(HERE.parent)
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*run, "--rootdir", root],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if "skipped" in done.stdout and "needs Linux" in done.stdout:
        pytest.skip("no C++ compiler: install g++")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "3 passed" in done.stdout, done.stdout[-3000:]
