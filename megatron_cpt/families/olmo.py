"""OLMo 2: a Llama whose norms stand after attention and MLP, and norm all heads of queries and keys together.

(arXiv:2501.00656, section 3.2.)
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.weights import ColumnParallel, Replicated, Rule, Tensor


def _read_olmo2(fields: ConfigFields) -> ModelShape:
    """The shape of an OLMo 2 from its config.json; defaults are transformers' own (Olmo2Config)."""
    shape = read_llama_like(fields, "olmo2", max_positions=2048, norm_epsilon=1e-5)
    return replace(shape, pre_norm=False, post_norm=True, all_heads_norm=True)


def _olmo2_weights(shape: ModelShape) -> tuple[Rule, ...]:
    """A Llama's name table without the norms before attention and MLP, and the norms after them."""
    before = ("decoder.layers.{layer}.input_layernorm.weight", "decoder.layers.{layer}.pre_mlp_layernorm.weight")
    layer = "model.layers.{layer}"
    return (
        *(rule for rule in llama_weights(shape) if rule.names[0] not in before),
        *(
            ColumnParallel(
                (f"decoder.layers.{{layer}}.self_attention.{letter}_layernorm.weight",),
                (Tensor(f"{layer}.self_attn.{letter}_norm.weight", (width,)),),
            )
            for letter, width in (("q", "query_width"), ("k", "key_value_width"))
        ),
        *post_norms(f"{layer}.post_attention_layernorm", f"{layer}.post_feedforward_layernorm"),
    )


def post_norms(after_attention: str, after_mlp: str) -> tuple[Rule, ...]:
    """The norms after attention and MLP, by the names that a family gives them."""
    return tuple(
        Replicated((f"decoder.layers.{{layer}}.{ours}.weight",), (Tensor(f"{theirs}.weight", ("hidden",)),))
        for ours, theirs in (("post_attention_layernorm", after_attention), ("post_mlp_layernorm", after_mlp))
    )


OLMO2 = Family(model_type="olmo2", read=_read_olmo2, weights=_olmo2_weights)
