"""What both studies do: text to datasets and a tokenizer, configurations to runs, several at a time."""

import csv
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml
import zstandard

from megatron_cpt.quickstart.base_folder import write_base_folder

COMMAND = str(Path(sys.executable).with_name("megatron-cpt"))
TOKENIZER = "base-config/tokenizer.json"
"""In the folder of a study."""
DOCUMENTS = 150
"""Of each corpus that a tokenizer is trained on."""
SEQUENCE_LENGTH = 256
"""Tokens."""
BATCH = 16
"""Sequences of a step: 4,096 tokens."""


def run_sections(study: Path, name: str, sources: dict[str, Any], steps: int, seed: int) -> dict[str, Any]:
    """The sections `run`, `data` and `training` of STUDY/runs/NAME."""
    return {
        "run": {"folder": str(study / "runs" / name), "seed": seed, "log_interval": "100 steps"},
        "data": {"sequence_length": SEQUENCE_LENGTH, "sources": sources},
        "training": {
            "tokens": f"{steps} steps",
            "global_batch_size": BATCH,
            "micro_batch_size": BATCH,
            "precision": "fp32",
        },
    }


def prepare(study: Path, corpora: Mapping[str, Path], of_tokenizer: Iterable[str], model: dict[str, Any]) -> None:
    """STUDY/base-config, with a tokenizer from parts of some corpora, and every corpus as STUDY/data/NAME.

    4 % of the documents are held out.
    """
    folder = (study / TOKENIZER).parent
    if not (folder / "config.json").is_file():
        samples = []
        for name in of_tokenizer:
            lines = list(lines_of(corpora[name]))
            random.Random(name).shuffle(lines)
            samples.append(study / f"{name}-sample.jsonl")
            samples[-1].write_bytes(b"".join(lines[:DOCUMENTS]))
        write_base_folder(samples, folder, model)
    for name, path in corpora.items():
        prefix = str(study / "data" / name)
        call("prepare", str(path), "--tokenizer", str(folder), "--output", prefix, "--holdout", "4%")


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, compressed or not."""
    with zstandard.open(path, "rb") if path.suffix == ".zst" else path.open("rb") as file:
        yield from io.BufferedReader(file)


def train(study: Path, name: str, config: dict[str, Any]) -> str:
    """One run, STUDY/configs/NAME.yaml; a finished one is passed over. Returns its name."""
    path = study / "configs" / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    call("train", str(path))
    return name


def train_all(
    study: Path, configs: Mapping[str, dict[str, Any]], jobs: int, done: Callable[[str], None] = lambda _: None
) -> None:
    """All runs, some at a time, in their order. `done` is called in turn with the name of each that has ended well."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, study, name, config) for name, config in configs.items()]
        try:
            for future in as_completed(futures):
                done(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train_missing(
    study: Path,
    curves: Path,
    configs: Mapping[str, dict[str, Any]],
    jobs: int,
    rows_of: Callable[[Path, str], Iterable["CurveRow"]],
) -> None:
    """The runs that are not in a file of curves, each added to it (`rows_of`) when it has ended well."""
    done = names_of(curves)
    left = {name: config for name, config in configs.items() if name not in done}
    train_all(study, left, jobs, lambda name: add_rows(curves, rows_of(study, name)))


def make_bases(study: Path, config: Mapping[str, Any], steps: Mapping[str, int], results: Path) -> None:
    """Trains STUDY/runs/base and keeps steps of it as RESULTS/bases/NAME, unless they are there.

    A CPU of another kind rounds otherwise and makes another base; runs are compared that began from the same. A base of
    other texts, whose tokenizer is another, ends the study.
    """
    folders = {name: results / "bases" / name for name in steps}
    for folder in folders.values():
        if folder.exists() and (study / TOKENIZER).read_bytes() != (folder / "tokenizer.json").read_bytes():
            sys.exit(
                f"{folder}: its tokenizer is not that of {study / 'base-config'}, so it was made of other texts. "
                "Give the texts of its results, or --results NEW for a base of these."
            )
    if all(folder.exists() for folder in folders.values()):
        return
    train(study, "base", dict(config))
    for name, folder in folders.items():
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            call("convert", "to-hf", str(study / f"runs/base/checkpoints/step-{steps[name]:08}"), str(folder))


def call(*words: str) -> None:
    """A megatron-cpt command on one thread. Its failure ends the study."""
    code = subprocess.call([COMMAND, *words], env=os.environ | {"OMP_NUM_THREADS": "1"})
    if code:
        sys.exit(f"megatron-cpt {' '.join(words)}: exit code {code}")


COLUMNS = ("run", "series", "step", "value")
"""Of a file of curves; a series is `loss general` or another number that is followed."""

CurveRow = tuple[str, str, int, float]


def names_of(curves: Path) -> set[str]:
    """The runs whose curves are in a file."""
    return {run for run, *_ in read_rows(curves)}


def read_rows(curves: Path) -> Iterator[CurveRow]:
    """The rows of a file of curves; none where there is no file."""
    if not curves.exists():
        return
    with curves.open(newline="") as file:
        for row in csv.DictReader(file):
            yield row["run"], row["series"], int(row["step"]), float(row["value"])


def add_rows(curves: Path, rows: Iterable[CurveRow]) -> None:
    """Adds the rows of one run to a file of curves, values with six digits."""
    there = curves.exists()
    with curves.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([*([] if there else [COLUMNS]), *((*row[:3], f"{row[3]:.6g}") for row in rows)])


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A CSV file."""
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
