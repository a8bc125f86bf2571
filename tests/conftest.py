"""Before anything imports Triton: without a GPU its kernels run in its interpreter."""
import os

import pytest
import torch
from browser import Browser, find_browser

if not torch.cuda.is_available(): os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """The pretend accelerator comes first: autograd counts the devices at a process's first backward pass and never again,
    and one that is registered later has no thread to run on."""
    items.sort(key=lambda item: "pretend" not in item.path.parts)


@pytest.fixture(scope="module")
def browser():
    "One headless Chromium for a module's tests, which are skipped where there is none."
    if not find_browser():
        pytest.skip("no Chromium on PATH (Debian: apt install chromium; or SAE_NOTEBOOKS_BROWSER)")
    pytest.importorskip("websocket")
    with Browser() as b:
        yield b
