#!/usr/bin/env bash
# Makes .venv with the pinned dependencies and this package in it. Called by `make install`, which explains TORCH, TORCH_INDEX and EXTRAS.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1
python=${PYTHON:-python3}

"$python" - <<'PY' || exit 2
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"Python {sys.version.split()[0]} found; megatron-cpt needs 3.11 or 3.12 "
             "(Megatron-Core ships wheels for these): make install PYTHON=python3.11")
PY

if [ "${TORCH:-pinned}" = system ]; then
    "$python" -m venv --system-site-packages .venv
    constraints=$(mktemp)
    trap 'rm -f "$constraints"' EXIT
    grep -v '^torch==' constraints.txt > "$constraints"
    .venv/bin/python -c 'import torch; print("torch==" + torch.__version__)' >> "$constraints" || {
        echo "TORCH=system, but $python has no torch: install one, or leave TORCH out." >&2; exit 2; }
else
    "$python" -m venv .venv
    constraints=constraints.txt
    if [ -n "${TORCH_INDEX:-}" ]; then
        .venv/bin/pip install --progress-bar off -c constraints.txt --index-url "$TORCH_INDEX" torch
    fi
fi
.venv/bin/pip install --progress-bar off -q -c "$constraints" -e ".[dev,fast,quality${EXTRAS:+,$EXTRAS}]"

.venv/bin/python - <<'PY'
import torch
if torch.version.cuda and not torch.cuda.is_available():
    print(f"Note: torch {torch.__version__} is a CUDA build (CUDA {torch.version.cuda}), and this machine shows no GPU. "
          "It works, at several GB more than needed. For a CPU build: "
          "make clean install TORCH_INDEX=<PyTorch's package index for CPU builds>")
print(f"Installed in .venv: torch {torch.__version__}")
PY
