"""Whether a training step works against held-out text: its gradient beside that of a validation set.

arXiv:2406.14833 explains the stability gap by two gradients, one that learns the new text (plasticity) and one that
keeps the old (stability), and measures neither; De Lange et al. (arXiv:2205.13452) divide the gradient in this way. At
the evaluations of the chosen sets two gradients of the same weights, those before the update, are compared: that of the
set's first sequences (one global batch, dropout off) and that of the training batch. A cosine below 0 is a conflict: a
small step against the training gradient raises the loss of the set. Adam's step is not along the gradient, so the
change of the set's loss to first order is taken from the update that was made, and stands beside the change that came.

Nothing of training changes. Each number is summed over the ranks that hold a part of the gradient, each part once.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_cpt.evaluate.validation import ValidationSet, assign_to_ranks, micro_batches
from megatron_cpt.model.forward import run_micro_batches, source_sums, without_dropout
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import sum_over_world
from megatron_cpt.runs.records import Record
from megatron_cpt.train.logger import RunLogger
from megatron_cpt.train.optimizer import StepOutcome, clear_gradients, gather_gradients
from megatron_cpt.train.run import Run
from megatron_cpt.train.weight_updates import ELSEWHERE, LAYER_GROUPS, counted_parts

_AT_ONCE = 2**22
"""Elements of a product that are computed in float64 at once."""


@dataclass(frozen=True)
class HeldOutGradient:
    """The gradient of a validation set at the weights before an update, and what is compared after it."""

    validation_set: ValidationSet
    """Its first sequences."""
    gradients: list[Tensor]
    """float32, in host memory: the parts that this rank counts, in the order of `_trained_parts`."""
    weights: Tensor
    """float64 []: product of gradient and weights, of this rank's parts."""
    loss: float
    """Of these sequences, nats per token."""
    seconds: float
    """What it took."""


def held_out_gradients(run: Run, step: int) -> list[HeldOutGradient]:
    """The gradients of the sets that are compared with the update that ends a step. Every rank calls it."""
    names = [name for name in run.config.validation.gradient_conflict if step in run.plan.evaluation_steps[name]]
    return [_held_out_gradient(run, one) for one in run.validation_sets if one.name in names]


def record_conflict(
    run: Run, logger: RunLogger, step: int, before: Sequence[HeldOutGradient], done: StepOutcome
) -> None:
    """Compares the gradients of sets with that of the update that was made of them, and records it."""
    if not before or not done.updated:
        return
    counted = list(_trained_parts(run))
    for held_out in before:
        started = time.perf_counter()
        figures = _figures(run, held_out, counted, done.gradient_norm)
        name = held_out.validation_set.name
        record: Record = {"kind": "gradients", "step": step, "tokens": run.config.tokens_at(step), "set": name}
        record |= figures | {"seconds": held_out.seconds + time.perf_counter() - started}
        shown = {f"{figure}/{part}": value for figure in _BY_GROUP for part, value in figures[figure].items()}
        shown |= {"predicted_change": figures["predicted_change"], "change": figures["change"]}
        logger.record(record, {f"gradient_conflict/{name}/{figure}": value for figure, value in shown.items()})


def _trained_parts(run: Run) -> Iterator[tuple[int, Tensor]]:
    """The optimizer's weights whose gradients this rank adds to a sum over the world, each with its layer group."""
    counted = counted_parts(run.model, run.optimizer)
    yield from ((at, part) for at, parameter, part in counted if parameter.requires_grad)


def _held_out_gradient(run: Run, validation_set: ValidationSet) -> HeldOutGradient:
    """The gradient of the loss, nats per token, of one global batch of a set. The buffers are left empty."""
    started = time.perf_counter()
    chosen = _first_sequences(validation_set, run.config.training.global_batch_size)
    clear_gradients(run.model, run.optimizer)
    loss = _loss(run, chosen, backward=True)
    gather_gradients(run.optimizer)
    gradients, product = [], torch.zeros((), dtype=torch.float64, device=groups.device())
    for _, part in _trained_parts(run):
        assert part.grad is not None
        product += _dot(part.grad, part.detach())
        gradients.append(part.grad.detach().to("cpu", torch.float32, copy=True))
    clear_gradients(run.model, run.optimizer)
    return HeldOutGradient(chosen, gradients, product, loss, time.perf_counter() - started)


def _first_sequences(validation_set: ValidationSet, sequences: int) -> ValidationSet:
    mask = validation_set.loss_mask
    labels = validation_set.labels[:sequences]
    return replace(
        validation_set,
        labels=labels,
        scored_tokens=validation_set.scored_tokens[:sequences],
        loss_mask=None if mask is None else mask[: int(labels.sum())],
    )


def _loss(run: Run, validation_set: ValidationSet, backward: bool) -> float:
    """Nats per token of a set's sequences, the same on every rank; with its gradient in the buffers, if asked for."""
    chosen = [(validation_set, number) for number in range(len(validation_set.labels))]
    size = run.config.training.micro_batch_size
    mine = assign_to_ranks(len(chosen), size)
    with without_dropout(run.model), torch.set_grad_enabled(backward):
        losses = run_micro_batches(
            run.model, micro_batches(chosen, mine), len(mine), size, validation_set.sequence_length, backward
        )
    nats, tokens = source_sums(losses, 1, groups.device())
    return float(nats / tokens)


_BY_GROUP = ("cosine", "gradient_norm", "training_gradient_norm")


def _figures(
    run: Run, held_out: HeldOutGradient, counted: Sequence[tuple[int, Tensor]], training_norm: float
) -> dict[str, Any]:
    """What is recorded of a set: figures of the whole gradient (`all`) and of the bottom and the top layers."""
    # Of each group: squared norms of both gradients and their product; in the last row the change to first order.
    sums = torch.zeros(ELSEWHERE + 2, 3, dtype=torch.float64, device=groups.device())
    sums[-1, 0] -= held_out.weights
    for (at, part), kept in zip(counted, held_out.gradients, strict=True):
        assert part.grad is not None
        gradient = kept.to(part.device)
        pairs = ((gradient, gradient), (part.grad, part.grad), (gradient, part.grad))
        sums[at] += torch.stack([_dot(*pair) for pair in pairs])
        sums[-1, 0] += _dot(gradient, part.detach())
    sum_over_world(sums)
    squares = {"all": sums[:-1].sum(dim=0)} | {name: sums[at] for at, name in enumerate(LAYER_GROUPS)}
    # The update has scaled the training gradient where it was clipped.
    clipped = training_norm / float(squares["all"][1]) ** 0.5 if squares["all"][1] else 1.0
    figures: dict[str, Any] = {name: {} for name in _BY_GROUP}
    for name, (own, training, product) in squares.items():
        norms = float(own) ** 0.5, float(training) ** 0.5
        figures["cosine"][name] = float(product) / (norms[0] * norms[1]) if norms[0] and norms[1] else None
        figures["gradient_norm"][name], figures["training_gradient_norm"][name] = norms[0], norms[1] * clipped
    figures["predicted_change"] = float(sums[-1, 0])
    figures["change"] = _loss(run, held_out.validation_set, backward=False) - held_out.loss
    return figures


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """The product of two tensors, summed in float64: the change of a weight is small beside the weight."""
    pairs = zip(left.reshape(-1).split(_AT_ONCE), right.reshape(-1).split(_AT_ONCE), strict=True)
    return sum(
        (torch.dot(one.double(), other.double()) for one, other in pairs),
        start=torch.zeros((), dtype=torch.float64, device=left.device),
    )
