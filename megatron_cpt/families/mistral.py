"""Mistral: a Llama whose attention may see no further back than a window (arXiv:2310.06825).

Mistral 7B v0.1 has a window of 4,096 tokens, later ones have none; Mistral Nemo's heads are narrower
than hidden / heads.
"""

from dataclasses import replace

from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.llama import llama_weights, read_llama_like
from megatron_cpt.families.windows import every_layer


def read_mistral(fields: ConfigFields) -> ModelShape:
    """The shape of a Mistral from its config.json; defaults are transformers' own (MistralConfig).

    A window that is not mentioned is one of 4,096 tokens; `null` is none.
    """
    window = fields.optional_integer("sliding_window", 4096)
    shape = read_llama_like(fields, "mistral", max_positions=131_072, key_value_heads=8)
    return replace(shape, local_window=window, local_layers=every_layer(window, shape.layers))


MISTRAL = Family(model_type="mistral", read=read_mistral, weights=llama_weights)
