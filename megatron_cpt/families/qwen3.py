"""Qwen3, dense: a Llama whose queries and keys are normed head by head before rotation (arXiv:2505.09388).

It has no biases, and its heads are as wide as `head_dim` says, whatever hidden / heads is.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.qwen2 import read_window
from megatron_cpt.families.weights import Replicated, Rule, Tensor


def read_qwen3(fields: ConfigFields) -> ModelShape:
    """The shape of a Qwen3 from its config.json; defaults are transformers' own (Qwen3Config)."""
    shape = read_llama_like(fields, "qwen3", max_positions=32_768, key_value_heads=32, head_dim=128)
    return read_window(fields, replace(shape, query_key_norm=True))


def qwen3_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table, and the norms of queries and keys."""
    return (*llama_weights(shape), *head_norms())


def head_norms() -> tuple[Rule, ...]:
    """The norms of queries and keys; all heads share one weight."""
    return tuple(
        Replicated(
            (f"decoder.layers.{{layer}}.self_attention.{letter}_layernorm.weight",),
            (Tensor(f"model.layers.{{layer}}.self_attn.{letter}_norm.weight", ("head_dim",)),),
        )
        for letter in ("q", "k")
    )


QWEN3 = Family(model_type="qwen3", read=read_qwen3, weights=qwen3_weights)
