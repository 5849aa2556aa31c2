"""Gated delta nets (arXiv:2412.06464), with the parameters and checkpoint keys of Megatron-Core's GatedDeltaNet.

Each head has a state S, a matrix [key, value] that it carries from token to token. With key k, value v, query q, a
share b in (0, 1) and a decay g <= 0 of a token:

    S = exp(g) S + k u, where u = b (v - exp(g) S k);  what it gives is S q.

Over a chunk that begins with S, with G_i the sum of g up to its token i, the u of all its tokens solve one triangular
system (arXiv:2406.06484, section 3):

    u_i + b_i sum_{j < i} exp(G_i - G_j) (k_i k_j) u_j = b_i (v_i - exp(G_i) S k_i).

Documents apart: where a document begins, S is 0 and the convolution before it sees no token; in the sums above, a token
counts in its own document alone.

Megatron-Core 0.16.1 builds its own only where `fla` is installed, whose kernels need a GPU. By its code, which was not
run, it takes no documents, and does not sum the gradient of `out_norm` over tensor-parallel ranks, each of which has
that of its own heads, unless they divide sequences.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ReplicaId, ShardedTensorFactory
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from megatron_cpt.families.memory import DELTA_CHUNK as CHUNK
from megatron_cpt.model.attention import DocumentPieces, TakesDocuments
from megatron_cpt.parallel import groups

_SMALLEST_NORM = 1e-6
"""Added to the square of the length of a query or key before its root, as in `fla` and transformers."""
_INPUTS = ("query", "key", "value", "z", "beta", "alpha")
"""Megatron-Core's names of the parts of `in_proj`, in their order; the first three are convolved."""


class GatedDeltaNet(TakesDocuments):
    """What stands in a layer in the place of self-attention.

    What is between its projections is computed again in the backward pass: it keeps what `in_proj` gives and what
    `out_proj` reads.
    """

    def __init__(
        self, config: TransformerConfig, norm: Any, pg_collection: ProcessGroupCollection | None = None, **ignored: Any
    ) -> None:
        """Takes what a layer gives its self-attention, and more.

        Args:
            norm: makes the norm of what each head gives.
        """
        assert config.context_parallel_size == 1, "planning/checks.py refuses it"
        super().__init__(config=config)
        self.pg_collection = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
        ranks = self.pg_collection.tp.size()
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        keys, values = config.linear_num_key_heads * self.key_dim, config.linear_num_value_heads * self.value_dim
        heads = config.linear_num_value_heads
        rows = (keys, keys, values, values, heads, heads)
        self.own_rows = tuple(whole // ranks for whole in rows)
        """This rank's rows of each part of `in_proj`."""
        self.in_proj = ColumnParallelLinear(
            config.hidden_size,
            sum(rows),
            config=config,
            init_method=config.init_method,
            bias=False,
            gather_output=False,
            tp_group=self.pg_collection.tp,
        )
        self.conv1d = _Convolution(config, sum(self.own_rows[:3]) * ranks)
        self.dt_bias = _divided(config, torch.ones(heads, dtype=config.params_dtype))
        decays = torch.empty(heads).uniform_(1, 16) if config.perform_initialization else torch.ones(heads)
        self.A_log = _divided(config, decays.log().to(config.params_dtype))
        self.out_norm = norm(config, self.value_dim, config.layernorm_epsilon)
        for parameter in self.out_norm.parameters():
            parameter.sequence_parallel = False  # its gradient is summed where it is used
        self.out_proj = RowParallelLinear(
            values,
            config.hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_group=self.pg_collection.tp,
        )

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, packed_seq_params: Any = None, **ignored: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h], this rank's part of the sequences. Returns the same, and no bias."""
        documents = packed_seq_params if isinstance(packed_seq_params, DocumentPieces) else None
        if packed_seq_params is not None and documents is None:
            raise ValueError("a gated delta net takes documents as DocumentPieces")
        projected, _ = self.in_proj(hidden_states)
        # Every rank's heads have a part of its gradient.
        weight = copy_to_tensor_model_parallel_region(self.out_norm.weight)
        if torch.is_grad_enabled():
            inner = checkpoint(
                self.of_heads, projected, weight, documents, use_reentrant=False, preserve_rng_state=False
            )
        else:
            inner = self.of_heads(projected, weight, documents)
        output: tuple[Tensor, Tensor | None] = self.out_proj(inner)
        return output

    def of_heads(self, projected: Tensor, norm_weight: Tensor, documents: DocumentPieces | None) -> Tensor:
        """What this rank's heads give, normed and gated, [s, b, values].

        Args:
            projected: [s, b, rows of `in_proj`].
            norm_weight: [value_dim].
            documents: where documents begin, in one row [t, 1, ...]; None: they are not kept apart.
        """
        numbers = None if documents is None else (documents.positions == 0).cumsum(0)
        keys, _, values, _, heads, _ = self.own_rows
        convolved, gate, share, rate = projected.split([2 * keys + values, values, heads, heads], dim=-1)
        convolved = functional.silu(causal_convolution(convolved, self.conv1d.weight, numbers))
        query, key, value = (
            part.unflatten(-1, (-1, width)).transpose(0, 1)  # [b, s, heads, width]
            for part, width in zip(
                convolved.split([keys, keys, values], dim=-1), (self.key_dim, self.key_dim, self.value_dim), strict=True
            )
        )
        decay = -self.A_log.float().exp() * functional.softplus(rate.float() + self.dt_bias.float())
        output = _rule(query, key, value, decay.transpose(0, 1), share.sigmoid().transpose(0, 1), numbers, documents)
        output = output.transpose(0, 1)  # [s, b, heads, width]
        gated = gated_norm(output, gate.unflatten(-1, (-1, self.value_dim)), norm_weight, self.config.layernorm_epsilon)
        return gated.flatten(2)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Its part of a distributed checkpoint, under Megatron-Core's keys: one for each part of what is divided."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        own = dict(self.named_parameters(recurse=False))
        sharded: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            own, prefix, dict.fromkeys(own, 0), sharded_offsets
        )
        norm = self.out_norm.state_dict(prefix="", keep_vars=True)
        sharded |= make_sharded_tensors_for_checkpoint(norm, f"{prefix}out_norm.", {}, sharded_offsets)
        for name, linear in (("in_proj", self.in_proj), ("out_proj", self.out_proj)):
            sharded |= linear.sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
        for name, weight, parts in (("in_proj", self.in_proj.weight, 6), ("conv1d", self.conv1d.weight, 3)):
            key = f"{prefix}{name}.weight"
            sharded[key] = _in_parts(key, weight, _INPUTS[:parts], self.own_rows[:parts], sharded_offsets)
        return sharded


class _Convolution(MegatronModule):
    """Holds the weight of the convolution, [channels of this rank, 1, tokens]."""

    def __init__(self, config: TransformerConfig, channels: int) -> None:
        super().__init__(config=config)
        weight = torch.empty(channels, 1, config.linear_conv_kernel_dim, dtype=config.params_dtype)
        if config.perform_initialization:
            torch.nn.init.uniform_(weight, -(weight.size(-1) ** -0.5), weight.size(-1) ** -0.5)
        self.weight = _divided(config, weight)


def _divided(config: TransformerConfig, whole: Tensor) -> torch.nn.Parameter:
    """This rank's rows of a parameter, which is drawn whole."""
    own = torch.nn.Parameter(whole.chunk(groups.tensor_size())[groups.tensor_rank()].clone())
    set_tensor_model_parallel_attributes(own, is_parallel=True, dim=0, stride=1)
    return own


def _in_parts(
    key: str, weight: Tensor, names: Sequence[str], rows: Sequence[int], sharded_offsets: tuple[Any, ...]
) -> ShardedTensorFactory:
    """A parameter of a checkpoint as several tensors, of each of which this rank has some rows.

    Args:
        key: of the parameter.
        names: of its parts, which follow its key.
        rows: this rank's rows of each.
    """

    def build(key: str, values: Tensor, replica: ReplicaId, flattened_range: slice | None) -> list[ShardedTensor]:
        assert flattened_range is None, "optimizer state has the shape of its weight"
        parts: list[ShardedTensor] = []
        for name, part in zip(names, values.split(list(rows)), strict=True):
            sharded = make_sharded_tensors_for_checkpoint({name: part}, f"{key}.", {name: 0}, sharded_offsets)
            parts += sharded.values()
        return parts

    return ShardedTensorFactory(key, weight, build, torch.cat)


def causal_convolution(states: Tensor, weight: Tensor, documents: Tensor | None = None) -> Tensor:
    """Each channel's sum over the last tokens, in their own document, each times its weight.

    Args:
        states: [s, b, channels].
        weight: [channels, 1, tokens]; the last is that of a token itself.
        documents: int64 [s], ascending; None: all are one.
    """
    length, seen = len(states), weight.size(-1)
    padded = functional.pad(states, (0, 0, 0, 0, seen - 1, 0))
    output = states * weight[:, 0, -1]
    for back in range(1, min(seen, length)):
        before = padded[seen - 1 - back :][:length]
        if documents is not None:
            same = functional.pad(documents[back:] == documents[:-back], (back, 0))
            before = before * same[:, None, None]
        output = output + before * weight[:, 0, -1 - back]
    return output


def gated_norm(output: Tensor, gate: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of what each head gives, times SiLU of its gate. All are [..., value_dim], the weight [value_dim]."""
    wide = output.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
    return (weight * normed.to(output.dtype) * functional.silu(gate.float())).to(output.dtype)


def _rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    share: Tensor,
    numbers: Tensor | None,
    documents: DocumentPieces | None,
) -> Tensor:
    """gated_delta_rule, by the kernels of `fla` where they can compute it.

    Args:
        numbers: of each token's document.
        documents: the same as the host knows it.
    """
    if not uses_fla(query.device, query.dtype):
        return gated_delta_rule(query, key, value, decay, share, numbers)
    repeats = value.size(2) // key.size(2)
    query, key = (states.repeat_interleave(repeats, dim=2) for states in (query, key))
    ends = None
    if documents is not None:
        ends = torch.tensor([0, *(piece.end for piece in documents.pieces)], dtype=torch.int64, device=query.device)
    output: Tensor = _fla_rule()(
        *(states.contiguous() for states in (query, key, value)),
        g=decay.contiguous(),
        beta=share.contiguous(),
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=ends,
    )[0]
    return output


def uses_fla(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels of flash-linear-attention compute the rule: it is installed, on a GPU, and not in fp32."""
    return device.type == "cuda" and dtype is not torch.float32 and importlib.util.find_spec("fla") is not None


def _fla_rule() -> Callable[..., Any]:
    """The rule of flash-linear-attention."""
    rule: Callable[..., Any] = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return rule


def gated_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, share: Tensor, documents: Tensor | None = None
) -> Tensor:
    """What all heads give at all tokens, chunk by chunk (see the head of this file), in fp32 or, of fp64, in fp64.

    Queries and keys are divided by their lengths, and queries by the root of their width.

    Args:
        query, key: [b, s, key heads, key_dim]; each serves value heads that follow each other.
        value: [b, s, heads, value_dim].
        decay: [b, s, heads], g of each token.
        share: [b, s, heads], b of each token.
        documents: int64 [s], the number of each token's document, ascending; None: all are one.
    Returns:
        [b, s, heads, value_dim], in the dtype of the values.
    """
    length, key_heads = key.shape[1:3]
    given = value.dtype
    wide = torch.promote_types(given, torch.float32)
    query, key = (_unit(states.to(wide)) for states in (query, key))
    query = query * query.size(-1) ** -0.5
    # [b, key heads, 1 or heads of each, chunks, tokens, ...]; tokens behind the last change nothing.
    query, key = (_in_chunks(states.unsqueeze(3)) for states in (query, key))
    value, decay, share = (
        _in_chunks(states.to(wide).unflatten(2, (key_heads, -1))) for states in (value, decay, share)
    )
    reach = _Reach(documents, length, key.device)
    between = _sums_between(decay)
    distance = between.masked_fill(~reach.tokens, float("-inf")).exp()
    system = key @ key.mT * distance * share.unsqueeze(-1)
    scores = query @ key.mT * distance
    total = decay.cumsum(-1).exp()
    since = (total * reach.from_before).unsqueeze(-1)
    until = (between[..., -1, :].exp() * reach.to_end).unsqueeze(-1)
    kept = (total[..., -1] * reach.through)[..., None, None]
    share = share.unsqueeze(-1)
    state = value.new_zeros(*value.shape[:3], key.size(-1), value.size(-1))
    outputs = []
    for chunk in range(value.size(3)):
        keys, queries = key[:, :, :, chunk], query[:, :, :, chunk]
        known = since[:, :, :, chunk] * (keys @ state)
        updates = torch.linalg.solve_triangular(
            system[:, :, :, chunk],
            share[:, :, :, chunk] * (value[:, :, :, chunk] - known),
            upper=False,
            unitriangular=True,
        )
        outputs.append(since[:, :, :, chunk] * (queries @ state) + scores[:, :, :, chunk] @ updates)
        state = kept[:, :, :, chunk] * state + keys.mT @ (until[:, :, :, chunk] * updates)
    output = torch.stack(outputs, dim=3).flatten(3, 4)[:, :, :, :length]  # [b, key heads, heads of each, s, value_dim]
    return output.flatten(1, 2).transpose(1, 2).to(given)


def _unit(states: Tensor) -> Tensor:
    """Vectors of the last axis, divided by their lengths."""
    return states * torch.rsqrt(states.square().sum(dim=-1, keepdim=True) + _SMALLEST_NORM)


def _sums_between(decay: Tensor) -> Tensor:
    """[..., tokens] as [..., i, j]: the sum of those behind j up to i, 0 where j is not before i.

    G_i - G_j would lose what is small between two tokens behind something large.
    """
    tokens = decay.size(-1)
    behind = torch.ones(tokens, tokens, dtype=torch.bool, device=decay.device).tril(-1)
    return (decay.unsqueeze(-1) * behind).cumsum(-2)


def _in_chunks(states: Tensor) -> Tensor:
    """[b, s, key heads, heads of each, ...] as [b, key heads, heads of each, chunks, tokens, ...]; 0 behind the end."""
    missing = -states.size(1) % CHUNK
    padded = functional.pad(states, (0, 0) * (states.dim() - 2) + (0, missing))
    return padded.unflatten(1, (-1, CHUNK)).movedim((1, 2), (3, 4))


class _Reach:
    """Which tokens know of each other: those of one document. Axes are chunks and tokens of a chunk."""

    def __init__(self, documents: Tensor | None, length: int, device: torch.device) -> None:
        """Takes the number of each token's document."""
        if documents is None:
            documents = torch.zeros(length, dtype=torch.int64, device=device)
        last = documents[-1:].expand(-length % CHUNK)
        numbers = torch.cat([documents, last]).view(-1, CHUNK)
        before = torch.cat([numbers[:1, :1], numbers[:-1, -1:]])  # of the token before each chunk
        causal = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=device).tril()
        self.tokens = causal & (numbers.unsqueeze(-1) == numbers.unsqueeze(-2))
        """[chunks, tokens, tokens]: whether a token knows of another."""
        self.from_before = numbers == before
        """[chunks, tokens]: whether it knows of what was before the chunk."""
        self.to_end = numbers == numbers[:, -1:]
        """[chunks, tokens]: whether the state behind the chunk knows of it."""
        self.through = self.from_before[:, -1]
        """[chunks]: whether that state knows of what was before the chunk."""
