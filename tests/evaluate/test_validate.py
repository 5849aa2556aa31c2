"""Validation: the model's own loss, exactly weighted, and training left as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import LlamaForCausalLM

from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.runs.records import read_records
from tests.ranks import Ranks
from tests.train.runs import column, records_of, train
from tests.workshop import SEQUENCE_LENGTH, Workshop


def transformers_nats(workshop: Workshop, corpus: str) -> list[float]:
    """Summed loss of each sequence of a validation set under transformers' model."""
    stream = TokenStream([f"{workshop.prefix(corpus)}.validation"])
    model = LlamaForCausalLM.from_pretrained(workshop.hf, dtype=torch.float32)
    nats = []
    for start in range(0, stream.tokens - 1, SEQUENCE_LENGTH):
        tokens = torch.from_numpy(stream.read(start, min(SEQUENCE_LENGTH + 1, stream.tokens - start)))
        logits = model(tokens[None, :-1]).logits[0]
        nats.append(torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum").item())
    return nats


def test_the_baseline_is_the_loss_of_the_hugging_face_model(
    one_rank: Ranks, workshop: Workshop, tmp_path: Path
) -> None:
    whole = ("validation.sets.domain.tokens=null", "validation.sets.general.tokens=null")
    path = workshop.write_config(tmp_path / "run")
    one_rank.call(train, path=path, overrides=("training.tokens=4 steps", *whole))
    for corpus in ("domain", "general"):
        baseline = next(record for record in records_of(tmp_path / "run", "validation") if record["set"] == corpus)
        expected = transformers_nats(workshop, corpus)
        assert baseline["step"] == 0
        np.testing.assert_allclose(baseline["sequence_nats"], expected, rtol=1e-5)
        assert baseline["loss"] == pytest.approx(sum(expected) / sum(baseline["sequence_tokens"]), rel=1e-6)
        text_bytes = baseline["loss"] * baseline["scored_tokens"] / np.log(2) / baseline["bits_per_byte"]
        assert text_bytes == pytest.approx(baseline["scored_bytes"])


@pytest.mark.ci
def test_evaluations_leave_training_as_it_was(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    often, never = tmp_path / "often", tmp_path / "never"
    dropout = ("model.dropout=0.1",)
    every_step = ("validation.eval_interval.every=1 steps",)
    path = workshop.write_config(often, tasks=workshop.tasks | {"eval_interval": {"at": ["7 steps"], "end": False}})
    signals = ("validation.weight_updates=true", "validation.gradient_conflict=[general]")
    one_rank.call(train, path=path, overrides=(*dropout, *every_step, *signals))
    assert len(records_of(often, "weights")) == 12 and len(records_of(often, "gradients")) == 12
    one_rank.call(train, path=workshop.write_config(never), overrides=(*dropout, "validation.sets={}"))
    assert records_of(often, "train") == records_of(never, "train")
    assert sorted({*column(records_of(often, "validation"), "step")}) == list(range(13))
    assert [(record["step"], record["task"]) for record in records_of(often, "task")] == [
        (step, task) for step in (0, 7) for task in ("first", "second", "texts")
    ]
    means = [record["score"] for record in records_of(often, "task_group")]
    scores = column(records_of(often, "task"), "score")
    assert means == [np.mean(scores[0:2]), np.mean(scores[3:5])]
    assert {*column(records_of(never), "kind")} == {"train"}
    board = EventAccumulator(str(often / "tensorboard")).Reload()
    losses = [event.value for event in board.Scalars("lm loss validation-general")]
    general = [record["loss"] for record in records_of(often, "validation") if record["set"] == "general"]
    np.testing.assert_allclose(losses, general, rtol=1e-6)
    depths = [event.value for event in board.Scalars("gap/general/depth")]
    np.testing.assert_allclose(depths, np.maximum.accumulate(np.array(general) - general[0])[1:], atol=1e-6)
    others = {"gap/domain/change", "task/first/accuracy", "task/texts/bits_per_byte", "task_group/both"}
    others |= {"gradient_conflict/general/cosine/all", "weight_update/norm_ratio/bottom", "bits_per_byte/domain"}
    others |= {"train/tokens_per_second", "loss/source/domain"}
    assert others <= set(board.Tags()["scalars"])
    # As Megatron-LM's training.py writes them.
    steps = [record for record in read_records(often / "records.jsonl") if record["kind"] == "train"]
    for tag, field in (("lm loss", "loss"), ("learning-rate", "learning_rate"), ("grad-norm", "grad_norm"),
                       ("iteration-time", "seconds"), ("mem-max-allocated-bytes", "memory_bytes")):  # fmt: skip
        shown = [(event.step, event.value) for event in board.Scalars(tag)]
        np.testing.assert_allclose(shown, [(one["step"], one[field]) for one in steps], rtol=1e-6)
    sequences = [0, *column(records_of(often, "train"), "sequences")]
    assert [event.value for event in board.Scalars("batch-size")] == np.diff(sequences).tolist()


@pytest.mark.ci
def test_a_set_is_the_same_whatever_the_micro_batch(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for run, size in ((small, 1), (large, 7)):
        overrides = (
            "training.tokens=4 steps",
            f"validation.micro_batch_size={size}",
            "validation.sets.domain.tokens=300",
        )
        one_rank.call(train, path=workshop.write_config(run), overrides=overrides)
    for left, right in zip(records_of(small, "validation"), records_of(large, "validation"), strict=True):
        assert left["identity"] == right["identity"]
        assert left["scored_tokens"] == right["scored_tokens"]
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-6)
    budgeted = next(record for record in records_of(small, "validation") if record["set"] == "domain")
    assert budgeted["scored_tokens"] == 288
