"""The commands of docs/tutorial.md run as printed, and print what the page shows but for numbers.

The quickstart is left out: a small model and its texts stand for what it leaves (tests/quickstart runs it). The run has
a tenth of the page's tokens.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workshop import Workshop

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text()
SMALLER = {
    "--tokens 200K": "--tokens 12K",
    "400K": "40K",
    "450K": "45K",
    "step-00000220": "step-00000088",
    "sequence_length=256": "sequence_length=64",
}
NOT_HERE = ("Rate ", "code: general rose")
"""Lines that differ for a model with random weights: it has no learning rates before, and nothing to forget."""
NUMBER = re.compile(r"[-+\u2212]?\d[\d,.:]*(?:e[-+]\d+)?[KMGT]?(?: ?[KMG]iB)?")


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block of the page, in order, without the first: installation and quickstart."""
    return re.findall(r"```(console|python)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_runs_and_prints_what_it_shows(workshop: Workshop, tmp_path: Path) -> None:
    base, texts = tmp_path / "quickstart/base/hf", tmp_path / "quickstart/text"
    shutil.copytree(workshop.hf, base)
    texts.mkdir(parents=True)
    for name in ("domain", "general"):
        shutil.copy(workshop.folder / f"{name}.jsonl", texts)
    script, expected = ["set -euo pipefail"], []
    for language, text in blocks():
        if language == "python":
            script += ["echo @@", f"python -W ignore - <<'END'\n{text}END"]
            expected.append("...")
            continue
        for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, printed = command.partition("\n")
            script += ["echo @@", line]
            expected.append(printed)
    for printed, here in SMALLER.items():
        assert printed in PAGE
        script = [line.replace(printed, here) for line in script]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    outputs = ended.stdout.split("@@\n")[1:]
    assert len(outputs) == len(expected)
    for line, shown, printed in zip([one for one in script[1:] if one != "echo @@"], expected, outputs, strict=True):
        there = iter(masked(printed))
        for wanted in masked(shown):
            assert wanted in there, f"{line}\ndoes not print\n{wanted}\nbut\n{printed}"


def masked(text: str) -> list[str]:
    """The lines of a text with their numbers as #, blanks as one; those for lines left out are left out."""
    lines = [" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines()]
    return [line for line in lines if line and line != "..." and not line.startswith(NOT_HERE)]
