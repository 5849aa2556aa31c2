"""The list of places at which commands are killed is complete."""

from pathlib import Path

import pytest

from tests.reliability.running import DISPATCH, run
from tests.workshop import Workshop

WRITTEN_WITHOUT_PYTHON = (".safetensors", ".pt")
"""Endings of files that a library opens itself; they are synced by us."""


@pytest.mark.ci
def test_every_file_that_a_command_leaves_was_told_of(workshop: Workshop, tmp_path: Path) -> None:
    """Each was opened under the name that it has, or that it or its folder had before it was renamed."""
    folder, log = tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    words = ["prepare", workshop.folder / "domain.jsonl", "--tokenizer", workshop.hf, "--holdout", "10%", "--quiet"]
    for more in (
        [*words, "--output", folder / "x"],
        ["select", folder / "x", "--keep", "random", "--tokens", "500", "--output", folder / "s"],
        ["convert", "from-hf", workshop.hf, folder / "model"],
        ["convert", "to-hf", folder / "model", folder / "hf"],
    ):
        log.unlink(missing_ok=True)
        before = set(folder.rglob("*"))
        done = run([*DISPATCH, *more], failpoint={"folder": folder, "log": log})
        assert done.code == 0, done.err
        told: dict[str, set[str]] = {}
        for line in log.read_text().splitlines():
            _, what, path = line.split(" ", 2)
            told.setdefault(what, set()).add(path)
        for path in set(folder.rglob("*")) - before:
            name = str(path.relative_to(folder))
            if not path.is_file():
                continue
            renamed = next((of for of in told["rename"] if name.startswith(f"{of}/")), None)
            former = name if renamed is None else f".{renamed}.partial{name.removeprefix(renamed)}"
            what = "fsync" if path.suffix in WRITTEN_WITHOUT_PYTHON else "open"
            assert former in told[what] | told["rename"], f"{more[0]}: {name}"
