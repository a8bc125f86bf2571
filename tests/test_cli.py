"""The command line: settings are judged first, errors are one line, small corpora are divided."""
import dataclasses
import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from nbdev.config import get_config

from sae_notebooks import commands
from sae_notebooks.cli import main
from sae_notebooks.core import THREADS, WorkbookError
from sae_notebooks.dictionaries.saelens import to_saelens
from sae_notebooks.dictionaries.metrics import evaluate
from sae_notebooks.dictionaries.sae import SAE, SHIPPED, load_sae
from sae_notebooks.extraction.activations import extract
from sae_notebooks.extraction.corpus import open_corpus
from sae_notebooks.extraction.language_model import load_model
from sae_notebooks.extraction.presets import has_gemma
from sae_notebooks.extraction.shards import _lock
from sae_notebooks.pipeline import Run, divided
from sae_notebooks.settings import RunConfig, layers

REFUSED = [
    ("--variant", "foo"),
    ("--k", "0"),
    ("--features", "0"),
    ("--batch", "0"),
    ("--epochs", "0"),
    ("--epochs", "inf"),
    ("--precision", "int8"),
    ("--eval-tokens", "0"),
    ("--feature-tokens", "0"),
    ("--tokens", "-5"),
    ("--fraction", "2"),
    ("--lr", "-1"),
    ("--lr", "nan"),
    ("--sparsity", "nan"),
    ("--shown", "-1"),
    ("--dtype", "int4"),
    ("--device", "foo"),
    ("--device", "cuda:7"),
    ("--site", "resid.3"),
    ("--layer", "-1"),
    ("--loss-tokens", "-1"),
    ("--max-length", "2"),
    ("--sae", "XL"),
    ("--sae", "hf:owner/../x"),
    ("--fraction", "0.0001"),  # of 1.2 M tokens: 120 rows, less than a batch
    ("--epochs", "0.0001"),
    ("--seed", "-1"),
    ("--layer", "99"),
    ("--site", "resid_post.99"),
    ("--device", "meta"),
    ("--corpus", "nosuch"),
    ("--corpus", "docs+nosuch"),
    ("--corpus", "self:nosuch"),
    ("--corpus", "concepts:0"),
    ("--corpus", "hf:"),
    ("--corpus", ""),
]


@pytest.fixture
def unloaded(monkeypatch):
    "Whoever loads a model or a corpus fails."

    def loaded(*_, **__):
        raise AssertionError("loaded before the settings were judged")

    monkeypatch.setattr("sae_notebooks.pipeline.load_model", loaded)
    monkeypatch.setattr("sae_notebooks.pipeline.open_corpus", loaded)


@pytest.mark.parametrize("option, value", REFUSED)
def test_wrong_settings_are_refused_before_anything_is_loaded_or_written(
    option, value, tmp_path, capsys, unloaded
):
    assert main(["run", "--out", str(tmp_path / "run"), option, value]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and value.split("+")[-1].split(":")[0] in error
    assert not list(tmp_path.iterdir())


def test_a_dictionary_of_another_site_is_refused_before_anything_is_loaded(
    tmp_path, capsys, unloaded
):
    SAE(256, 8, k=2, meta=dict(site="resid_post.40")).save(tmp_path / "deep")
    wrong = {
        "S": (["--layer", "5"], "it reads resid_post.2, not resid_post.5"),
        str(tmp_path / "deep"): ([], "workbook has layers 0…5"),
        "gemma-S": ([], "trained on gemma"),
    }
    for name, (more, says) in wrong.items():
        assert main(["run", "--out", str(tmp_path / "run"), "--sae", name, *more]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error
    assert not (tmp_path / "run").exists()


def test_the_layers_of_a_preset_are_known_without_its_weights():
    assert layers("workbook") == load_model().n_layers
    if has_gemma():
        assert layers("gemma") == load_model("gemma", "bfloat16").n_layers


def test_a_folder_in_which_nothing_was_computed_takes_new_settings(tmp_path):
    Run(RunConfig(k=16), tmp_path)
    read = lambda fraction: extract(
        load_model(), open_corpus("concepts:9"), None, tmp_path / "activations", fraction=fraction
    )
    assert len(read(1e-9)) == 0  # a store without a row
    Run(RunConfig(k=32), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["k"] == 32
    assert not (tmp_path / "activations").exists()
    assert len(read(1.0)) > 0
    with pytest.raises(WorkbookError, match="k=32"):
        Run(RunConfig(k=16), tmp_path)


@pytest.mark.parametrize("result", ["training/checkpoint.safetensors", "sae/sae.json"])
def test_a_folder_with_a_later_result_keeps_its_settings(result, tmp_path):
    Run(RunConfig(k=16), tmp_path)
    (tmp_path / result).parent.mkdir()
    Run(RunConfig(k=32), tmp_path)  # a stage's folder alone is no result
    (tmp_path / result).touch()
    with pytest.raises(WorkbookError, match="k=32"):
        Run(RunConfig(k=16), tmp_path)


def test_refused_on_the_way_then_the_corrected_command_passes(tmp_path, capsys):
    lines = [json.dumps(dict(text=f"the text number {i} of a few")) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "no record"]))
    small = ["--tokens", "400", "--batch", "64", "--features", "32", "--k", "2"]
    few = ["extract", "--out", str(tmp_path / "run"), "--corpus", str(tmp_path / "a.jsonl"), *small]
    assert main(few) == 2 and "line 61" in capsys.readouterr().err
    assert (tmp_path / "run/activations/.work").exists()  # begun, and nothing computed
    assert main([*few, "--skip-bad"]) == 0
    assert main(few) == 2 and "holds a run with skip_bad=True" in capsys.readouterr().err


def test_an_extraction_at_work_is_not_cleared(tmp_path):
    Run(RunConfig(k=16), tmp_path)
    (tmp_path / "activations/.work/0").mkdir(parents=True)
    (tmp_path / "activations/.lock").touch()
    held = _lock(tmp_path / "activations/.work/0/lock", wait=False)
    with pytest.raises(WorkbookError, match="another process"):
        Run(RunConfig(k=32), tmp_path)
    held.close()
    Run(RunConfig(k=32), tmp_path)


def test_a_file_as_the_runs_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/below"):
        assert main(["run", "--out", str(tmp_path / out)]) == 2
        assert "give a folder" in capsys.readouterr().err


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "Another project, without notebooks; nbdev remembers the first that it has met."
    get_config.cache_clear()
    project = '[project]\nname = "a"\nversion = "0"\n[tool.nbdev]\n'
    (tmp_path / "pyproject.toml").write_text(project)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    get_config.cache_clear()


@pytest.mark.parametrize(
    "argv, named",
    [
        (["execute", "none.ipynb"], "none.ipynb"),
        (["readme"], "index.ipynb: No such file"),  # where there is a project without a front page
        (["run", "--out", "/proc/none/run"], "/proc"),  # written to by nobody, not even root
    ],
)
def test_missing_files_and_unwritable_places_are_named(argv, named, elsewhere, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not (elsewhere / "README.md").exists()


@pytest.mark.parametrize(
    "error, says",
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "x.bin"), "x.bin: Permission denied"),
        (KeyboardInterrupt(), "goes on"),
        (RuntimeError("first line\nsecond"), "RuntimeError: first line (with --debug"),
    ],
)
def test_no_error_shows_a_traceback_unless_asked(error, says, monkeypatch, capsys):
    def fails(_):
        "Fails."
        raise error

    monkeypatch.setitem(commands.COMMANDS, "readme", (fails, commands.COMMANDS["readme"][1]))
    assert main(["readme"]) in (2, 130)
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") == 1
    with pytest.raises(type(error)):
        main(["readme", "--debug"])


def test_help_names_every_default_and_every_dictionary(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sae_workbook", "run", "--help"])
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: )" not in shown and "the middle of the model" in shown
    assert all(name in shown for name in (*SHIPPED, "Gemma Scope 2"))


@pytest.mark.parametrize("name", ["foo", "gemma-foo"])
def test_an_unknown_shipped_dictionary_hears_of_all(name, capsys):
    assert main(["train-shipped", name]) == 2
    error = capsys.readouterr().err
    assert name in error and all(s in error for s in SHIPPED)


def test_a_single_document_is_measured_without_warnings(recwarn):
    corpus = open_corpus("concepts:1", split="train", limit=1)
    m = evaluate(load_sae("S"), corpus, load_model(), tokens=60, downstream=30)
    assert m["documents"] == 1 and "l0_low" not in m and "ce_recovered_low" not in m
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_site_and_layer(tmp_path, capsys):
    assert main(["run", "--out", str(tmp_path), "--site", "mlp_out.1", "--layer", "1"]) == 2
    assert "give one of them" in capsys.readouterr().err
    c = RunConfig(corpus="concepts:60", tokens=3000, batch=256, features=64, k=4, site="mlp_out.1")
    assert str(Run(c, tmp_path / "run").extract().site) == "mlp_out.1"


def test_a_given_dictionary_takes_no_training_options(tmp_path, capsys, unloaded):
    for option, value in (("--k", "8"), ("--tokens", "9000"), ("--variant", "relu")):
        out = str(tmp_path / "run")
        assert main(["run", "--out", out, "--sae", "S", option, value]) == 2
        error = capsys.readouterr().err
        assert f"leave out {option} {value}" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_given_dictionary_that_does_not_fit_is_refused_in_one_line(tmp_path, capsys):
    sae = load_sae("S")
    sae.meta = {}  # as a folder of another library that names no site
    sae.save(tmp_path / "nameless")
    SAE(64, 8, k=2, meta=dict(site="resid_post.2")).save(tmp_path / "narrow")
    SAE(256, 8, k=2, meta=dict(site="blocks.3.attn.hook_z")).save(tmp_path / "strange")
    SAE(256, 8, k=2, meta=dict(site="resid_post.40")).save(tmp_path / "deep")
    wrong = {
        "gemma-S": "trained on gemma",
        str(tmp_path / "nameless"): "give --site",
        str(tmp_path / "narrow"): "64 numbers",
        str(tmp_path / "strange"): "hook_z",
        str(tmp_path / "deep"): "has layers",
    }
    for name, says in wrong.items():
        assert main(["metrics", "--out", str(tmp_path / "run"), "--sae", name]) == 2
        error = capsys.readouterr().err
        last = error.splitlines()[-1]  # before it, the bar of loading the model
        assert says in last and name in last and "Traceback" not in error
    assert main(["metrics", "--out", str(tmp_path / "run"), "--sae", "S", "--layer", "4"]) == 2
    assert "reads resid_post" in capsys.readouterr().err


def test_dictionaries_of_other_libraries_and_of_the_hub_are_reported_on(tmp_path, monkeypatch):
    to_saelens(load_sae("S"), tmp_path / "cache" / "layer" / "S")
    asked = []

    def hub(name, allow_patterns, local_files_only):
        asked.append((name, allow_patterns))
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.setattr("sae_notebooks.settings._online", lambda: False)
    few = dict(corpus="concepts:60", eval_tokens=600, loss_tokens=200, feature_tokens=600, shown=2)
    found = {}
    for i, name in enumerate(("S", str(tmp_path / "cache/layer/S"), "hf:owner/name/layer/S")):
        run = Run(RunConfig(sae=name, **few), tmp_path / str(i))
        assert run.report().read_text().count("<article class=fc") == 2
        found[i] = run.metrics()["explained_variance"]
        assert not (run.folder / "activations").exists()
    assert found[1] == pytest.approx(found[0], abs=1e-5) and found[2] == found[1]
    assert asked[0][0] == "owner/name" and "layer/S/cfg.json" in asked[0][1]


def test_a_dictionary_with_each_token_in_its_own_units_is_reported_on(tmp_path):
    sae = load_sae("S")
    sae.token_norm = "layer_norm"  # of other weights, but the same way through every stage
    to_saelens(sae, tmp_path / "theirs")
    x = torch.randn(300, sae.d) * torch.rand(300, 1) + 1
    error = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert evaluate(sae, x)["explained_variance"] == pytest.approx(1 - float(error), rel=1e-5)
    few = dict(corpus="concepts:60", eval_tokens=600, loss_tokens=200, feature_tokens=600, shown=2)
    run = Run(RunConfig(sae=str(tmp_path / "theirs"), **few), tmp_path / "run")
    assert run.report().read_text().count("<article class=fc") == 2
    again = run.train()
    assert again.token_norm == "layer_norm"
    torch.testing.assert_close(again(x), sae(x), rtol=1e-4, atol=1e-4)


def test_a_hub_dictionary_that_cannot_be_had_is_one_line(tmp_path, capsys, monkeypatch):
    def hub(*_, **__):
        raise OSError("cannot reach")

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.setattr("sae_notebooks.settings._online", lambda: False)
    assert main(["run", "--out", str(tmp_path), "--sae", "hf:owner/name/layers.2"]) == 2
    error = capsys.readouterr().err
    assert "hub does not give it" in error and error.count("\n") == 1


def test_download_reaches_the_model(tmp_path, monkeypatch):
    asked = {}

    def load(*_, **options):
        asked.update(options)
        raise WorkbookError("stop here")

    monkeypatch.setattr("sae_notebooks.pipeline.load_model", load)
    for options, expected in (([], False), (["--download"], True)):
        assert main(["run", "--preset", "gemma", "--out", str(tmp_path), *options]) == 2
        assert asked["download"] is expected


def test_documents_are_cut_in_every_stage(tmp_path):
    c = RunConfig(corpus="concepts:60", tokens=3000, batch=256, features=64, k=4, max_length=40)
    c = dataclasses.replace(c, eval_tokens=500, loss_tokens=100, feature_tokens=1000, shown=2)
    run = Run(c, tmp_path / "run")
    run.report()
    store, features = run.extract(), run.features()
    assert max(int(store.read(0).position.max()), 0) < 40
    ends = [0, *features.document_ends.tolist()]
    assert 30 < max(b - a for a, b in zip(ends, ends[1:])) <= 40
    with pytest.raises(WorkbookError, match="max_length=40"):
        Run(dataclasses.replace(c, max_length=50), tmp_path / "run")


def test_a_folder_of_an_older_version_goes_on(tmp_path):
    "Settings that an older run did not know have their defaults."
    run = Run(RunConfig(), tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for new in ("sae", "max_length", "download"):
        about.pop(new)
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "metrics.json").write_text("{}")
    Run(run.config, tmp_path)
    Run(dataclasses.replace(run.config, download=True, shown=3), tmp_path)


def test_the_package_keeps_to_its_share_of_the_cores_under_nbdevs_test_runner():
    code = (
        "import torch, sae_notebooks.core, numba;"
        "print(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)"
    )
    clean = {k: v for k, v in os.environ.items() if k not in THREADS}
    threads = lambda **more: subprocess.run(
        [sys.executable, "-c", code], env=clean | more, capture_output=True, text=True, check=True
    ).stdout.split()
    assert threads(IN_TEST="1") == ["1", "1"]
    assert threads(IN_TEST="1", OMP_NUM_THREADS="2")[0] == "2"  # who says a number gets it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores > 1:
        assert int(threads()[1]) > 1


def test_a_single_document_is_divided_by_its_middle(tmp_path):
    text = "one two three four five six seven eight"
    (tmp_path / "a.txt").write_text(text)
    first, held = (list(c) for c in divided(RunConfig(corpus=str(tmp_path / "a.txt")).filled()))
    assert first[0].text + held[0].text == text and first[0].id != held[0].id
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(WorkbookError, match="one document"):
        divided(RunConfig(corpus=str(tmp_path / "a.txt")).filled())


def test_labels_of_a_single_document_stay_with_their_half(tmp_path):
    text = "The soup was cold and the waiter was rude."
    spans = [[4, 8, "food.dish"], [26, 32, "people.waiter"]]
    (tmp_path / "a.jsonl").write_text(json.dumps(dict(text=text, spans=spans)))
    halves = divided(RunConfig(corpus=str(tmp_path / "a.jsonl")).filled())
    found = [[d.text[s.start : s.end] for s in d.spans] for c in halves for d in c]
    assert found == [["soup"], ["waiter"]]


def test_few_documents_leave_some_to_train_on_and_some_held_out(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text(f"document {n}")
    first, held = (list(c) for c in divided(RunConfig(corpus=str(tmp_path)).filled()))
    assert len(first) == 2 and len(held) == 1
