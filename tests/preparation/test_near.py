"""Near duplicates: what is found of planted ones, that nothing else is, and that which one stays is by content."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.columns import LOSS_SPAN
from megatron_cpt.corpus.indexed import IndexedDataset
from megatron_cpt.preparation import dedup, text_signatures
from megatron_cpt.preparation.contamination import OVERLAP
from megatron_cpt.preparation.dedup import DropMask, Reason, near_duplicates
from megatron_cpt.preparation.hashed_words import hashed_words
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.preparation.sorted_runs import RECORD, SortedRun, TokenBuffer, TokenizedDocuments, write_run
from megatron_cpt.preparation.text_signatures import FoundRun, TextSignatures, write_signatures
from megatron_cpt.tokenizer.tokenizer import Tokenizer

pytest.importorskip("rensa", reason="the optional rensa is not installed: pip install -e '.[quality]'")


WriteJsonl = Callable[..., Path]


def changed(text: str, share: float, vocabulary: list[str], draw: np.random.Generator) -> str:
    """The text with a share of its words, at random places, replaced by others."""
    words = text.split(" ")
    for place in draw.choice(len(words), round(share * len(words)), replace=False):
        words[place] = vocabulary[draw.integers(len(vocabulary))]
    return " ".join(words)


def jaccard(first: str, second: str) -> float:
    one, other = (set(hashed_words([text]).ngrams(5).hashes.tolist()) for text in (first, second))
    return len(one & other) / len(one | other)


def kept(prefix: Path, folder: Path) -> list[str]:
    tokenizer, dataset = Tokenizer.load(folder), IndexedDataset(prefix)
    return [tokenizer.decode(dataset.document(n)[:-1].tolist()) for n in range(dataset.documents)]


def listed(prefix: Path) -> list[dict]:
    path = Path(f"{prefix}.near_duplicates.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_planted_near_duplicates_of_real_text_are_found_and_nothing_else(
    tmp_path: Path, write_jsonl: WriteJsonl, shared: Callable[[str], Path], tokenizer_folder: Path
) -> None:
    """Abstracts of 100 to 400 words with 0 to 30 % of their words changed: what docs/preparing.md says of recall."""
    source = shared("med_pubmedqa_abstracts/med_pubmedqa_abstracts.jsonl.zst")
    with zstandard.open(source, "rt", encoding="utf-8", newline="\n") as lines:
        originals = [json.loads(line)["text"] for line in lines]
    draw = np.random.default_rng(3)
    vocabulary = sorted({word for text in originals for word in text.split(" ")})
    planted = {}
    for part, share in enumerate((0.0, 0.01, 0.02, 0.1, 0.3)):
        for text in originals[200 * part : 200 * (part + 1)]:
            again = changed(text, share, vocabulary, draw)
            planted[again.upper() if share == 0 else again] = (text, share)
    corpus = write_jsonl("a.jsonl", [*originals, *planted])
    prepared = prepare([str(corpus)], tokenizer_folder, tmp_path / "x", PrepareSettings(near_duplicates=0.75))
    found = listed(tmp_path / "x")
    assert prepared.training.near_duplicates == len(found)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    pairs = [(texts[entry["line"] - 1], texts[entry["of"]["line"] - 1], entry["similarity"]) for entry in found]
    recalled = dict.fromkeys((0.0, 0.01, 0.02, 0.1, 0.3), 0)
    true = {frozenset((again, text)): share for again, (text, share) in planted.items()}
    for one, other, similarity in pairs:
        alike = jaccard(one, other)
        assert alike > 0.6 and abs(alike - similarity) < 0.15
        recalled[true[frozenset((one, other))]] += 1
    assert recalled[0.0] == 200 and recalled[0.01] >= 198 and recalled[0.02] >= 180
    assert recalled[0.1] == recalled[0.3] == 0
    left = kept(tmp_path / "x", tokenizer_folder)
    assert len(left) == len(texts) - len(found)


def test_no_near_duplicate_of_a_held_out_document_stays_in_training(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    draw = np.random.default_rng(0)
    long = [text for text in texts if len(text.split(" ")) > 100]
    again = [changed(text, 0.01, ["other", "words"], draw) for text in long]
    settings = PrepareSettings(near_duplicates=0.7, holdout=0.3)
    for name, order in (("x", [*texts, *again]), ("y", [*again, *texts])):
        prepare([str(write_jsonl(f"{name}.jsonl", order))], tokenizer_folder, tmp_path / name, settings)
    training = kept(tmp_path / "x", tokenizer_folder)
    held_out = kept(tmp_path / "x.validation", tokenizer_folder)
    assert len(held_out) > 10
    assert max(jaccard(a, b) for a in training for b in held_out if min(len(a), len(b)) > 200) < 0.7
    # Which one stays does not depend on which one was read first.
    assert sorted(training) == sorted(kept(tmp_path / "y", tokenizer_folder))
    assert len(training) + len(held_out) + len(listed(tmp_path / "x")) == len(texts) + len(again)
    assert len(listed(tmp_path / "x")) >= len(long) - 2


def test_what_is_left_out_by_another_rule_takes_nothing_with_it(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    """An exact copy of a document, and the only near duplicate of it."""
    near_text = texts[5].replace("the", "THE")
    corpus = write_jsonl("a.jsonl", [*texts, texts[5], near_text])
    prepared = prepare([str(corpus)], tokenizer_folder, tmp_path / "x", PrepareSettings(near_duplicates=1.0))
    assert (prepared.training.duplicates, prepared.training.near_duplicates) == (1, 1)
    assert prepared.training.documents == len(texts)


def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path
) -> None:
    corpus = [str(write_jsonl("a.jsonl", ["one"]))]
    settings = PrepareSettings(near_duplicates=1.5, keep_duplicates=True)
    with pytest.raises(BadInput, match=r"(?s)--similarity 1.5.*contradict each other"):
        prepare(corpus, tokenizer_folder, tmp_path / "x", settings)


SIGNATURES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=30)


def made_up(kinds: list[tuple[int, int]]) -> np.ndarray:
    """Signatures of a few kinds, each with so many slots of its own."""
    rows = np.array([np.random.default_rng(kind).integers(0, 1 << 32, text_signatures.SLOTS) for kind, _ in kinds])
    rows = rows.reshape(-1, text_signatures.SLOTS).astype(np.uint32)
    for number, (_, own) in enumerate(kinds):
        rows[number, :own] = np.random.default_rng(1000 + number).integers(0, 1 << 32, own)
    return rows


@settings(max_examples=40, deadline=None)
@given(kinds=SIGNATURES, size=st.integers(1, 7), limits=st.sampled_from([(8, 40, 2), (1 << 21, 1 << 16, 1 << 20)]))
def test_of_each_pair_the_higher_rank_leaves_if_the_other_stays(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[int, int]], size: int, limits: tuple[int, int, int]
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    rows = made_up(kinds)
    ranks = np.random.default_rng(len(kinds)).permutation(len(kinds)).astype(np.uint64) << np.uint64(58)
    leaving = left_by(folder, rows, ranks, size, dict(zip(LIMITS, limits, strict=True)))
    bands = text_signatures.band_keys(rows)
    expected: dict[int, int] = {}
    for document in np.argsort(ranks).tolist():
        for other in np.argsort(ranks).tolist():
            candidates = bool((bands[document] == bands[other]).any())
            alike = (rows[document] == rows[other]).mean() >= 0.8
            if ranks[other] < ranks[document] and candidates and alike and other not in expected:
                expected.setdefault(document, other)
    assert leaving == expected


def test_of_thousands_of_one_template_all_but_one_leave(tmp_path: Path) -> None:
    """More of one band key than are held at a time, each compared with the few of lowest rank."""
    rows = made_up([(0, 0)] * 200)
    ranks = np.random.default_rng(1).permutation(200).astype(np.uint64) << np.uint64(50)
    limits = {"COMPARED_TEXTS": 16, "MOST_COMPARED": 3}
    assert left_by(tmp_path, rows, ranks, 60, limits) == dict.fromkeys(
        np.argsort(ranks)[1:].tolist(), int(np.argmin(ranks))
    )


LIMITS = ("RANGE_BANDS", "COMPARED_TEXTS", "RANGE_PAIRS")


def left_by(folder: Path, rows: np.ndarray, ranks: np.ndarray, size: int, limits: dict[str, int]) -> dict[int, int]:
    """What near_duplicates leaves out of documents of such signatures and ranks, in runs of so many."""
    runs, found = [], []
    for first in range(0, len(rows), size):
        records = np.zeros(len(rows[first : first + size]), RECORD)
        records["holdout_key"] = ranks[first : first + size]
        documents = TokenizedDocuments(
            records, np.empty(0, "<u2"), np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, LOSS_SPAN)
        )
        write_run(folder / f"{first}.run", documents, TokenBuffer(folder, np.dtype("<u2")))
        runs.append(SortedRun(folder / f"{first}.run", np.dtype("<u2"), len(records), 0, 0, 0, 0))
        findings = TextSignatures(rows[first : first + size], np.ones(len(records), np.bool_), np.empty(0, OVERLAP))
        checksum = write_signatures(folder / f"{first}.found", findings, np.arange(len(records)))
        found.append(FoundRun(folder / f"{first}.found", len(records), len(records) * text_signatures.BANDS, 0))
        assert found[-1].is_whole(checksum) and not found[-1].is_whole(checksum + 1)
    leaving = {}
    with pytest.MonkeyPatch.context() as patch, DropMask(folder / "marks", runs) as dropped:
        for name, value in limits.items():
            patch.setattr(dedup, name, value)
        for one in near_duplicates(runs, found, 0.8, dropped, folder / "pairs"):
            dropped.set(one.run, one.position, Reason.NEAR_DUPLICATE)
            leaving[one.run * size + one.position] = one.of_run * size + one.of_position
    return leaving
