"""Single bits of every file that the program writes turned over: refused, harmless, or silent.

Refused: an error that is one of ours. Harmless: what the program takes from the file is proved equal. Silent is
neither; it is allowed for what UNDETECTED names alone.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from megatron_cpt.checkpoint.convert import checkpoint_from_hf, hf_from_checkpoint
from megatron_cpt.checkpoint.hf_folder import refuse_altered
from megatron_cpt.checkpoint.load import verify_and_vet
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.corpus.manifest import Manifest, verify_dataset
from megatron_cpt.corpus.scores import read_score, whole_record
from megatron_cpt.corpus.selection import load_selection
from megatron_cpt.parallel import groups
from megatron_cpt.preparation.contamination import read_contamination
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import Shard, merge, prepare_shard
from megatron_cpt.runs.checkpoint_state import MARKER, find_state
from megatron_cpt.runs.folder import read_json_object, write_checked_json
from megatron_cpt.scaling_law.tables import read_table_fits
from tests.reliability.running import digests
from tests.workshop import Workshop

Record = Callable[[str, object], None]
REFUSED = (BadInput, IntegrityFault)

UNDETECTED = {
    "lists for people": ("*.rejected.jsonl", "*.duplicates.jsonl", "*.contaminated.jsonl", "*.ids.jsonl"),
    "what a person may change": ("README.md", "generation_config.json", "config.yaml"),
    "what people and other programs look at": ("log.txt", "status.json", "report.html", "gap.json", "tensorboard/*"),
}
"""Files of which nothing says what was written; no number of a run or a law depends on them."""


def outcomes(path: Path, use: Callable[[], object], flips: int, draw: random.Random) -> Counter[str]:
    """Turns single bits of a file, and says what became of each."""
    content, right = path.read_bytes(), use()
    found: Counter[str] = Counter()
    for _ in range(flips):
        bit = draw.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found["harmless" if use() == right else f"silent: {path.name}, bit {bit}"] += 1
        except REFUSED:
            found["refused"] += 1
        path.write_bytes(content)
    assert use() == right
    return found


def judged(found: Counter[str], record_property: Record) -> None:
    silent = [what for what in found if what.startswith("silent")]
    record_property("flips", found.total())
    record_property("flips refused", found["refused"])
    record_property("flips without effect", found["harmless"])
    record_property("flips silent", len(silent))
    assert silent == []


def all_files(folder: Path, use: Callable[[], object], flips: int, names: str = "*") -> Counter[str]:
    """Flips over the files of a folder, the same number for each."""
    paths = [path for path in sorted(folder.rglob(names)) if path.is_file() and path.stat().st_size]
    draw, found = random.Random(flips), Counter[str]()
    for number, path in enumerate(paths):
        share = flips // len(paths) + (number < flips % len(paths))
        found += outcomes(path, use, share, draw)
    return found


@pytest.mark.parametrize("flips", [40, pytest.param(800, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_D1_flips_in_a_dataset(workshop: Workshop, tmp_path: Path, flips: int, record_property: Record) -> None:
    """Its index, tokens, manifest and column, as `inspect --verify` reads them."""
    for path in workshop.folder.glob("domain.*"):
        if path.suffix in (".bin", ".idx", ".json", ".npy"):
            shutil.copyfile(path, tmp_path / path.name)

    def use() -> dict[str, Any]:
        return asdict(verify_dataset(tmp_path / "domain"))

    for path in tmp_path.glob("*.validation.*"):
        path.unlink()
    judged(all_files(tmp_path, use, flips), record_property)


@pytest.mark.parametrize("flips", [40, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_D6_flips_in_scores_and_selections(
    workshop: Workshop, tmp_path: Path, flips: int, record_property: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in workshop.folder.glob("domain.*"):
        shutil.copyfile(path, tmp_path / path.name)
    prefix, beside = tmp_path / "domain", tmp_path / "beside"
    assert main(["score", str(prefix), "--by", "ngram", "--reference", workshop.prefix("general")]) == 0
    words = ["select", str(prefix), "--by", "ngram", "--keep", "lowest", "--tokens", "900", "--output"]
    assert main([*words, str(beside / "s")]) == 0
    manifest: Manifest = verify_dataset(prefix)

    def scores() -> tuple[bytes, object]:
        return np.array(read_score(prefix, "ngram", manifest)).tobytes(), whole_record(prefix, "ngram")

    def selected() -> tuple[object, ...]:
        chosen = load_selection(beside / "s")
        parts = [(part.documents.tolist(), part.starts.tolist(), part.lengths.tolist()) for part in chosen.datasets]
        return chosen.tokens, chosen.how, parts

    found = all_files(tmp_path, scores, flips // 2, "domain.ngram.*")
    judged(found + all_files(beside, selected, flips // 2), record_property)


@pytest.mark.parametrize("flips", [12, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(2400)])])
def test_P1_flips_in_pieces(workshop: Workshop, tmp_path: Path, flips: int, record_property: Record) -> None:
    """What `merge` writes of finished pieces is what it always writes, or it is refused."""
    output, kept = tmp_path / "out" / "x", tmp_path / "kept"
    settings = PrepareSettings(holdout=0.1)
    prepare_shard([str(workshop.folder / "domain.jsonl")], workshop.hf, output, settings, Shard(1, 1), workers=1)
    shutil.copytree(output.parent, kept)
    draw, found = random.Random(flips), Counter[str]()
    merge(output)
    right = digests(output.parent)
    names = sorted(path.name for path in (kept / "x.pieces").iterdir() if path.stat().st_size and path.name != "lock")
    for number in range(flips):
        shutil.rmtree(output.parent)
        shutil.copytree(kept, output.parent)
        path = output.parent / "x.pieces" / names[number % len(names)]
        content = bytearray(path.read_bytes())
        bit = draw.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            merge(output)
            same = digests(output.parent) == right
            found["harmless" if same else f"silent: {path.name}, bit {bit}"] += 1
        except REFUSED:
            found["refused"] += 1
    judged(found, record_property)


@pytest.mark.parametrize("flips", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_D6_flips_in_records_of_work(workshop: Workshop, tmp_path: Path, flips: int, record_property: Record) -> None:
    """Laws, plans, overlaps: objects that say themselves whether they are what was written."""
    plan = {"blend": {"sources": [{"name": "a", "tokens": 2**53 + 1, "epochs": 0.1, "role": None}]}, "x": "é"}
    folder = tmp_path / "records"
    folder.mkdir()
    write_checked_json(folder / "plan.json", plan)
    record = {"ngram_words": 13, "data_sha256": "0" * 64, "sets": []}
    write_checked_json(folder / "x.contamination.json", record)

    law = {"table_law": "bivariate", "sources": ["a", "b"], "sets": {}, "fitted": {"a": [0.1, 0.30000000000000004]}}
    write_checked_json(folder / "law.json", law)

    manifest = Manifest(documents=0, tokens=0, dtype="uint16", data_sha256="0" * 64, index_sha256="0" * 64)

    def use() -> object:
        overlap = read_contamination(folder / "x", manifest)
        # Its readers ask for keys by name: one more, which was the check's, is nothing to them.
        found = read_json_object(folder / "plan.json") or {}
        taken = {name: found.get(name) for name in plan}
        return taken, overlap and asdict(overlap), read_table_fits(folder / "law.json")

    judged(all_files(folder, use, flips), record_property)


@pytest.mark.parametrize("flips", [40, pytest.param(400, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_C6_flips_in_checkpoints_and_exports(
    workshop: Workshop, tmp_path: Path, flips: int, record_property: Record
) -> None:
    """Every file of a checkpoint; of an export, every file that makes it its model."""
    export, checkpoint = tmp_path / "hf", tmp_path / "model"
    groups.init_process_group()
    groups.init_model_parallel(ParallelSettings())
    try:
        checkpoint_from_hf(workshop.hf, checkpoint)
        hf_from_checkpoint(checkpoint, export)

        def loaded() -> object:
            verify_and_vet(checkpoint)
            return sorted(orjson.loads((checkpoint / MARKER).read_bytes())["sha256"].items()), find_state(checkpoint)

        found = all_files(checkpoint, loaded, flips // 2)
    finally:
        groups.destroy()

    def unaltered() -> None:
        refuse_altered(export)

    for name in ("README.md", "generation_config.json"):
        (export / name).unlink(missing_ok=True)
    judged(found + all_files(export, unaltered, flips // 2), record_property)
