#!/usr/bin/env bash
# What the workbook does on a GPU, in one command of at most eight minutes, on a bare machine
# with Python and PyTorch:
#
#     bash benchmarks/gpu.sh [--tiny] [--json FILE]
#
# It writes benchmarks/results/gpu.json, or FILE.
# Packages that the machine lacks are carried as wheels in the folder wheels/ (or $WHEELS):
#     pip download --only-binary=:all: --no-deps -d wheels NAME==VERSION …
# Without a GPU it runs on the CPU, in a tiny size, and writes only FILE.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=${WHEELS:-wheels}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

if compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
export SAE_NOTEBOOKS_QUIET=1 SAE_NOTEBOOKS_CACHE="${SAE_NOTEBOOKS_CACHE:-$site/cache}"
timeout "${SECONDS_AT_MOST:-480}" "$python" benchmarks/gpu.py "$@"
