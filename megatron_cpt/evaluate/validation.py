"""Validation on fixed sequences: the same at every evaluation, in every run and under every layout.

1. A set is the first N sequences of its stream: sequence s is tokens [s L, s L + L], the last one short. Labels
   that training leaves out of the loss do not count here either.
2. The sequences of all sets of an evaluation are laid end to end, and go through the model in one pass. They are dealt
   to data-parallel ranks and micro batches; what is missing to a whole micro batch is filled with sequences in
   which no token counts.
3. The last pipeline stage sums the nats of each sequence; one sum over ranks gives every rank all of them.
Losses are sums of nats over counts of tokens. Nothing of training is touched: no gradient buffer, no
random state (dropout is off), no data position.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.label_mask import LabelMask, set_identity
from megatron_cpt.corpus.stream import TokenStream, scored_tokens
from megatron_cpt.data.loader import Batch, make_batch
from megatron_cpt.model.forward import run_micro_batches, without_dropout
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import from_last_stage, sum_over_replicas

_NOTHING_LEFT_OUT = LabelMask()


class Text(Protocol):
    """Tokens that can be read by place."""

    def read(self, start: int, length: int, /) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True)
class ValidationSet:
    """One named set of fixed sequences."""

    name: str
    """Its name in the config."""
    role: str
    """domain or replay."""
    stream: Text
    """The text; read from its beginning, never around its end."""
    sequence_length: int
    """Tokens of a sequence, L."""
    labels: npt.NDArray[np.int64]
    """[N]: labels of each sequence; L, but for the last one."""
    scored_tokens: npt.NDArray[np.int64]
    """[N]: those of them that count."""
    scored_bytes: int | None
    """UTF-8 bytes of all scored tokens; None where the tokenizer does not tell."""
    identity: str
    """Hash of the sequences and of what decides their loss."""
    within_documents: bool = False
    """Whether attention stays within documents."""
    loss_mask: npt.NDArray[np.bool_] | None = None
    """[labels of all sequences]: which of them count; None: all."""


@dataclass(frozen=True)
class ValidationLoss:
    """The loss of a set at one evaluation, the same on every rank."""

    sequence_nats: npt.NDArray[np.float64]
    """[N]: summed loss of each sequence."""
    scored_tokens: npt.NDArray[np.int64]
    """[N]: tokens that counted in each."""
    scored_bytes: int | None
    """Bytes of all scored tokens."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.sequence_nats.sum() / self.scored_tokens.sum())

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per UTF-8 byte: comparable between tokenizers."""
        if not self.scored_bytes:
            return None
        return float(self.sequence_nats.sum() / np.log(2) / self.scored_bytes)


def open_set(
    name: str,
    role: str,
    stream: TokenStream,
    sequence_length: int,
    budget: int | None,
    token_bytes: npt.NDArray[np.int64] | None,
    attention: str = "across_documents",
    mask: LabelMask = _NOTHING_LEFT_OUT,
) -> ValidationSet:
    """Fixes the sequences of a set.

    Args:
        stream: at least two tokens long.
        budget: tokens to score at most, in whole sequences; None for the whole stream.
        token_bytes: UTF-8 bytes of each token id, where known.
        attention: `data.attention`.
        mask: which labels do not count.

    Raises BadInput where no label counts.
    """
    labels = scored_tokens(stream.tokens, sequence_length, budget)
    targets = int(labels.sum())
    scored, text, loss_mask = labels, stream.read(1, targets), None
    if mask.leaves_out:
        loss_mask = mask.loss_mask(stream, 1, text)
        scored, text = (
            np.add.reduceat(loss_mask, np.arange(len(labels)) * sequence_length, dtype=np.int64),
            text[loss_mask],
        )
        if not loss_mask.any():
            rule = f"has no label that counts among its {targets:,}: a loss of nothing is none."
            remedy = "Leave fewer labels out (data.loss_mask, loss_mask_column), or score more tokens of the set."
            raise BadInput(Fault(f"validation.sets.{name}", rule, remedy))
    return ValidationSet(
        name=name,
        role=role,
        stream=stream,
        sequence_length=sequence_length,
        labels=labels,
        scored_tokens=scored,
        scored_bytes=None if token_bytes is None else int(token_bytes[text].sum()),
        identity=set_identity(stream, sequence_length, targets, attention, mask),
        within_documents=attention == "within_documents",
        loss_mask=loss_mask,
    )


@torch.no_grad()
def evaluate(
    model: Sequence[torch.nn.Module], sets: Sequence[ValidationSet], micro_batch_size: int
) -> list[ValidationLoss]:
    """The loss of each set under the model as it stands, in one pass. Every rank calls it and gets the same.

    The sets have sequences of one length.
    """
    sequences = [(a_set, number) for a_set in sets for number in range(len(a_set.scored_tokens))]
    mine = assign_to_ranks(len(sequences), micro_batch_size)
    with without_dropout(model):
        losses = run_micro_batches(
            model, micro_batches(sequences, mine), len(mine), micro_batch_size, sets[0].sequence_length, backward=False
        )
    nats = torch.zeros(len(mine) * micro_batch_size * groups.data_size(), dtype=torch.float64, device=groups.device())
    if losses is not None:
        nats[torch.from_numpy(np.concatenate(mine)).to(nats.device)] = losses.nats
        sum_over_replicas(nats)
    from_last_stage(nats)
    ends = np.cumsum([len(a_set.scored_tokens) for a_set in sets])
    return [
        ValidationLoss(of_set, a_set.scored_tokens, a_set.scored_bytes)
        for a_set, of_set in zip(sets, np.split(nats.cpu().numpy(), ends), strict=False)  # what fills rounds is left
    ]


def assign_to_ranks(sequences: int, micro_batch_size: int) -> list[npt.NDArray[np.int64]]:
    """The places of the sequences in each micro batch of this data-parallel rank; the last places may be empty."""
    rounds = -(-sequences // (micro_batch_size * groups.data_size()))
    return [
        (turn * groups.data_size() + groups.data_rank()) * micro_batch_size + np.arange(micro_batch_size)
        for turn in range(rounds)
    ]


def micro_batches(
    sequences: Sequence[tuple[ValidationSet, int]], parts: Sequence[npt.NDArray[np.int64]]
) -> Iterator[Batch]:
    """The micro batches of the sequences at the given places; places beyond the last are empty sequences."""
    length, within = sequences[0][0].sequence_length, sequences[0][0].within_documents
    for places in parts:
        tokens = np.zeros((len(places), length + 1), dtype=np.int64)
        scored = np.zeros(len(places), dtype=np.int64)
        loss_mask = np.ones((len(places), length), dtype=np.bool_)
        starts = [np.zeros(1, dtype=np.int64)] * len(places)
        for row, place in enumerate(places.tolist()):
            if place < len(sequences):
                a_set, number = sequences[place]
                scored[row] = a_set.labels[number]
                found = a_set.stream.read(number * length, int(scored[row]) + 1)
                tokens[row, : len(found)] = found
                if a_set.loss_mask is not None:
                    loss_mask[row, : scored[row]] = a_set.loss_mask[number * length : number * length + scored[row]]
                if within:
                    starts[row] = a_set.stream.document_starts(number * length, int(scored[row]))
        sources = np.zeros(len(places), dtype=np.int64)
        yield make_batch(tokens, scored, sources, groups.device(), starts if within else None, loss_mask)
