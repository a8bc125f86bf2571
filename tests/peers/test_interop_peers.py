"""Chapter 20b against the libraries themselves: dictionaries that they train and save, read here; dictionaries written here, read by them.

They are an optional extra: `pip install -e '.[bench]'`, then `pytest tests/peers`. For dictionary_learning see benchmarks/README.md.
"""
import importlib.util, json

import numpy as np
import pytest
import torch

from sae_notebooks.dictionaries.interop import from_dictionary_learning, from_gemma_scope, load_any
from sae_notebooks.dictionaries.saelens import from_saelens, read_density, to_saelens
from sae_notebooks.dictionaries.sae import SAE, VARIANTS

D, N, K = 32, 96, 6
PACKAGES = {"sae_lens": "sae-lens", "sparsify": "eai-sparsify", "dictionary_learning": "dictionary-learning"}


INSTALL = {"dictionary_learning": "pip install 'python-socketio[client]' zstandard && pip install --no-deps dictionary-learning 'nnsight<0.4'"}


def need(module):
    how = INSTALL.get(module, "pip install -e '.[bench]'")
    if not importlib.util.find_spec(module): pytest.skip(f"{PACKAGES[module]} is not installed: {how}, then pytest tests/peers")
    try:
        return importlib.import_module(module)
    except ImportError as e: # installed with what it does not need, or without what it does
        pytest.skip(f"{PACKAGES[module]} cannot be imported here ({e}): {how}")


@pytest.fixture(scope="module")
def saelens(): return need("sae_lens")
@pytest.fixture(scope="module")
def sparsify(): return need("sparsify")
@pytest.fixture(scope="module")
def dl(): return need("dictionary_learning")


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


def data(n=512, seed=1):
    """Sparse sums of fixed directions around a mean: something to train on, in the units of no normalisation."""
    g = torch.Generator().manual_seed(seed); directions = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    active = torch.rand(n, N, generator=g) * (torch.rand(n, N, generator=g) < 0.08)
    return active @ directions + 0.7 + 0.02 * torch.randn(n, D, generator=g)


def batches(size=64):
    step = 0
    while True:
        step += 1
        yield data(size, seed=step)


def same(got, want, what):
    """Equal to 1e-5 of the largest value, and not trivially so."""
    assert want.abs().max() > 0 and got.shape == want.shape
    error = float((got - want).detach().abs().max() / want.detach().abs().max())
    assert error < 1e-5, f"{what}: {error:.1e}"


@torch.no_grad()
def agrees(ours, x, features, reconstruction):
    codes = ours.encode(x)
    assert 0 < codes.l0 < N # a selection
    same(codes.dense(), features, "activations"); same(ours(x), reconstruction, "reconstruction")


# SAELens

def training_sae(saelens, architecture, **changes):
    config = {"standard": saelens.StandardTrainingSAEConfig, "topk": saelens.TopKTrainingSAEConfig, "jumprelu": saelens.JumpReLUTrainingSAEConfig, "gated": saelens.GatedTrainingSAEConfig,
              "batchtopk": saelens.BatchTopKTrainingSAEConfig, "matryoshka_batchtopk": saelens.MatryoshkaBatchTopKTrainingSAEConfig}[architecture]
    more = {"k": K} if "topk" in architecture else {"jumprelu_init_threshold": 0.1} if architecture == "jumprelu" else {"l1_coefficient": 0.2}
    if architecture == "matryoshka_batchtopk": more["matryoshka_widths"] = [32, N]
    if "batchtopk" in architecture: more["topk_threshold_lr"] = 0.2
    sae = saelens.TrainingSAE.from_dict(config(d_in=D, d_sae=N, **more, **changes).to_dict())
    with torch.no_grad(): sae.W_dec.mul_(torch.rand(N, 1) * 8 + 0.5) # rows of different lengths, as training without a norm constraint leaves them
    return sae


def train(sae, folder=None, checkpoints=0, steps=30):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer
    cfg = SAETrainerConfig(total_training_samples=64 * steps, train_batch_size_samples=64, lr=3e-3, lr_end=3e-4, n_checkpoints=checkpoints, checkpoint_path=folder and str(folder), n_batches_for_norm_estimate=20)
    trainer = SAETrainer(cfg, sae, batches())
    trainer.fit()
    return trainer


ARCHITECTURES = ["standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"]


@pytest.mark.parametrize("normalise", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_saelens_trains_and_saves(saelens, tmp_path, architecture, centred, normalise):
    sae, x = training_sae(saelens, architecture, apply_b_dec_to_input=centred, normalize_activations=normalise), data()
    train(sae)
    sae.save_inference_model(tmp_path/"inference"); sae.save_model(tmp_path/"training")
    theirs = saelens.SAE.load_from_disk(tmp_path/"inference")
    agrees(load_any(tmp_path/"inference"), x, theirs.encode(x), theirs(x))
    ours = load_any(tmp_path/"training") # the training class: unfolded rows, one threshold
    same(ours(x), theirs(x), "training class")
    assert ours.variant == {"standard": "relu", "matryoshka_batchtopk": "matryoshka"}.get(architecture, architecture)


@pytest.mark.parametrize("normalise", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_saelens_normalises_each_token(saelens, tmp_path, architecture, normalise):
    "Encode, decode and both at once; theirs keeps the token's width between the two calls."
    cfg = {"standard": saelens.StandardSAEConfig, "topk": saelens.TopKSAEConfig, "jumprelu": saelens.JumpReLUSAEConfig, "gated": saelens.GatedSAEConfig}[architecture]
    more = {"k": K, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    sae = saelens.SAE.from_dict(cfg(d_in=D, d_sae=N, normalize_activations=normalise, apply_b_dec_to_input=True, **more).to_dict())
    with torch.no_grad():
        for v in sae.parameters(): v.normal_().mul_(0.3)
        if architecture == "jumprelu": sae.threshold.uniform_(0.1, 1)
    x = data() * torch.rand(len(data()), 1) * 5 + 1 # of unlike lengths, none around zero
    sae.save_model(tmp_path/"theirs"); ours = load_any(tmp_path/"theirs")
    assert ours.token_norm == {"layer_norm": "layer_norm", "constant_norm_rescale": "rescale"}[normalise]
    codes = sae.encode(x); decoded = sae.decode(codes)
    agrees(ours, x, codes, decoded)
    to_saelens(ours, tmp_path/"ours"); again = saelens.SAE.load_from_disk(tmp_path/"ours")
    assert again.cfg.normalize_activations == normalise
    same(again.decode(again.encode(x)), decoded, "there and back")
    plain = load_any(tmp_path/"theirs"); plain.token_norm = None # a test that can fail: without the step it is another dictionary
    assert float((plain(x) - decoded).detach().abs().max()) > 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saelens_checkpoint_before_its_normalisation_is_folded(saelens, tmp_path, architecture):
    from sae_lens.training.activation_scaler import ActivationScaler
    train(training_sae(saelens, architecture, normalize_activations="expected_average_only_in"), tmp_path, checkpoints=1)
    checkpoint = next(tmp_path.iterdir()); x = data()
    assert json.loads((checkpoint/"cfg.json").read_text())["normalize_activations"] == "expected_average_only_in"
    scaler = ActivationScaler(); scaler.load(checkpoint/"activation_scaler.json")
    sae = saelens.TrainingSAE.load_from_disk(checkpoint); sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    sae.save_inference_model(tmp_path/"folded"); theirs = saelens.SAE.load_from_disk(tmp_path/"folded")
    same(from_saelens(checkpoint)(x), theirs(x), "checkpoint")
    (checkpoint/"activation_scaler.json").unlink()
    with pytest.raises(ValueError, match="pass scale"): from_saelens(checkpoint)
    same(from_saelens(checkpoint, scale=scaler.scaling_factor)(x), theirs(x), "scale given")
    density = read_density(checkpoint); assert density.shape == (N,) and 0 < density.sum() < N


@pytest.mark.parametrize("rescale", [True, False])
def test_saelens_topk_with_uneven_rows(saelens, tmp_path, rescale):
    cfg = saelens.TopKSAEConfig(d_in=D, d_sae=N, k=K, rescale_acts_by_decoder_norm=rescale)
    sae, x = saelens.SAE.from_dict(cfg.to_dict()), data()
    with torch.no_grad(): sae.W_dec.mul_(torch.rand(N, 1) * 3 + 0.1); sae.b_dec.normal_(); sae.b_enc.normal_()
    sae.save_model(tmp_path/"a"); agrees(load_any(tmp_path/"a"), x, sae.encode(x), sae(x))
    to_saelens(load_any(tmp_path/"a"), tmp_path/"b"); again = saelens.SAE.load_from_disk(tmp_path/"b")
    same(again(x), sae(x), "there and back")


def random_sae(variant):
    sae = SAE(D, N, variant, K, scale=0.6, mean=torch.randn(D), meta={"model": "workbook", "site": "resid_post.2"}).initialise(seed=3, centre=torch.randn(D) / 3)
    with torch.no_grad():
        sae.b_enc.normal_().mul_(0.3); sae.W_enc.add_(torch.randn(N, D) / 9)
        if variant != "topk": sae.W_dec.mul_(torch.rand(N, 1) + 0.5)
        if variant not in ("relu", "topk"): sae.threshold.uniform_(0.2, 1)
    return sae


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_saelens_reads_what_is_written_here(saelens, tmp_path, variant, centred):
    ours, x = random_sae(variant), data()
    to_saelens(ours, tmp_path/"out", density=torch.rand(N), apply_b_dec_to_input=centred, context_size=512)
    theirs = saelens.SAE.load_from_disk(tmp_path/"out")
    same(theirs(x), ours(x), "reconstruction")
    same(theirs.W_dec.norm(dim=1), torch.ones(N), "decoder rows")
    assert theirs.cfg.normalize_activations == "none" and theirs.cfg.metadata.hook_name == "blocks.2.hook_resid_post" and theirs.cfg.metadata.context_size == 512
    assert theirs.cfg.architecture() == {"relu": "standard", "topk": "topk"}.get(variant, "jumprelu")
    theirs.save_model(tmp_path/"again"); back = from_saelens(tmp_path/"again") # through their own writer
    agrees(back, x, theirs.encode(x), theirs(x)); assert (back.variant, back.k, back.meta) == (variant, K, ours.meta)


@pytest.mark.parametrize("k", [None, K])
def test_saelens_before_version_6(saelens, tmp_path, k):
    from safetensors.torch import save_file
    cfg = dict(d_in=D, d_sae=N, dtype="float32", device="cpu", model_name="gpt2", hook_point="blocks.1.hook_resid_pre", normalize_activations=False, **(dict(activation_fn_str="topk", activation_fn_kwargs={"k": k}) if k else {}))
    (tmp_path/"cfg.json").write_text(json.dumps(cfg))
    save_file(dict(W_enc=torch.randn(D, N), W_dec=torch.randn(N, D), b_enc=torch.randn(N), b_dec=torch.randn(D), scaling_factor=torch.ones(N)), tmp_path/"sae_weights.safetensors")
    theirs, x = saelens.SAE.load_from_disk(tmp_path), data()
    agrees(load_any(tmp_path), x, theirs.encode(x), theirs(x))


# sparsify

@pytest.mark.parametrize("normalise", [True, False])
def test_what_sparsify_trains_and_saves(sparsify, tmp_path, normalise):
    from sparsify.sparse_coder import SparseCoder
    from sparsify.config import SparseCoderConfig
    coder, stream = SparseCoder(D, SparseCoderConfig(num_latents=N, k=K, normalize_decoder=normalise)), batches()
    coder.b_dec.data = data().mean(0)
    if not normalise: coder.W_dec.data.mul_(torch.rand(N, 1) + 0.5)
    adam = torch.optim.Adam(coder.parameters(), 3e-3)
    for _ in range(30):
        coder(next(stream)).fvu.backward(); adam.step(); adam.zero_grad()
        if normalise: coder.set_decoder_norm_to_unit_norm()
    coder.save_to_disk(tmp_path/"layers.4"); theirs, x = SparseCoder.load_from_disk(tmp_path/"layers.4"), data()
    out = theirs(x); ours = load_any(tmp_path/"layers.4")
    agrees(ours, x, torch.zeros(len(x), N).scatter(1, out.latent_indices, out.latent_acts), out.sae_out)
    assert ours.meta["site"] == "resid_post.4"


# dictionary_learning

TRAINERS = {"standard.StandardTrainer": {}, "standard.StandardTrainerAprilUpdate": {}, "p_anneal.PAnnealTrainer": {"p_end": 0.2}, "gdm.GatedSAETrainer": {}, "gated_anneal.GatedAnnealTrainer": {}, "jumprelu.JumpReluTrainer": {"bandwidth": 0.1},
            "top_k.TopKTrainer": {"k": K}, "batch_top_k.BatchTopKTrainer": {"k": K}, "matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer": {"k": K, "group_fractions": [0.25, 0.75]}}


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_dictionary_learning_trains_and_saves(dl, tmp_path, trainer, normalise):
    from dictionary_learning.training import trainSAE
    from dictionary_learning.utils import load_dictionary
    module, name = trainer.split("."); module = importlib.import_module(f"dictionary_learning.trainers.{module}"); more = dict(TRAINERS[trainer])
    if "k" in more: more["threshold_start_step"] = 5
    if "Anneal" in name: more["anneal_start"] = 10
    if name not in ("TopKTrainer", "BatchTopKTrainer", "MatryoshkaBatchTopKTrainer"): more["sparsity_warmup_steps"] = 5
    config = dict(trainer=getattr(module, name), steps=40, activation_dim=D, dict_size=N, layer=3, lm_name="EleutherAI/pythia-70m", lr=3e-3, warmup_steps=4, device="cpu", **more)
    trainSAE(batches(), [config], steps=40, save_dir=str(tmp_path), save_steps=[20], normalize_activations=normalise, device="cpu")
    folder, x = tmp_path/"trainer_0", data()
    theirs, saved = load_dictionary(str(folder), device="cpu"); ours = load_any(folder)
    if saved["trainer"]["dict_class"] == "AutoEncoder": theirs = type(theirs).from_pretrained(str(folder/"ae.pt"), normalize_decoder=False) # activations as trained
    agrees(ours, x, theirs.encode(x), theirs(x))
    assert ours.meta["site"] == "resid_post.3" and ours.meta["source"]["dict_class"] == saved["trainer"]["dict_class"]
    checkpoint = from_dictionary_learning(folder/"checkpoints"/"ae_20.pt", dict_class=saved["trainer"]["dict_class"]) # no config.json beside it
    assert not torch.equal(checkpoint.W_dec, ours.W_dec)


def test_dictionary_learning_threshold_never_set(dl, tmp_path):
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    theirs, x = BatchTopKSAE(D, N, K), data(); torch.save(theirs.state_dict(), tmp_path/"ae.pt")
    assert float(theirs.threshold) == -1
    agrees(from_dictionary_learning(tmp_path/"ae.pt", dict_class="BatchTopKSAE"), x, theirs.encode(x), theirs(x))


# Gemma Scope, by SAELens' loader and dictionary_learning's class

@pytest.fixture
def gemma(tmp_path):
    a = dict(W_enc=torch.randn(D, N) / 3, W_dec=torch.nn.functional.normalize(torch.randn(N, D), dim=1), b_enc=torch.randn(N) / 3, b_dec=torch.randn(D), threshold=torch.rand(N))
    np.savez(tmp_path/"params.npz", **{k: v.numpy() for k, v in a.items()})
    return tmp_path, a


def test_gemma_scope_by_saelens_loader(saelens, gemma, monkeypatch):
    from sae_lens.loading import pretrained_sae_loaders as loaders
    folder, _ = gemma; x = data()
    monkeypatch.setattr(loaders, "hf_hub_download", lambda *a, **k: str(folder/"params.npz"))
    cfg, state, _ = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", cfg_overrides=dict(d_in=D, d_sae=N))
    theirs = saelens.SAE.from_dict(loaders.handle_config_defaulting(cfg)); theirs.load_state_dict(state)
    assert not theirs.cfg.apply_b_dec_to_input
    agrees(from_gemma_scope(folder), x, theirs.encode(x), theirs(x))


def test_gemma_scope_by_dictionary_learning_class(dl, gemma):
    from dictionary_learning.dictionary import JumpReluAutoEncoder
    folder, a = gemma; theirs, x = JumpReluAutoEncoder(D, N), data(); theirs.load_state_dict(a)
    agrees(load_any(folder), x, theirs.encode(x), theirs(x))
