"""The shape of a model from its Hugging Face folder; which families are known."""

from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.model import RopeSettings
from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.gemma2 import GEMMA2
from megatron_cpt.families.gemma3 import GEMMA3
from megatron_cpt.families.gpt_neox import GPT_NEOX
from megatron_cpt.families.llama import LLAMA
from megatron_cpt.families.longer import with_positions
from megatron_cpt.families.mistral import MISTRAL
from megatron_cpt.families.mixtral import MIXTRAL
from megatron_cpt.families.olmo2 import OLMO2
from megatron_cpt.families.qwen2 import QWEN2
from megatron_cpt.families.qwen3 import QWEN3
from megatron_cpt.families.qwen3_moe import QWEN3_MOE
from megatron_cpt.families.weights import Place, Rule, places

__all__ = ["FAMILIES", "ModelShape", "family_of", "name_table", "read_shape"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT_NEOX, MIXTRAL, QWEN3_MOE, OLMO2, GEMMA2, GEMMA3)
}

# Layers, or experts of a layer: a name table holds them all, so that an absurd number must end before it.
MOST = 10_000


def read_shape(folder: str | Path, rope: RopeSettings | None = None) -> ModelShape:
    """Reads config.json of a Hugging Face folder.

    Args:
        rope: other rotary positions than it states; None for its own.
    Raises:
        BadInput: the folder or config.json is missing or no JSON object, the family is unknown, or fields
            have values that cannot be honoured (every one of them is listed).
    """
    path = Path(folder) / "config.json"
    fields = ConfigFields(str(path), read_config(folder, rope))
    model_type = fields.take("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        rule, remedy = "is not a family known here.", f"Known families: {', '.join(sorted(FAMILIES))}."
        if fields.take("text_config") is not None:
            rule = "reads more than text, and only a language model is trained here."
            remedy = "Save its language model as a folder of its own (docs/families.md). " + remedy
        fields.fault("model_type", model_type, rule, remedy)
        raise BadInput(*fields.faults)
    shape = FAMILIES[model_type].read(fields)
    if not isinstance(shape.dtype, str | None):
        fields.fault("dtype", shape.dtype, "must be a word.", "Mend config.json.")
    for name, count in (("num_hidden_layers", shape.layers), ("num_experts", shape.experts)):
        if count > MOST:
            fields.fault(name, count, f"no model has more than {MOST}.", "Mend config.json.")
    fields.refuse_left(model_type)
    refuse(fields.faults)
    return shape


def read_config(folder: str | Path, rope: RopeSettings | None = None) -> dict[str, Any]:
    """The fields of config.json, with other rotary positions if there are any. Raises BadInput."""
    fields = _read_object(Path(folder) / "config.json")
    return fields if rope is None else with_positions(fields, rope)


def family_of(shape: ModelShape) -> Family:
    """The family of a shape."""
    return FAMILIES[shape.family]


def name_table(shape: ModelShape) -> dict[str, tuple[Rule, Place]]:
    """Every name that a Megatron-Core parameter may have, to its rule and its place in the whole model."""
    return {
        place.name(name): (rule, place)
        for rule in family_of(shape).weights(shape)
        for place in places(rule, shape)
        for name in rule.names
    }


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(
            Fault(
                str(path),
                "there is no such file.",
                "Give a local Hugging Face model folder, with config.json, tokenizer and weights.",
            )
        )
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise BadInput(Fault(str(path), f"is not JSON ({error}).", "Fetch the folder again.")) from None
    if not isinstance(value, dict):
        raise BadInput(Fault(str(path), "is not a JSON object.", "Fetch the folder again."))
    return value
