#!/usr/bin/env bash
# Set up once, then run a config from end to end: prepare, train, predict, score, draw.
#
#   bash train.sh CONFIG [dotted.key=value ...]      e.g. bash train.sh configs/demo.yaml training.max_steps=10
#   bash train.sh --setup                            only create the environment
#
# On a machine with several GPUs, torchrun starts one process for each. Over several nodes, set on each:
#   NNODES (default 1)  NODE_RANK (0)  MASTER_ADDR (127.0.0.1)  MASTER_PORT (29500)
# Others: NPROC (processes on this node; default: GPUs, or 1), BBU_PYTHON (a Python with the requirements
# installed already; skips the set-up), BBU_VENV (default .venv beside this file).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
fail() { echo "train.sh: error: $*" >&2; exit 2; }

setup() {
    if [[ -n "${BBU_PYTHON:-}" ]]; then
        python="$BBU_PYTHON"
        export PYTHONPATH="$here/src:$here${PYTHONPATH:+:$PYTHONPATH}"
        return
    fi
    local venv="${BBU_VENV:-$here/.venv}"
    python="$venv/bin/python"
    local wanted stamp="$venv/.bbu-requirements"
    wanted="$(cat "$here/requirements.txt" "$here/pyproject.toml" | cksum) $here"
    if [[ -x "$python" && -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then return; fi
    local base candidate
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            base="$candidate"
            break
        fi
    done
    [[ -n "${base:-}" ]] || fail "no Python 3.11 or newer with its venv module found; install it (python3.11, python3.11-venv)"
    echo "setting up $venv (once; downloads a few GB)" >&2
    [[ -x "$python" ]] || "$base" -m venv "$venv" || fail "cannot create $venv; is python3-venv installed?"
    "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" \
        || fail "pip could not install requirements.txt; its message is above"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$here" \
        || fail "pip could not install this project; its message is above"
    if command -v nvidia-smi >/dev/null 2>&1 && ! "$python" -c 'import flash_attn' 2>/dev/null; then
        echo "optional, on this CUDA machine: $python -m pip install flash-attn --no-build-isolation" >&2
    fi
    echo "$wanted" >"$stamp"
}

[[ $# -ge 1 ]] || fail "which config? e.g. bash train.sh configs/demo.yaml"
if [[ "$1" == "--setup" ]]; then setup; exit 0; fi

config="$1"; shift
[[ -f "$config" || ! -f "$here/$config" ]] || config="$here/$config"
[[ -f "$config" ]] || fail "config $config does not exist; the shipped ones: $(cd "$here" && echo configs/*.yaml)"
config="$(cd "$(dirname "$config")" && pwd)/$(basename "$config")"

setup
cd "$here"  # shipped configs and outputs/ use paths relative to the project
"$python" -m bbu.cli check "$config" "$@" >/dev/null  # a wrong key fails here once, not on every rank

nnodes="${NNODES:-1}"
if [[ -z "${NPROC:-}" ]]; then
    NPROC="$("$python" -c 'import torch; print(max(torch.cuda.device_count(), 1))')"
fi
if [[ "$NPROC" == 1 && "$nnodes" == 1 ]]; then
    exec "$python" -m bbu.cli run "$config" "$@"
fi
exec "$python" -m torch.distributed.run --nnodes "$nnodes" --node_rank "${NODE_RANK:-0}" \
    --nproc_per_node "$NPROC" --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
    -m bbu.cli run "$config" "$@"
