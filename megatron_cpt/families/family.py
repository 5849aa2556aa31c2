"""What a model family is: how its config.json becomes numbers, and how its weights are named."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.weights import Rule


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The numbers that fix a model's mathematics, whatever its weights."""

    family: str
    """`model_type` of the Hugging Face config."""
    layers: int
    """Transformer layers."""
    hidden: int
    """Width of the residual stream."""
    ffn_hidden: int
    """Width inside the gated MLP."""
    heads: int
    """Query heads."""
    query_groups: int
    """Key and value heads; each serves heads / query_groups query heads."""
    head_dim: int
    """Width of one head."""
    vocabulary: int
    """Rows of the embedding, as the Hugging Face folder has them (no padding)."""
    max_positions: int
    """Longest sequence that the model was made for, in tokens."""
    norm_epsilon: float
    """Added to the mean square in RMSNorm."""
    rope_base: float
    """Base of the rotary embedding's wavelengths (`rope_theta`)."""
    rope_scaling: dict[str, Any] | None = None
    """None, or the Llama-3 rescaling of long wavelengths: `factor` is its one free number."""
    tied_embeddings: bool = False
    """Whether the output layer is the embedding."""
    dtype: str | None = None
    """dtype of the folder's weights as its config states it: `float32`, `bfloat16`, `float16`, or None."""

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.query_groups * self.head_dim


@dataclass(frozen=True)
class Family:
    """One model family."""

    model_type: str
    """`model_type` in config.json."""
    read: Callable[[ConfigFields], ModelShape]
    """Takes the fields of config.json that it understands and notes a fault for each it cannot honour."""
    weights: Callable[[ModelShape], tuple[Rule, ...]]
    """The name table of a model of this shape; `{layer}` stands for the global number of a layer."""
    ignored_tensors: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that some folders hold and that the model computes or ties."""
