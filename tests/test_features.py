"""Chapter 30's stores under bad luck: kills in the middle of a write, and memory."""

import json, os, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def helper(*args, seconds=240):
    "Run kill_features.py in an interpreter of its own, and take its last line."
    run = subprocess.run(
        [sys.executable, HERE / "kill_features.py", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_killed_builds_end_with_the_bytes_of_a_calm_one(tmp_path):
    "One and two processes, at random moments or in a random write; the script compares the bytes."
    killed = helper("crash", tmp_path, 0, 24)
    assert killed["kills"] >= 24 and killed["in_a_write"] >= 5


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    "Sixteen times the documents; memory is a buffer, and what the system lends for mapped files."
    few, _, many = helper("memory", tmp_path)
    grown = {k: many[k] - few[k] for k in ("store_MB", "memory_MB")}
    assert grown["store_MB"] > 30
    assert grown["memory_MB"] < 0.25 * grown["store_MB"]
