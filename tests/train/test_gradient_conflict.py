"""The gradient of held-out text beside that of training: against autograd through transformers' model."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.load import load_config
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.parallel import groups
from megatron_cpt.planning.plan import make_plan
from megatron_cpt.runs.folder import RunFolder
from megatron_cpt.train.run import assemble
from megatron_cpt.train.weight_updates import edge_layers
from tests.ranks import Ranks
from tests.train.runs import records_of, train
from tests.workshop import SEQUENCE_LENGTH, Workshop

SETTINGS = (
    "training.tokens=3 steps",
    "validation.eval_interval.every=1 steps",
    "validation.gradient_conflict=[general]",
)
BATCH = 8
"""Sequences of a step."""


def first_batch(path: Path, overrides: tuple[str, ...]) -> torch.Tensor:
    """Job: the tokens of the first training step and their labels, int64 [sequences, SEQUENCE_LENGTH + 1]."""
    config = load_config(path, overrides)
    folder = RunFolder(config.run.folder)
    folder.create()
    groups.init_process_group()
    run = assemble(config, make_plan(config, 1), folder)
    batches = list(run.data.global_batch(0, groups.device()))
    return torch.cat([torch.cat([batch.tokens, batch.labels[:, -1:]], dim=1) for batch in batches])


def gradient_of(model: LlamaForCausalLM, sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss of whole sequences, by the parameter's name."""
    model.zero_grad()
    logits = model(sequences[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten()).backward()
    return {name: parameter.grad.double().clone() for name, parameter in model.named_parameters()}


def part_of(gradient: dict[str, torch.Tensor], layers: range | None) -> torch.Tensor:
    """The gradient of some layers, or of everything, as one vector."""
    names = None if layers is None else tuple(f"model.layers.{number}." for number in layers)
    return torch.cat([one.flatten() for name, one in gradient.items() if names is None or name.startswith(names)])


def test_cosine_and_norms_are_those_of_autograd(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run", optimizer={"clip_grad": 0.01}, schedule={"warmup": None})
    [trained] = one_rank.call(first_batch, path=path, overrides=SETTINGS)
    one_rank.call(train, path=path, overrides=SETTINGS)
    stream = TokenStream([f"{workshop.prefix('general')}.validation"])
    held_out = torch.from_numpy(stream.read(0, BATCH * SEQUENCE_LENGTH + 1))
    sequences = torch.stack([held_out[at * SEQUENCE_LENGTH :][: SEQUENCE_LENGTH + 1] for at in range(BATCH)])
    model = LlamaForCausalLM.from_pretrained(workshop.hf, dtype=torch.float32)
    own, training = gradient_of(model, sequences), gradient_of(model, trained)
    first = records_of(tmp_path / "run", "gradients")[0]
    assert first["step"] == 1 and first["set"] == "general"
    layers = model.config.num_hidden_layers
    half = edge_layers(layers)
    for name, part in {"all": None, "bottom": range(half), "top": range(layers - half, layers)}.items():
        vectors = part_of(own, part), part_of(training, part)
        assert first["cosine"][name] == pytest.approx(float(torch.cosine_similarity(*vectors, dim=0)), abs=1e-5), name
        norms = first["gradient_norm"][name], first["training_gradient_norm"][name]
        assert norms == pytest.approx(tuple(float(vector.norm()) for vector in vectors), rel=1e-4), name
    assert first["training_gradient_norm"]["all"] == pytest.approx(
        records_of(tmp_path / "run", "train")[0]["grad_norm"]
    )


@pytest.mark.ci
def test_a_small_update_changes_the_loss_as_predicted(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run", schedule={"peak_lr": 2e-5, "final_lr": 2e-5, "warmup": None})
    one_rank.call(train, path=path, overrides=SETTINGS)
    records = records_of(tmp_path / "run", "gradients")
    assert [record["step"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["change"] == pytest.approx(record["predicted_change"], rel=0.05, abs=2e-6)
        assert abs(record["change"]) > 1e-5


def test_a_set_that_is_not_there_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    path = workshop.write_config(tmp_path / "run", validation={"gradient_conflict": ["generel"]})
    with pytest.raises(BadInput, match=r"validation\.gradient_conflict: generel: is no validation set; there are"):
        make_plan(load_config(path), 1)
