#!/usr/bin/env bash
# Measure on one H100/H200-class GPU, in five minutes, or two with --quick: docs/benchmarks/README.md.
#
#   bash benchmarks/gpu.sh [--quick] [--output FOLDER] [--parts no_bleed,step] [--seconds 300]
#   bash benchmarks/gpu.sh --tiny --device cpu --output /tmp/gpu        tries every part on a CPU, in a minute
#
# Needs a Python with torch, transformers and this project's other imports (BBU_PYTHON, default python3) and downloads
# nothing. What that Python lacks can be brought as wheels: the folder BBU_WHEELS (default .whl) is installed, if it
# exists, into a temporary folder that goes before the Python's own packages.
set -euo pipefail
started=$SECONDS
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${BBU_PYTHON:-python3}"
wheels="${BBU_WHEELS:-.whl}"
brought=""
if compgen -G "$wheels/*.whl" >/dev/null; then
    brought="$(mktemp -d)"
    trap 'rm -rf "$brought"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$brought" "$wheels"/*.whl
fi
export PYTHONPATH="${brought:+$brought:}src:.${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" benchmarks/gpu.py --already "$((SECONDS - started))" "$@"
