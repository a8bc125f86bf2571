"""Before anything imports Triton: without a GPU its kernels run in its interpreter."""
import os

import torch

if not torch.cuda.is_available(): os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """The pretend accelerator comes first: autograd counts the devices at a process's first backward pass and never again,
    and one that is registered later has no thread to run on."""
    items.sort(key=lambda item: "pretend" not in item.path.parts)
