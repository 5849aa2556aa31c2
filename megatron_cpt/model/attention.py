"""Core attention for Megatron-Core's local layer spec: causal, windowed, by document, and over shared sequences.

- `ScaledDotProductAttention` keeps no score matrix: flash attention on CUDA and on CPU, at any length.
- `WindowedAttention` takes queries in blocks with the keys they see, so that neither time nor memory grows with the
  square of the length (arXiv:2310.06825, section 2).
- `ChunkedAttention` takes the queries of each chunk with the keys of that chunk.
- Sinks, a learnt score of each head that takes part in its softmax and belongs to no token (arXiv:2309.17453, section
  3.3), are a token before the first, whose value is 0: kernels need know nothing of them.
- Documents apart: a micro batch is one row of documents; no mask is needed. Where a document begins is known to the
  host: of packed sequences (`thd`) every layer would ask the GPU for it. Transformer Engine's kernels take those.
- Documents apart under context parallelism: a rank holds two parts of every sequence (parallel/context_parallel.py).
  Each document's piece is attended by itself, to the keys from its document's beginning to its own end. Megatron-Core
  cuts every document among the ranks instead, and so needs lengths that are multiples of twice their number.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker, set_tensor_model_parallel_attributes
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import bias

from megatron_cpt.data.loader import Batch
from megatron_cpt.families.memory import LARGEST_BLOCK, SCORED_AT_ONCE, SMALLEST_BLOCK
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.context_parallel import own_numbers, own_part, whole_row, with_keys_before


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
class DocumentPieces(PackedSeqParams):
    """The documents of a micro batch, or a rank's pieces of them, as they pass through the model.

    Megatron-Core hands them on as it does packed sequences, and leaves them alone: their format is not `thd`.
    """

    pieces: Sequence[Piece]
    """This rank's, in the order of its tokens."""
    positions: Tensor
    """int64 [t]: position of each of this rank's tokens in its document."""
    sequences: int
    """Sequences of the micro batch."""


def _document_pieces(batch: Batch) -> DocumentPieces:
    """What this rank has of the documents of a micro batch.

    Args:
        batch: of b sequences, or this rank's parts of them, and the lengths of all documents.
    """
    assert batch.document_lengths is not None, "the batch says where documents begin"
    sequences, own_length = batch.tokens.shape
    length = own_length * groups.context_size()
    longest = length
    if groups.context_size() == 1:
        ends = np.cumsum(batch.document_lengths).tolist()
        begins = [0, *ends[:-1]]
        pieces, longest = tuple(map(Piece, begins, begins, ends)), max(batch.document_lengths)
    else:
        pieces = pieces_of(batch.document_lengths, length, groups.context_size(), own_numbers())
    positions = np.concatenate([np.arange(piece.begin, piece.end) - piece.document for piece in pieces])
    return DocumentPieces(
        qkv_format="sbhd",
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        pieces=pieces,
        positions=torch.from_numpy(positions).to(batch.tokens.device, non_blocking=True),
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


def restart_positions(model: LanguageModule) -> None:
    """Has a chunk of the model turn pieces of documents by positions that begin anew with each, as packed ones do."""
    if model.config.multi_latent_attention:  # whose layers have the angles of their own
        return
    embedding = model.rotary_pos_emb
    model.decoder.register_forward_pre_hook(partial(_with_angles_in_documents, embedding), with_kwargs=True)


def _with_angles_in_documents(
    embedding: RotaryEmbedding, decoder: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What the layers are called with: the angles, [t, 1, 1, d], are those of this rank's tokens in their documents."""
    documents = named.get("packed_seq_params")
    if not isinstance(documents, DocumentPieces):
        return None
    angles = embedding.get_emb(documents.max_seqlen_q)[documents.positions]
    return given, named | {"rotary_pos_emb": angles}


class TakesDocuments(MegatronModule):
    """What mixes tokens of a sequence, and keeps documents apart by DocumentPieces."""


class ScaledDotProductAttention(TakesDocuments):
    """Causal attention with grouped queries. Tensors are [sequence, batch, heads, head_dim]."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        temperature: tuple[float, int, int] | None = None,
    ) -> None:
        """Takes what Megatron-Core gives a core attention, and more.

        Args:
            temperature: b, n and p of 1 + b ln(1 + floor(position / n)), the factor of queries, where the first token
                has the position p; None: there is none.
        """
        super().__init__(config=config)
        self.temperature = temperature
        self.softmax_offset = _own_sinks(config) if config.softmax_type == "learnable" else None
        if attn_mask_type is not AttnMaskType.causal:
            raise ValueError(f"ScaledDotProductAttention is causal; the layer asks for {attn_mask_type}")
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attends each position to itself and those before it.

        query: [s, b, heads, d]; key and value: [s, b, groups, d]. Returns [s, b, heads * d]. Values may have a width of
        their own, which is then that of what is returned. Where ranks share sequences, s is this rank's part
        (parallel/context_parallel.py). With documents apart they are [t, 1, heads, d]: documents of any length, or this
        rank's pieces of them, end to end.
        """
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("ScaledDotProductAttention takes no mask and no bias: it is causal")
        if self.temperature is not None:
            query = self.sharpened(query, packed_seq_params)
        dropout = self.dropout if self.training else 0.0
        # Heads are split over tensor-parallel ranks, so each rank draws from its own random state, as Megatron does.
        random_state = get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext()
        with random_state:
            if isinstance(packed_seq_params, DocumentPieces):
                return self.attend_pieces(query, key, value, packed_seq_params, dropout)
            if self.config.context_parallel_size > 1:
                return torch.cat(
                    [
                        self.attend(part, keys, values, dropout)
                        for part, keys, values in with_keys_before(query, key, value)
                    ]
                )
            return self.attend(query, key, value, dropout)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Its part of a distributed checkpoint: sinks are divided as the heads are."""
        state = self.state_dict(prefix="", keep_vars=True)
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            state, prefix, {"softmax_offset": 0}, sharded_offsets
        )
        return sharded

    def sharpened(self, query: Tensor, packed_seq_params: PackedSeqParams | None) -> Tensor:
        """The queries times their factors, which grow with their positions (arXiv:2501.19399).

        query: [s, b, heads, d].
        """
        assert self.temperature is not None
        beta, unscaled, first = self.temperature
        if isinstance(packed_seq_params, DocumentPieces):
            longest, positions = packed_seq_params.max_seqlen_q, packed_seq_params.positions
        else:
            longest = len(query) * self.config.context_parallel_size
            positions = own_part(torch.arange(longest, device=query.device), axis=0)
        if longest is not None and longest + first <= unscaled:
            return query
        factors = 1 + beta * torch.log(1 + torch.floor((positions + first) / unscaled))
        return query * factors.to(query.dtype)[:, None, None, None]

    def attend_pieces(
        self, query: Tensor, key: Tensor, value: Tensor, documents: DocumentPieces, dropout: float
    ) -> Tensor:
        """Each document, or piece of this rank, to its own document up to there, which other ranks may have parts of.

        query: [t, 1, heads, d]; key and value: [t, 1, groups, d]. Returns [t, 1, heads * d].
        """
        keys, values = key, value
        if self.config.context_parallel_size > 1:
            keys, values = (whole_row(states, documents.sequences) for states in (key, value))
        queries = query.split([piece.end - piece.begin for piece in documents.pieces])
        seen = [slice(piece.document, piece.end) for piece in documents.pieces]
        parts = zip(queries, seen, strict=True)
        return torch.cat([self.attend(part, keys[places], values[places], dropout) for part, places in parts])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """The last query to all keys, the one before to all but the last, and so on.

        query: [q, b, heads, d]; key and value: [k, b, groups, d], k >= q. Returns [q, b, heads * d].
        """
        whole, first = len(query) == len(key), 0
        scale, width = self.scale, value.size(-1)
        if self.softmax_offset is not None:
            scale = query.size(-1) ** -0.5 if scale is None else scale
            query, key, value = _with_sink(query, key, value, self.softmax_offset, scale)
            if whole:  # and a query of no use at the place of the sink: a mask would stand in memory
                query, first = functional.pad(query, _ONE_BEFORE), 1
        context = self.by_kernel(query, key, value, dropout, scale, None if whole else _lower_right(query, key))
        return context[first:, ..., :width].flatten(2)

    def by_kernel(
        self, query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float | None, mask: Tensor | None
    ) -> Tensor:
        """What torch's kernel gives, [q, b, heads, d].

        query: [q, b, heads, d]; key and value: [k, b, groups, d].

        Args:
            mask: which of the keys a query sees; None: those up to its own, of which there are as many as queries.
        """
        if value.size(-1) < key.size(-1):
            # Kernels take values as wide as keys; for others all scores would stand in memory.
            value = functional.pad(value, (0, key.size(-1) - value.size(-1)))
        context = functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),  # [b, heads, q, d]
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=key.size(2) != query.size(2),
        )
        return context.permute(2, 0, 1, 3)


def _own_sinks(config: TransformerConfig) -> torch.nn.Parameter:
    """A score of each of this rank's heads, [heads], under Megatron-Core's name: drawn whole and then divided."""
    sinks = torch.empty(config.num_attention_heads, dtype=config.params_dtype)
    if config.perform_initialization:
        config.init_method(sinks)
    own = torch.nn.Parameter(sinks.chunk(groups.tensor_size())[groups.tensor_rank()].clone())
    set_tensor_model_parallel_attributes(own, is_parallel=True, dim=0, stride=1)
    return own


_ONE_BEFORE = (0, 0, 0, 0, 0, 0, 1, 0)
"""One more at the beginning of the first axis of four, for torch's pad."""


def _with_sink(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys whose scores have the sinks before those of the first key, and values that have 0 there.

    Two further dimensions give the scores of the sinks: queries have the sink of their head there, the key before the
    first has the scale, inverted, in two parts, or it would be rounded in bf16. The other keys have 0.

    query: [q, b, heads, d]; key and value: [k, b, groups, d]; sinks: [heads]. Returns the same with d + 2, and of one
    more key.
    """
    mantissa, exponent = math.frexp(1 / scale)
    inverse = math.ldexp(round(256 * mantissa), exponent - 8)  # bf16 has so many digits
    keys, values = (functional.pad(states, (0, 2, *_ONE_BEFORE[2:])) for states in (key, value))
    keys[0, ..., -2], keys[0, ..., -1] = inverse, 1 / scale - inverse
    of_heads = sinks.view(1, 1, -1, 1).expand(*query.shape[:3], 2)
    return torch.cat([query, of_heads], dim=-1), keys, values


def _lower_right(query: Tensor, key: Tensor) -> Tensor:
    """The mask by which the last query sees all keys, the one before all but the last, and so on."""
    mask: Tensor = bias.causal_lower_right(len(query), len(key))
    return mask


class SoftCappedAttention(ScaledDotProductAttention):
    """Causal attention whose scores are soft-capped, and that may see no further back than a window.

    (arXiv:2408.00118, section 2.) No kernel of torch's computes a soft cap: the scores of a block of queries stand in
    memory, in fp32, as those of transformers do.
    """

    def __init__(self, *given: Any, soft_cap: float | None = None, window: int | None = None, **named: Any) -> None:
        """Takes what ScaledDotProductAttention takes.

        Args:
            soft_cap: c of c * tanh(score / c); None: scores are not capped.
            window: tokens that a position sees, itself included; None: all before it.
        """
        super().__init__(*given, **named)
        self.soft_cap, self.window = soft_cap, window

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """As above; query: [q, b, heads, d]; key and value: [k, b, groups, d], k >= q. Returns [q, b, heads * d]."""
        repeats, before = query.size(2) // key.size(2), len(key) - len(query)
        keys = key.permute(1, 2, 3, 0).repeat_interleave(repeats, dim=1)  # [b, heads, d, k]
        values = value.permute(1, 2, 0, 3).repeat_interleave(repeats, dim=1)  # [b, heads, k, d]
        queries = query.permute(1, 2, 0, 3)
        parts = [
            self.attend_block(queries[:, :, start : start + SCORED_AT_ONCE], keys, values, before + start, dropout)
            for start in range(0, len(query), SCORED_AT_ONCE)
        ]
        return torch.cat(parts, dim=2).permute(2, 0, 1, 3).flatten(2)

    def attend_block(self, queries: Tensor, keys: Tensor, values: Tensor, start: int, dropout: float) -> Tensor:
        """The outputs, [b, heads, q, d], of q queries from position `start` on."""
        stop = start + queries.size(2)
        scores = (queries @ keys[..., :stop]) * (queries.size(-1) ** -0.5 if self.scale is None else self.scale)
        if self.soft_cap is not None:
            scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
        distance = torch.arange(start, stop, device=scores.device)[:, None] - torch.arange(stop, device=scores.device)
        hidden = distance < 0
        if self.window is not None:
            hidden = hidden | (distance >= self.window)
        weights = scores.float().masked_fill(hidden, float("-inf")).softmax(dim=-1).to(queries.dtype)
        return functional.dropout(weights, dropout) @ values[:, :, :stop]


class WindowedAttention(ScaledDotProductAttention):
    """Causal attention within a window, with grouped queries. Tensors are [sequence, batch, heads, head_dim]."""

    def __init__(self, *given: Any, window: int, scale: float | None = None, **named: Any) -> None:
        """Takes what ScaledDotProductAttention takes, and more.

        Args:
            window: tokens that a position sees, itself included.
            scale: factor of this layer's scores, whatever those of others have; None: the root of a head's width,
                inverted.
        """
        super().__init__(*given, **named)
        self.window, self.scale = window, scale

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """As ScaledDotProductAttention.attend.

        query: [q, b, heads, d]; key and value: [k, b, groups, d], k >= q, the last query at the last key.
        Returns [q, b, heads * d].
        """
        if len(key) <= self.window:
            return super().attend(query, key, value, dropout)
        # Smaller blocks are slow, larger ones wasteful.
        size, before = min(max(self.window, SMALLEST_BLOCK), LARGEST_BLOCK), len(key) - len(query)
        parts = [
            self.attend_block(queries, key, value, before + number * size, dropout)
            for number, queries in enumerate(query.split(size))
        ]
        return torch.cat(parts)

    def attend_block(self, queries: Tensor, key: Tensor, value: Tensor, start: int, dropout: float) -> Tensor:
        """The outputs, [q, b, heads * d], of q queries from position `start` on."""
        stop, first = start + len(queries), max(0, start - self.window + 1)
        places = torch.arange(first, stop, device=queries.device)
        distance = places[start - first :, None] - places
        seen, scale, width = (distance >= 0) & (distance < self.window), self.scale, value.size(-1)
        keys, values = key[first:stop], value[first:stop]
        if self.softmax_offset is not None:
            scale = queries.size(-1) ** -0.5 if scale is None else scale
            queries, keys, values = _with_sink(queries, keys, values, self.softmax_offset, scale)
            seen = functional.pad(seen, (1, 0), value=True)
        return self.by_kernel(queries, keys, values, dropout, scale, seen)[..., :width].flatten(2)


class ChunkedAttention(ScaledDotProductAttention):
    """Causal attention within chunks, with grouped queries. Tensors are [sequence, batch, heads, head_dim].

    Chunks are counted from the beginning of a sequence, or of each document where they are apart.
    """

    def __init__(self, *given: Any, chunk: int, **named: Any) -> None:
        """Takes what ScaledDotProductAttention takes, and more.

        Args:
            chunk: tokens of each part of a sequence; a position sees itself and those before it in its part.
        """
        super().__init__(*given, **named)
        self.chunk = chunk

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """As ScaledDotProductAttention.attend; the first key is that of the first token.

        query: [q, b, heads, d]; key and value: [k, b, groups, d], k >= q, the last query at the last key.
        Returns [q, b, heads * d].
        """
        before = len(key) - len(query)
        starts = range(before - before % self.chunk, len(key), self.chunk)
        if len(starts) == 1:
            return super().attend(query, key[starts[0] :], value[starts[0] :], dropout)
        parts = []
        for start in starts:
            stop = min(start + self.chunk, len(key))
            queries = query[max(start - before, 0) : stop - before]
            parts.append(super().attend(queries, key[start:stop], value[start:stop], dropout))
        return torch.cat(parts)


def packed_forward(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The nats of each label, [b, s], of a micro batch whose documents are kept apart."""
    own = any(isinstance(module, TakesDocuments) for module in model.modules())
    output: Tensor = model(
        batch.tokens.view(1, -1),
        batch.positions.reshape(1, -1),
        None,
        labels=batch.labels.view(1, -1),
        packed_seq_params=_document_pieces(batch) if own else _packed_parameters(batch),
    )
    # The last pipeline stage has nats, [1, b s], or penalties beside them, [1, b s, 2]; the others pass hidden states
    # on, [b s, 1, h].
    if output.shape[:2] != (1, batch.tokens.numel()):
        return output
    return output.view(*batch.tokens.shape, *output.shape[2:])


def _packed_parameters(batch: Batch) -> PackedSeqParams:
    """Where the documents of a micro batch begin and end, for Transformer Engine's kernels."""
    assert batch.document_lengths is not None, "the batch says where documents begin"
    lengths = torch.tensor((0, *batch.document_lengths), dtype=torch.int32, device=batch.tokens.device)
    ends = lengths.cumsum(0, dtype=torch.int32)
    longest = max(batch.document_lengths)
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=longest, max_seqlen_kv=longest
    )
