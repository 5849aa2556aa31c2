"""The section `optimizer`: AdamW, and the parts of a model that it treats in their own ways."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.strict import STRICT
from megatron_cpt.config.units import CountOrZero, NotNegative, Positive, Share

Part = Literal["embedding", "output", "norms_and_biases"]


@dataclass(frozen=True, kw_only=True)
class LayerRateSettings:
    """A learning rate for some layers."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    first: CountOrZero
    """The first of them, counted from 0 at the input."""
    last: CountOrZero
    """The last of them."""
    rate: NotNegative
    """Relative to the learning rate of the schedule; 0 holds them."""


@dataclass(frozen=True, kw_only=True)
class RateSettings:
    """Learning rates of parts of the model, relative to that of the schedule. Where two apply, they multiply.

    At 0 a part keeps its weights, but has gradients and moments still; `model.frozen` saves both.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    embedding: NotNegative = 1.0
    """The embedding; the output layer too, where it has the same weights."""
    output: NotNegative = 1.0
    """An output layer with weights of its own."""
    norms_and_biases: NotNegative = 1.0
    """All parameters of one dimension."""
    layers: list[LayerRateSettings] = field(default_factory=list)
    """Layers by their number; no layer is named twice."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, with decoupled weight decay on matrices."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    beta1: Share = 0.9
    """Decay of the first moment."""
    beta2: Share = 0.95
    """Decay of the second moment."""
    epsilon: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegative = 0.1
    """Weight decay per step and unit of learning rate."""
    undecayed: list[Part] = field(default_factory=lambda: ["norms_and_biases"])
    """Parts without weight decay."""
    clip_gradient: NotNegative = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    fill_moments: CountOrZero = 0
    """Steps at rate 0 before the first update, on its sequences and those after: they fill Adam's moments, which a
    Hugging Face folder has none of, and change no weight."""
    rates: RateSettings = field(default_factory=RateSettings)
    """Learning rates of parts of the model."""
