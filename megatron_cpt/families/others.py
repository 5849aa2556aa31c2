"""Which tensors of a folder are none of the model that is trained.

What sees or hears in a model that reads more than text, and layers that predict further tokens (multi-token prediction,
arXiv:2412.19437, section 2.2): they stand behind the last layer, or under a name of their own, and transformers' model
leaves them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_cpt.families.multimodal import Multimodal, multimodal_of, text_fields

_PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers")  # transformers' older and newer name
# Families whose folders have such layers under a name of their own.
_NAMED = dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), ("mtp.",))
_OF_VOCABULARY = (".embed_tokens.weight", ".shared_head.head.weight")


@dataclass(frozen=True)
class OtherNames:
    """How names of tensors tell whose they are."""

    kind: Multimodal | None = None
    """Of a model that reads more than text; None: a language model."""
    predictors: tuple[int, ...] = ()
    """Numbers of the layers that predict further tokens; a folder need not have them."""
    named: tuple[str, ...] = ()
    """How names of the tensors of such layers begin that have no number among the others."""

    @property
    def of_predictors(self) -> tuple[str, ...]:
        """How names of the tensors of layers that predict further tokens begin; a folder need not have them."""
        return tuple(f"model.layers.{layer}." for layer in self.predictors) + self.named

    def text_name(self, stored: str) -> str:
        """A tensor's name in the name table of its family; its own where it is none of the language model."""
        return stored if self.kind is None else self.kind.text_name(stored)

    def is_other(self, stored: str) -> bool:
        """Whether a tensor is none of the model that is trained."""
        return self._is_predictor(stored) or (self.kind is not None and self.kind.is_other(stored))

    def has_row_of_each_token(self, stored: str) -> bool:
        """Whether a layer that predicts further tokens has it as its own embedding or output layer."""
        return self._is_predictor(stored) and stored.endswith(_OF_VOCABULARY)

    def _is_predictor(self, stored: str) -> bool:
        return self.text_name(stored).startswith(self.of_predictors)


def other_names(config: Mapping[str, Any]) -> OtherNames:
    """Those of the folder of a config.json."""
    text = text_fields(config)
    count, layers = next(filter(None, map(text.get, _PREDICTORS)), 0), text.get("num_hidden_layers")
    predictors: tuple[int, ...] = ()
    if isinstance(count, int) and isinstance(layers, int) and 0 < count <= layers:
        predictors = tuple(range(layers, layers + count))
    model_type = text.get("model_type")
    named = _NAMED.get(model_type, ()) if isinstance(model_type, str) else ()
    return OtherNames(multimodal_of(config), predictors, named)
