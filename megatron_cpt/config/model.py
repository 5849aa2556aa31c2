"""The section `model`: the folder that a run starts from, and what is done otherwise than it says."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import ConfigDict

from megatron_cpt.config.strict import STRICT
from megatron_cpt.config.units import Count, CountOrZero, Positive, Share


@dataclass(frozen=True, kw_only=True)
class StartCheckSettings:
    """The loss of the first 8 sequences before the first update, beside transformers' own; a difference is refused.

    Rank 0 computes it where the whole model fits its GPU or its machine's memory; elsewhere nothing is compared.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    enabled: bool = True
    """Whether they are compared."""
    recorded: str | None = None
    """A recording to compare with: `start_check.json` of a run that begins as this one does, or of
    `megatron-cpt convert record`. None: transformers computes it."""
    tolerance: Positive | None = None
    """Largest difference of one sequence's loss, in nats per token. None: 0.001 in fp32, 0.02 in bf16."""
    worse_than_guessing: Literal["warn", "refuse"] = "warn"
    """A mean loss of these sequences above ln(vocabulary), that of guessing, as damaged weights or another tokenizer
    have it. Looked at before the first update of a run that starts from a checkpoint, too."""


@dataclass(frozen=True, kw_only=True)
class FrozenSettings:
    """Parts of the model that keep their weights."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    bottom: CountOrZero = 0
    """So many layers next to the input."""
    top: CountOrZero = 0
    """So many layers next to the output."""
    embeddings: bool = False
    """Embedding and output layer."""


@dataclass(frozen=True, kw_only=True)
class RopeSettings:
    """Rotary positions that differ from the folder's, for longer sequences than the model was made for.

    The model is trained, checked, saved and exported with a config.json that says so.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    positions: Count
    """Longest sequence that the model is to read, in tokens: `max_position_embeddings`."""
    base: Positive | None = None
    """Base of the wavelengths: `rope_theta`. None: the folder's."""
    scaling: Literal["kept", "none", "linear", "llama3", "yarn"] = "kept"
    """How the wavelengths are scaled; `kept`: as the folder says."""
    factor: Positive | None = None
    """Of `linear`, `llama3` and `yarn`: by how much. None: `positions` over `original_positions`."""
    original_positions: Count | None = None
    """Longest sequence before the scaling, in tokens. None: what the folder states."""
    further: dict[str, float] = field(default_factory=dict)
    """Further fields of the scaling, under transformers' names: `low_freq_factor`, `beta_fast`, ..."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model, always described by a Hugging Face folder."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    hf: str
    """Hugging Face folder: config.json, the tokenizer, and the weights unless `weights: random`."""
    weights: Literal["hf", "random"] = "hf"
    """Where the weights come from: the folder's safetensors, or drawn at random (training from scratch)."""
    dropout: Share = 0.0
    """Dropout of hidden states and of attention. Continual pretraining uses 0."""
    start_check: StartCheckSettings = field(default_factory=StartCheckSettings)
    """The check before the first update of a run that does not start from random weights."""
    frozen: FrozenSettings = field(default_factory=FrozenSettings)
    """Parts that are not trained."""
    rope: RopeSettings | None = None
    """Other rotary positions. None: the folder's."""
