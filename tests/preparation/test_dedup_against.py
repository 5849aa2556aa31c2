"""`prepare --dedup-against PREFIX`: documents that another dataset has already are left out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.indexed import IndexedWriter
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.preparation import pieces
from megatron_cpt.preparation.dedup import known_copies
from tests.preparation.test_dedup import HASHES, runs_of

WriteJsonl = Callable[..., Path]


@settings(max_examples=40, deadline=None)
@given(hashes=HASHES, known=st.lists(HASHES, max_size=3), size=st.integers(1, 7))
def test_the_documents_whose_hash_a_dataset_has_are_found(
    tmp_path_factory: pytest.TempPathFactory, hashes: list[int], known: list[list[int]], size: int
) -> None:
    runs = runs_of(tmp_path_factory.mktemp("runs"), hashes, size)
    found = list(known_copies(runs, [np.array(part, np.uint64) for part in known]))
    numbers = [int(runs[copy.run].records()[copy.position]["bytes"]) for copy in found]
    assert sorted(numbers) == [n for n, one in enumerate(hashes) if any(one in part for part in known)]
    for number, copy in zip(numbers, found, strict=True):
        assert hashes[number] == copy.content_hash == known[copy.dataset][copy.document]


def test_documents_of_other_datasets_are_left_out_and_only_the_last_pass_is_repeated(
    tmp_path: Path,
    write_jsonl: WriteJsonl,
    tokenizer_folder: Path,
    texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(pieces, "SMALLEST_PIECE", 4000)
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet"]
    replay, corpus = write_jsonl("replay.jsonl", texts[:20]), write_jsonl("b.jsonl", [*texts[10:30], *texts[25:40]])
    fresh = write_jsonl("fresh.jsonl", [*texts[20:30], *texts[30:40]])
    assert main(["prepare", str(replay), *words, "--holdout", "30%", "--output", f"{tmp_path}/replay"]) == 0
    assert main(["prepare", str(fresh), *words, "--output", f"{tmp_path}/expected"]) == 0
    against = ["--dedup-against", f"{tmp_path}/replay", f"{tmp_path}/replay.validation"]
    out = [str(corpus), *words, "--output", f"{tmp_path}/out"]
    for shard in ("1/2", "2/2"):
        assert main(["prepare", *out, *against, "--shard", shard]) == 0
    assert main(["merge", f"{tmp_path}/out"]) == 0
    for ending in ("bin", "idx", "documents.npy"):
        assert Path(f"{tmp_path}/out.{ending}").read_bytes() == Path(f"{tmp_path}/expected.{ending}").read_bytes()
    listed = [json.loads(line) for line in (tmp_path / "out.duplicates.jsonl").read_text().splitlines()]
    of_replay = [entry["of"] for entry in listed if "dataset" in entry["of"]]
    assert (load_manifest(tmp_path / "out").duplicates, len(listed), len(of_replay)) == (15, 15, 10)
    assert {Path(one["dataset"]).name for one in of_replay} == {"replay", "replay.validation"}
    # Copies within the corpus may stay, those of the other dataset not.
    kept = [*out, "--keep-duplicates", "--overwrite"]
    assert main(["prepare", *kept, *against]) == 0
    assert load_manifest(tmp_path / "out").duplicates == 10
    assert main(["prepare", *kept]) == 0
    assert load_manifest(tmp_path / "out").documents == 35 and not (tmp_path / "out.duplicates.jsonl").exists()

    capsys.readouterr()
    assert main(["prepare", *out, *against]) == 2
    assert "made otherwise (other keep_duplicates, dedup_against)" in capsys.readouterr().err
    assert main(["prepare", *out, "--overwrite", "--dedup-against", f"{tmp_path}/out"]) == 2
    assert "is the dataset that is written" in capsys.readouterr().err
    with IndexedWriter(tmp_path / "foreign", "uint16") as writer:
        writer.add(np.array([1, 2]))
    assert main(["prepare", *out, "--overwrite", "--dedup-against", f"{tmp_path}/foreign"]) == 2
    assert "has no hashes of its documents' texts" in capsys.readouterr().err


def test_a_dataset_that_changes_between_shards_and_merge_is_refused(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokenizer", str(tokenizer_folder), "--quiet", "--output"]
    corpus = write_jsonl("a.jsonl", ["one", "two"])
    assert main(["prepare", str(write_jsonl("r.jsonl", ["two"])), *words, f"{tmp_path}/replay"]) == 0
    against = ["--dedup-against", f"{tmp_path}/replay", "--shard", "1/1"]
    assert main(["prepare", str(corpus), *words, f"{tmp_path}/out", *against]) == 0
    other = str(write_jsonl("s.jsonl", ["one"]))
    assert main(["prepare", other, *words, f"{tmp_path}/replay", "--overwrite"]) == 0
    assert main(["merge", f"{tmp_path}/out"]) == 2
    assert "has changed since the call began" in capsys.readouterr().err
