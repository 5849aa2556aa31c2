"""The loss of documents: transformers' own, under every layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_cpt.checkpoint.convert import load_model
from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.corpus.scores import read_record, read_score
from megatron_cpt.evaluate.score_documents import ScoringModel, score_documents, windows
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups
from megatron_cpt.quality.score import open_datasets
from tests.ranks import Ranks
from tests.workshop import VOCABULARY, Workshop


def score_dataset(hf: Path, prefix: str, name: str, layout: ParallelSettings) -> list[bool]:
    """Job: scores a dataset, three windows at a time; whether the score was there."""
    groups.init_model_parallel(layout)
    shape = read_shape(hf)
    model = ScoringModel(load_model(hf, shape, "fp32"), 3, shape.max_positions, VOCABULARY)
    return [done.reused for done in score_documents(model, open_datasets([prefix]), name, {"by": "model"})]


def transformers_losses(hf: Path, prefix: str) -> list[float]:
    """Mean nats a token, one window at a time."""
    model = LlamaForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    longest = model.config.max_position_embeddings
    (part,) = open_datasets([prefix])
    losses = []
    for number in part.documents:
        ids = torch.tensor(part.dataset.document(int(number)).astype(np.int64))
        nats = 0.0
        for start in range(0, len(ids) - 1, longest):
            window = ids[start : start + longest + 1]
            with torch.no_grad():
                logits = model(window[None, :-1]).logits[0].double()
            nats += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        losses.append(nats / (len(ids) - 1))
    return losses


def test_losses_are_those_of_transformers_under_every_layout(
    one_rank: Ranks, two_ranks: Ranks, workshop: Workshop
) -> None:
    prefix = workshop.prefix("domain.validation")
    (part,) = open_datasets([prefix])
    # Some documents are longer than the model's input.
    assert part.lengths.max() > 64 + 1
    expected = transformers_losses(workshop.hf, prefix)
    assert one_rank.call(score_dataset, hf=workshop.hf, prefix=prefix, name="one", layout=ParallelSettings()) == [
        [False]
    ]
    assert one_rank.call(score_dataset, hf=workshop.hf, prefix=prefix, name="one", layout=ParallelSettings()) == [
        [True]
    ]
    assert read_score(part.prefix, "one", part.manifest) == pytest.approx(expected, abs=1e-5)
    for name, layout in (("tensor", ParallelSettings(tensor=2)), ("data", ParallelSettings())):
        two_ranks.call(score_dataset, hf=workshop.hf, prefix=prefix, name=name, layout=layout)
        assert read_score(part.prefix, name, part.manifest) == pytest.approx(expected, abs=1e-5)


def test_every_token_but_the_first_is_scored_once() -> None:
    found = windows(np.arange(10), None, 4)
    assert [window.ids for window in found] == [(0, 1, 2, 3, 4), (4, 5, 6, 7, 8), (8, 9)]
    assert [window.scored for window in found] == [4, 4, 1]
    assert windows(np.array([7]), None, 4) == [] == windows(np.array([], np.int64), 1, 4)


def test_the_command_scores_by_a_folder(
    workshop: Workshop, one_rank: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = workshop.prefix("general.validation")
    assert main(["score", prefix, "--by", "model", "--quiet"]) == 2
    assert "--checkpoint" in capsys.readouterr().err
    assert main(["score", prefix, "--by", "model", "--checkpoint", str(workshop.hf), "--tensor", "2"]) == 2
    words = ["score", prefix, "--by", "model", "--checkpoint", str(workshop.hf), "--nproc", "2", "--name", "loss"]
    assert main(words) == 0
    (part,) = open_datasets([prefix])
    assert read_score(part.prefix, "loss", part.manifest) == pytest.approx(
        transformers_losses(workshop.hf, prefix), abs=1e-5
    )
    record = read_record(part.prefix, "loss")
    assert record is not None and record.how["files"][0][0] == "model.safetensors"
