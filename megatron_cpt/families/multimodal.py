"""Models that read more than text: where config.json has their language model, and what its tensors are called.

transformers builds the language model of such a model from `text_config` alone, so that it is one of a known family.
Its tensors stand among those of what sees or hears, which stay as they are. A kind of model is one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TEXT = "text_config"
_OF_ALL_TENSORS = ("quantization_config", "auto_map")
# The published folders of Gemma 3, Mistral Small 3.1 and LLaVA, and what transformers saves; then its own names.
_OUTER, _INNER, _OUTPUT = "model.", "language_model.", "lm_head."
_NAMES = (
    (_INNER + _OUTER, "model."),
    (_INNER + _OUTPUT, "lm_head."),
    (_OUTER + _INNER, "model."),
    (_OUTPUT, "lm_head."),
)
_SEES = ("vision_tower.", "multi_modal_projector.")
_OTHERS = (*_SEES, *(_OUTER + name for name in _SEES))
_QWEN_SEES = ("visual.", _OUTER + "visual.")
_TIED = "tie_word_embeddings"


@dataclass(frozen=True, kw_only=True)
class Multimodal:
    """One kind of model that reads more than text."""

    model_type: str
    """`model_type` in config.json."""
    text_type: str
    """`model_type` of `text_config` where it states none."""
    names: tuple[tuple[str, str], ...] = _NAMES
    """How names of the language model's tensors begin, in folders and in the name table of its family."""
    others: tuple[str, ...] = _OTHERS
    """How names of all other tensors begin."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """transformers' defaults of fields of a `text_config` of this type that every family else states."""
    tied: bool = False
    """transformers' default of `tie_word_embeddings` beside `text_config`."""
    beside_text: frozenset[str] = frozenset()
    """Fields that are none of the language model's, of a config.json that has its fields among them and no
    `text_config`."""

    def text_name(self, stored: str) -> str:
        """A tensor's name in the name table of its family; its own where it is none of the language model."""
        for prefix, text in self.names:
            if stored.startswith(prefix):
                return text + stored.removeprefix(prefix)
        return stored

    def is_other(self, stored: str) -> bool:
        """Whether a tensor is none of the language model."""
        return stored.startswith(self.others)


_BESIDE_TEXT_OF_QWEN = frozenset(
    (
        "model_type",
        "architectures",
        "transformers_version",
        "vision_config",
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
        "vision_token_id",
    )
)

MULTIMODAL: dict[str, Multimodal] = {
    kind.model_type: kind
    for kind in (
        Multimodal(
            model_type="gemma3",
            text_type="gemma3_text",
            tied=True,
            defaults={
                "vocab_size": 262_208,
                "hidden_size": 2304,
                "intermediate_size": 9216,
                "num_hidden_layers": 26,
                "num_attention_heads": 8,
            },
        ),
        Multimodal(model_type="mistral3", text_type="mistral", tied=True),
        Multimodal(
            model_type="llava",
            text_type="llama",
            defaults={
                "vocab_size": 32_000,
                "hidden_size": 4096,
                "intermediate_size": 11_008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            },
        ),
        *(
            Multimodal(model_type=name, text_type=f"{name}_text", others=_QWEN_SEES, beside_text=_BESIDE_TEXT_OF_QWEN)
            for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
        ),
        Multimodal(
            model_type="llama4",
            text_type="llama4_text",
            others=("vision_model.", "multi_modal_projector."),
            defaults={
                "vocab_size": 202_048,
                "hidden_size": 5120,
                "intermediate_size": 8192,
                "num_hidden_layers": 48,
                "num_attention_heads": 40,
            },
        ),
        *(
            Multimodal(model_type=name, text_type=f"{name}_text", others=_QWEN_SEES)
            for name in ("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
        ),
    )
}


def multimodal_of(config: Mapping[str, Any]) -> Multimodal | None:
    """What kind of model a config.json describes that reads more than text; None: a language model, or none known."""
    model_type = config.get("model_type")
    return MULTIMODAL.get(model_type) if isinstance(model_type, str) else None


def text_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the language model: those of config.json itself, or of its `text_config`.

    What decides about all tensors of a folder (quantization, code of its own) is taken from config.json. The output
    layer is not tied where config.json says so beside `text_config`, or its default does: transformers 5 goes by that,
    and saves folders whose `text_config` says otherwise by default. Elsewhere `text_config` decides, where it says.
    """
    kind = multimodal_of(config)
    if kind is None:
        return dict(config)
    of_all = {name: config[name] for name in _OF_ALL_TENSORS if config.get(name)}
    stated = {"model_type": kind.text_type, **_stated(config, kind)}
    tied = config.get(_TIED)
    if tied is None and not kind.tied and not _is_flat(config, kind):
        tied = False
    if tied is False:
        stated[_TIED] = False
    elif tied is not None:
        stated = {_TIED: tied} | stated
    defaults = kind.defaults if stated["model_type"] == kind.text_type else {}
    return {**defaults, **stated, **of_all}


def with_text_fields(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with other fields of the language model, as text_fields gives them."""
    kind = multimodal_of(config)
    if kind is None:
        return dict(text)
    if _is_flat(config, kind):
        beside = {name: value for name, value in config.items() if name in kind.beside_text}
        return {**text, **beside}
    stated = _stated(config, kind)
    own = {name: value for name, value in text.items() if name not in (*_OF_ALL_TENSORS, _TIED) or name in stated}
    return {**config, _TEXT: own}


def _stated(config: Mapping[str, Any], kind: Multimodal) -> dict[str, Any]:
    """What a config.json says of the language model."""
    if _is_flat(config, kind):
        return {name: value for name, value in config.items() if name not in kind.beside_text}
    stated = config.get(_TEXT)
    return stated if isinstance(stated, dict) else {}


def lacks_text(config: Mapping[str, Any]) -> bool:
    """Whether a model that reads more than text does not say what its language model is like."""
    kind = multimodal_of(config)
    return kind is not None and not _is_flat(config, kind) and not isinstance(config.get(_TEXT), dict)


def _is_flat(config: Mapping[str, Any], kind: Multimodal) -> bool:
    """Whether the language model's fields stand in config.json itself."""
    return bool(kind.beside_text) and _TEXT not in config
