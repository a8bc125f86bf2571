"""Chapter 20a's kernels for a GPU against dense products: on the GPU where there is one, else in Triton's interpreter.

Triton comes with torch where there is a GPU; elsewhere it is an optional extra: `pip install triton`, then `pytest tests/peers/test_triton.py`.
"""
import os, subprocess, sys

import pytest
import torch

from sae_notebooks.dictionaries import sparse

pytestmark = pytest.mark.skipif(sparse.triton is None, reason="triton is not installed: pip install triton, then pytest tests/peers/test_triton.py")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def codes(n, m, k, seed=0):
    """Some rows are empty, and one feature is active on every other row."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, m, generator=g).relu_()
    x[x < x.topk(min(k, m), dim=1).values[:, -1:]] = 0
    x[:, m // 2] = 1.5; x[::7] = 0
    return sparse.Codes.from_dense(x.to(DEVICE))


# widths below, at and beyond a block of columns and not a multiple of it; rows with fewer and more entries than a program takes at a time
@pytest.mark.parametrize("n, m, k, d", [(20, 60, 5, 24), (9, 300, 40, 128), (12, 50, 16, 300), (3, 7, 7, 1), (0, 8, 2, 16)])
def test_products(n, m, k, d):
    c, g = codes(n, m, k), torch.Generator().manual_seed(1)
    A, G = (torch.randn(r, d, generator=g).to(DEVICE) for r in (m, n))
    dense = c.dense()
    torch.testing.assert_close(sparse.weighted_rows_triton(c, A), dense @ A, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sparse.dots_triton(c, G, A), (G @ A.T)[c.rows(), c.indices.long()], rtol=1e-5, atol=1e-4)
    back, _ = sparse.transpose(c)
    torch.testing.assert_close(sparse.weighted_rows_triton(back, G), dense.T @ G, rtol=1e-5, atol=1e-4)


def test_the_plain_versions_agree():
    c, g = codes(40, 90, 20), torch.Generator().manual_seed(2)
    A, G = (torch.randn(r, 70, generator=g).to(DEVICE) for r in (90, 40))
    torch.testing.assert_close(sparse.weighted_rows_triton(c, A), sparse.weighted_rows_torch(c, A), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse.dots_triton(c, G, A), sparse.dots_torch(c, G, A), rtol=1e-5, atol=1e-5)
    assert len(sparse.dots_triton(c, G, A)) == len(c.indices)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sae_notebooks.dictionaries import sparse
kinds = {"S": "constexpr", "D": "constexpr", "d": "i32", "indptr": "*i64", "indices": "*i32"}
for kernel in (sparse._weighted_rows_kernel, sparse._dots_kernel):
    for capability in (80, 90): # A100 and H100
        built = compile(ASTSource(kernel, {n: kinds.get(n, "*fp32") for n in kernel.arg_names}, {"S": 16, "D": 128}), target=GPUTarget("cuda", capability, 32))
        assert built.asm["cubin"]
"""


def test_the_kernels_compile_for_gpus_that_are_not_here():
    done = subprocess.run([sys.executable, "-c", COMPILE], env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
