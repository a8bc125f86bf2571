"""The command line: settings are judged first, errors are one line, small corpora are divided."""
import errno
import json

import pytest

from sae_notebooks import cli
from sae_notebooks.cli import main
from sae_notebooks.core import WorkbookError
from sae_notebooks.pipeline import Run, RunConfig, divided

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
    assert error.count("\n") == 1 and value.split(":")[0] in error
    assert not list(tmp_path.iterdir())


def test_a_folder_in_which_nothing_was_computed_takes_new_settings(tmp_path):
    Run(RunConfig(k=16), tmp_path)
    Run(RunConfig(k=32), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["k"] == 32
    (tmp_path / "activations").mkdir()
    with pytest.raises(WorkbookError, match="k=32"):
        Run(RunConfig(k=16), tmp_path)


def test_a_file_as_the_runs_folder_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/below"):
        assert main(["run", "--out", str(tmp_path / out)]) == 2
        assert "give a folder" in capsys.readouterr().err


@pytest.mark.parametrize("argv", (["execute", "none.ipynb"],))
def test_missing_files_are_named(argv, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "none.ipynb" in error and "Traceback" not in error


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

    monkeypatch.setitem(cli.COMMANDS, "readme", (fails, cli.COMMANDS["readme"][1]))
    assert main(["readme"]) in (2, 130)
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") == 1
    with pytest.raises(type(error)):
        main(["readme", "--debug"])


def test_site_and_layer(tmp_path, capsys):
    assert main(["run", "--out", str(tmp_path), "--site", "mlp_out.1", "--layer", "1"]) == 2
    assert "give one of them" in capsys.readouterr().err
    c = RunConfig(corpus="concepts:60", tokens=3000, batch=256, features=64, k=4, site="mlp_out.1")
    assert str(Run(c, tmp_path / "run").extract().site) == "mlp_out.1"


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
