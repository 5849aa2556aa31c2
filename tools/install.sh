#!/usr/bin/env bash
# Makes VENV (.venv, unless MCORE is given) with the pinned dependencies and this package in it. Called by
# `make install`, which explains MCORE, TORCH, TORCH_INDEX and EXTRAS.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1
python=${PYTHON:-python3}
venv=${VENV:-.venv}

"$python" - "${MCORE:-}" <<'PY' || exit 2
import re, sys
python, version, mcore = sys.version_info[:2], sys.version.split()[0], sys.argv[1]
if not (3, 11) <= python <= (3, 13):
    sys.exit(f"Python {version} found; megatron-cpt needs 3.11, 3.12 or 3.13 "
             "(Megatron-Core ships wheels for these): make install PYTHON=python3.11")
if mcore:
    if not re.fullmatch(r"\d+\.\d+\.\d+", mcore):
        sys.exit(f"MCORE={mcore} is no release of Megatron-Core; a release is, for example, MCORE=0.19.2")
    release = tuple(map(int, mcore.split(".")))
    if not (0, 16, 1) <= release < (0, 20):
        sys.exit(f"MCORE={mcore}: megatron-cpt accepts Megatron-Core from 0.16.1 to 0.19 (pyproject.toml). "
                 "docs/megatron-core.md says what to do for another release")
    if release >= (0, 17) and python < (3, 12):
        sys.exit(f"MCORE={mcore} needs Python 3.12, and {sys.executable} is {version}: "
                 f"make install MCORE={mcore} PYTHON=python3.12")
PY

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
cp constraints.txt "$constraints"
beside=
if [ -n "${MCORE:-}" ]; then
    sed -i "s/^megatron-core==.*/megatron-core==$MCORE/" "$constraints"
    # A torch for CPUs does not bring triton.
    case $MCORE in 0.16.* | 0.17.*) ;; *) beside=triton ;; esac
fi

if [ "${TORCH:-pinned}" = system ]; then
    "$python" -m venv --system-site-packages "$venv"
    # Images of NGC pin hundreds of packages for every pip; ours differ. What must stay is pinned below: torch.
    unset PIP_CONSTRAINT
    sed -i '/^torch==/d; /^triton==/d' "$constraints"
    # By the name that pip knows it by: torch.__version__ of a release for CUDA is longer (2.13.0+cu130).
    "$venv/bin/python" -c 'import importlib.metadata, torch; print("torch==" + importlib.metadata.version("torch"))' \
        >> "$constraints" || {
        echo "TORCH=system, but $python has no torch: install one, or leave TORCH out." >&2; exit 2; }
else
    "$python" -m venv "$venv"
    if [ -n "${TORCH_INDEX:-}" ]; then
        "$venv/bin/pip" install --progress-bar off -c "$constraints" --index-url "$TORCH_INDEX" torch
    fi
fi
echo "Installing into $venv, which takes some minutes and says nothing: torch, Megatron-Core and what tests need."
"$venv/bin/pip" install --progress-bar off -q -c "$constraints" -e ".[dev,fast,quality${EXTRAS:+,$EXTRAS}]" $beside

# For tests: Transformer Engine's Python without its libraries, where no import finds it (tests/model/engine_stub.py).
"$venv/bin/pip" install --progress-bar off -q --no-deps --upgrade --target "$venv/transformer_engine_python" \
    "$(grep '^transformer-engine==' constraints.txt)" || echo "Note: without it, tests/model/test_engine.py is skipped."

"$venv/bin/python" - "$venv" <<'PY'
import sys
from importlib.metadata import version

import torch
if torch.version.cuda and not torch.cuda.is_available():
    print(f"Note: torch {torch.__version__} is a CUDA build (CUDA {torch.version.cuda}), and this machine shows no GPU. "
          "It works, at several GB more than needed. For a CPU build: "
          "make clean install TORCH_INDEX=<PyTorch's package index for CPU builds>")
print(f"Installed in {sys.argv[1]}: torch {torch.__version__}, megatron-core {version('megatron-core')}")
PY
