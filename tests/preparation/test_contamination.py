"""Overlap with evaluation items: found whatever stands around it, left out or counted, and listed with the item."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.preparation.contamination import (
    EvaluationItem,
    EvaluationSet,
    contamination_path,
    evaluation_ngrams,
    read_contamination,
)
from megatron_cpt.preparation.hashed_words import hashed_words
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.tasks.task_files import evaluation_sets

WriteJsonl = Callable[..., Path]
THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def items(*texts: str) -> EvaluationSet:
    return EvaluationSet("t", "t.jsonl", "0", tuple(EvaluationItem(f"q{n}", (text,)) for n, text in enumerate(texts)))


def found(sets: list[EvaluationSet], *texts: str) -> list[tuple[int, int, int]]:
    return [tuple(row) for row in evaluation_ngrams(sets).overlaps(hashed_words(texts)).tolist()]


def test_thirteen_words_running_are_an_overlap_and_twelve_are_not() -> None:
    sets = [items(f"Zero! {THIRTEEN}; fourteen.", "too short to be found"), items("x " + THIRTEEN)]
    assert evaluation_ngrams(sets).too_short == (1, 0)
    around = f"before ONE, {THIRTEEN.removeprefix('one')}... after"
    assert found(sets, "nothing", around) == [(1, 0, 1), (1, 2, 1)]
    assert found(sets, THIRTEEN.replace("seven", "7"), THIRTEEN.removeprefix("one ")) == []
    assert found(sets, f"zero {THIRTEEN} fourteen. {THIRTEEN}") == [(0, 0, 3), (0, 2, 1)]
    assert found([], around) == found(sets) == []


def test_a_question_is_found_where_its_choice_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    line = {"id": "a", "question": "which of these seven words is the one", "choices": ["of all the words here", "no"]}
    path.write_text(json.dumps(line | {"answer": 0}) + "\n" + json.dumps({"task": "other", "text": THIRTEEN}))
    first, second = evaluation_sets([str(path)])
    assert (first.name, second.name) == ("quiz", "other") and first.sha256 == second.sha256
    assert found([first], "Which of these seven words is the one? Of all the words here.") == [(0, 0, 1)]


def test_documents_that_overlap_leave_or_are_counted(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    planted = [f"{text[:300]} {THIRTEEN} {text[300:]}" for text in texts[:6]]
    corpus = [str(write_jsonl("a.jsonl", [*texts, *planted, planted[0]]))]
    sets = [items("short", f"{THIRTEEN} fourteen"), replace(items("not in the corpus " + THIRTEEN[::-1]), name="clean")]
    settings = PrepareSettings(holdout=0.5)
    training = prepare(corpus, tokenizer_folder, tmp_path / "out", settings, evaluation=sets).training
    assert (training.contaminated, training.duplicates) == (6, 1)
    record = read_contamination(tmp_path / "out", training)
    assert record is not None
    dirty, clean = record.sets
    assert (dirty.items, dirty.too_short, dirty.items_left_out, dirty.documents_left_out) == (2, 1, 1, 6)
    assert (dirty.items_kept, dirty.documents_kept, clean.documents_left_out, clean.documents_kept) == (0, 0, 0, 0)
    listed = [json.loads(line) for line in Path(f"{tmp_path}/out.contaminated.jsonl").read_text().splitlines()]
    assert sorted(entry["line"] for entry in listed) == list(range(len(texts) + 1, len(texts) + 7))
    assert all(entry["overlaps"] == [{"set": "t", "item": "q1", "ngrams": 1}] for entry in listed)
    assert prepare(corpus, tokenizer_folder, tmp_path / "out", settings, evaluation=sets).reused

    # Counted alone: what is held out is not trained on.
    counting = replace(settings, contaminated="count")
    counted = prepare(corpus, tokenizer_folder, tmp_path / "out", counting, evaluation=sets, overwrite=True).training
    record = read_contamination(tmp_path / "out", counted)
    assert counted.contaminated == 0 and record is not None
    listed = [json.loads(line) for line in Path(f"{tmp_path}/out.contaminated.jsonl").read_text().splitlines()]
    held_out = sum(entry["held_out"] for entry in listed)
    assert (record.sets[0].documents_kept, record.sets[0].documents_left_out) == (6 - held_out, 0)
    assert 0 < held_out < 6

    # Without them nothing of it stays beside the dataset.
    prepare(corpus, tokenizer_folder, tmp_path / "out", settings, overwrite=True)
    assert not list(tmp_path.glob("out.contamin*"))
    assert read_contamination(tmp_path / "out", counted) is None


def test_held_out_documents_of_another_corpus_are_items(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, texts: list[str]
) -> None:
    prepare([str(write_jsonl("a.jsonl", texts[:40]))], tokenizer_folder, tmp_path / "a", PrepareSettings(holdout=0.3))
    sets = evaluation_sets([str(tmp_path / "a.validation")])
    corpus = [str(write_jsonl("b.jsonl", [f"{text[:700]} and so on" for text in texts]))]
    training = prepare(corpus, tokenizer_folder, tmp_path / "b", evaluation=sets).training
    assert training.contaminated is not None
    assert len(sets[0].items) - 2 <= training.contaminated <= len(sets[0].items) + 5


def test_real_abstracts_are_found_in_pubmedqa(
    tmp_path: Path, shared: Callable[[str], Path], tokenizer_folder: Path
) -> None:
    """The corpus of abstracts is the evaluation set: every item must be found, and none of ARC's."""
    sets = evaluation_sets([str(shared(f"eval_sets/{name}")) for name in ("pubmedqa_pqal.jsonl.zst", "arc_easy.jsonl")])
    corpus = [str(shared("med_pubmedqa_abstracts/med_pubmedqa_abstracts.jsonl.zst"))]
    settings = PrepareSettings(contaminated="count")
    training = prepare(corpus, tokenizer_folder, tmp_path / "x", settings, evaluation=sets).training
    record = read_contamination(tmp_path / "x", training)
    assert record is not None
    pubmedqa, arc = record.sets
    assert (pubmedqa.items, pubmedqa.items_kept, pubmedqa.documents_kept) == (1000, 1000, 1000)
    assert arc.items == 2376 and arc.items_kept == arc.documents_kept == 0


def test_what_is_no_evaluation_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}')
    with pytest.raises(BadInput, match=r"(?s)a.jsonl, line 1.*cannot be read"):
        evaluation_sets([str(tmp_path / "a.jsonl"), str(tmp_path / "nowhere.jsonl")])
    contamination_path(tmp_path / "x").write_text("{}")
    with pytest.raises(IntegrityFault, match="is no record of overlap"):
        read_contamination(
            tmp_path / "x", Manifest(documents=0, tokens=0, dtype="uint16", data_sha256="0", index_sha256="0")
        )
