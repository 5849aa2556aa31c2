"""Documents apart in sequences that ranks share: what a rank has of each document, and which keys it sees.

A rank holds two parts of every sequence (parallel/context.py). Where documents begin these are cut once more, into
pieces, and each piece is attended by itself, to the keys from its document's begin to its own end: those that the mask
of documents would hide are never computed. Megatron-Core's packed sequences (`thd`) cut every document among the ranks
instead, and so ask that its length be a multiple of twice their number.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_cpt.data.batches import Batch
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.context import own_numbers


@dataclass(frozen=True)
class Piece:
    """Tokens of one document that follow each other on one rank. Places are in all sequences laid end to end."""

    document: int
    """Where the document begins: the first key that its tokens see."""
    begin: int
    """Where the piece begins."""
    end: int
    """Where it ends: its last token sees the keys before this place."""


@dataclass(kw_only=True)
class SharedDocuments(PackedSeqParams):
    """The documents of a micro batch whose sequences ranks share, as they pass through the model.

    Megatron-Core hands them on as it does packed sequences, and leaves them alone: their format is not `thd`.
    """

    pieces: Sequence[Piece]
    """This rank's, in the order of its tokens."""
    positions: Tensor
    """int64 [t]: position of each of this rank's tokens in its document."""
    sequences: int
    """Sequences of the micro batch."""


def shared_documents(batch: Batch) -> SharedDocuments:
    """What this rank has of the documents of a micro batch.

    Args:
        batch: of b sequences; this rank's parts of them, and the lengths of all documents.
    """
    assert batch.document_lengths is not None, "the batch says where documents begin"
    sequences, own_length = batch.tokens.shape
    length = own_length * groups.context_size()
    pieces = pieces_of(batch.document_lengths, length, groups.context_size(), own_numbers())
    positions = np.concatenate([np.arange(piece.begin, piece.end) - piece.document for piece in pieces])
    return SharedDocuments(
        qkv_format="sbhd",
        max_seqlen_q=length,
        max_seqlen_kv=length,
        pieces=pieces,
        positions=torch.from_numpy(positions).to(batch.tokens.device),
        sequences=sequences,
    )


def pieces_of(
    document_lengths: Iterable[int], length: int, ranks: int, own_numbers: tuple[int, int]
) -> tuple[Piece, ...]:
    """The pieces of a rank, in the order of its tokens.

    Args:
        document_lengths: tokens of each document, over sequences laid end to end; each ends with its sequence.
        length: tokens of a sequence, a multiple of 2 * ranks.
        ranks: ranks that share each sequence.
        own_numbers: which of the 2 * ranks parts of a sequence are the rank's, counted from 0.
    """
    documents = np.cumsum([0, *document_lengths])
    part = length // (2 * ranks)
    cuts = np.union1d(documents, np.arange(0, documents[-1], part))
    begins, ends = cuts[:-1], cuts[1:]
    own = np.isin(begins // part % (2 * ranks), own_numbers)
    begins, ends = begins[own], ends[own]
    first_keys = documents[np.searchsorted(documents, begins, side="right") - 1]
    return tuple(map(Piece, first_keys.tolist(), begins.tolist(), ends.tolist()))


def restart_positions(model: GPTModel) -> None:
    """Has a chunk of the model turn shared documents by positions that begin anew with each, as packed ones do."""
    embedding = model.rotary_pos_emb
    model.decoder.register_forward_pre_hook(partial(with_angles_in_documents, embedding), with_kwargs=True)


def with_angles_in_documents(
    embedding: RotaryEmbedding, decoder: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What the layers are called with: the angles, [t, 1, 1, d], are those of this rank's tokens in their documents."""
    documents = named.get("packed_seq_params")
    if not isinstance(documents, SharedDocuments):
        return None
    angles = embedding.get_emb(documents.max_seqlen_q)[documents.positions]
    return given, named | {"rotary_pos_emb": angles}
