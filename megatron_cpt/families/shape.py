"""The shape of a model from its Hugging Face folder; which families are known."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.config.schema import RopeSettings
from megatron_cpt.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE
from megatron_cpt.families.family import Family, ModelShape
from megatron_cpt.families.fields import ConfigFields, fp8_block, is_mxfp4
from megatron_cpt.families.gemma import GEMMA, GEMMA2, GEMMA3
from megatron_cpt.families.gpt_neox import GPT_NEOX
from megatron_cpt.families.gpt_oss import GPT_OSS
from megatron_cpt.families.granite import GRANITE, GRANITE4
from megatron_cpt.families.llama import LLAMA, MINISTRAL, MINISTRAL3, MISTRAL, MIXTRAL, SEED_OSS, SMOLLM3
from megatron_cpt.families.llama4 import LLAMA4
from megatron_cpt.families.multimodal import MULTIMODAL, lacks_text, multimodal_of, text_fields, with_text_fields
from megatron_cpt.families.olmo import EXAONE4, OLMO2, OLMO3, OLMOE
from megatron_cpt.families.phi import PHI3
from megatron_cpt.families.qwen import QWEN2, QWEN2_5_VL, QWEN2_MOE, QWEN2_VL, QWEN3, QWEN3_MOE, QWEN3_VL, QWEN3_VL_MOE
from megatron_cpt.families.qwen_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from megatron_cpt.families.rope import with_positions
from megatron_cpt.families.transformers_fields import READ_BY, READ_BY_ALL
from megatron_cpt.families.ungated import APERTUS, NEMOTRON, STARCODER2
from megatron_cpt.families.weights import Place, Rule, Stack, StackPlace, places, stack_places

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA,
        MISTRAL,
        MINISTRAL,
        MINISTRAL3,
        QWEN2,
        QWEN3,
        QWEN2_VL,
        QWEN2_5_VL,
        QWEN3_VL,
        QWEN3_5,
        PHI3,
        SMOLLM3,
        SEED_OSS,
        GRANITE,
        GRANITE4,
        GPT_NEOX,
        NEMOTRON,
        STARCODER2,
        APERTUS,
        MIXTRAL,
        QWEN2_MOE,
        QWEN3_MOE,
        QWEN3_VL_MOE,
        QWEN3_NEXT,
        QWEN3_5_MOE,
        OLMOE,
        GLM4_MOE,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        LLAMA4,
        GPT_OSS,
        OLMO2,
        OLMO3,
        EXAONE4,
        GEMMA,
        GEMMA2,
        GEMMA3,
    )
}

# Layers, or experts of a layer: a name table holds them all, so that an absurd number must end before it.
_MOST_PARTS = 10_000
# Rows and columns of a matrix, and tokens: beyond them sizes pass what a machine can count.
_MOST_WIDE, _MOST_TOKENS = 1_000_000, 100_000_000
ADAPTER = "adapter_config.json"
# Names of the part of a config.json that describes the language model of one that reads more than text.
_TEXT_PARTS = ("text_config", "language_config", "llm_config")


def read_shape(folder: str | Path, rope: RopeSettings | None = None) -> ModelShape:
    """Reads config.json of a Hugging Face folder.

    Args:
        rope: other rotary positions than it states; None for its own.
    Raises:
        BadInput: the folder or config.json is missing or no JSON object, the family is unknown, or fields
            have values that cannot be honoured (every one of them is listed).
    """
    return _read(folder, rope)[0]


def unread_fields(folder: str | Path) -> list[str]:
    """Fields of config.json that neither we nor transformers' model of this family read. Raises BadInput."""
    return _read(folder, None)[1].unread


def _read(folder: str | Path, rope: RopeSettings | None) -> tuple[ModelShape, ConfigFields]:
    config, path = read_config(folder, rope), str(Path(folder) / "config.json")
    kind, given = multimodal_of(config), text_fields(config)
    model_type = given.get("model_type")
    # Code that comes with the folder may read anything.
    own = None if given.get("auto_map") or not isinstance(model_type, str) else READ_BY.get(model_type)
    if lacks_text(config):
        rule = f"must be an object with the fields of the language model of a {config['model_type']}."
        raise BadInput(Fault(f"{path}: text_config = {config.get('text_config')!r}", rule, "Mend config.json."))
    inner = path if kind is None else f"{path}: text_config"
    fields = ConfigFields(inner, given, None if own is None else READ_BY_ALL | own)
    fields.take("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        fields.fault("model_type", model_type, *_unknown_family(config))
        raise BadInput(*fields.faults)
    shape = FAMILIES[model_type].read(fields)
    for name in ("dtype", "torch_dtype"):
        if not isinstance(word := fields.take(name), str | None):
            fields.fault(name, word, "must be a word.", "Mend config.json.")
    for name, count, most in (
        ("num_hidden_layers", shape.layers, _MOST_PARTS),
        ("num_experts", shape.experts, _MOST_PARTS),
        ("hidden_size", shape.hidden, _MOST_WIDE),
        ("intermediate_size", shape.ffn_hidden, _MOST_WIDE),
        ("moe_intermediate_size", shape.expert_ffn_hidden, _MOST_WIDE),
        ("shared_expert_intermediate_size", shape.shared_expert_ffn_hidden, _MOST_WIDE),
        ("num_attention_heads", shape.heads, _MOST_WIDE),
        ("head_dim", shape.head_dim, _MOST_WIDE),
        ("vocab_size", shape.vocabulary, _MOST_TOKENS),
        ("max_position_embeddings", shape.max_positions, _MOST_TOKENS),
    ):
        if count > most:
            fields.fault(name, count, f"no model has more than {most:,}.", "Mend config.json.")
    quantized = fields.take("quantization_config")
    if quantized and fp8_block(quantized) is None and not (is_mxfp4(quantized) and family_of(shape).has_mxfp4):
        method = quantized.get("quant_method", "...") if isinstance(quantized, dict) else quantized
        rule = "the weights are quantized, and quantized weights cannot be trained."
        remedy = "Use the model that was quantized. If its weights were dequantized since, take the field out."
        fields.fault("quantization_config", method, rule, remedy)
    fields.refuse_left(model_type)
    refuse(fields.faults)
    return shape, fields


def _unknown_family(given: dict[str, Any]) -> tuple[str, str]:
    """Why a model of a type that is not known cannot be read, and what to do instead."""
    if given.get("model_type") == "kimi_k2":
        rule = "transformers knows it by code of the folder alone, which is not executed; it has a DeepSeek-V3's shape."
        return rule, "Set model_type to deepseek_v3 and take auto_map out of config.json."
    known = f"Known families: {', '.join(sorted({**FAMILIES, **MULTIMODAL}))}."
    parts = {name: value for name, value in given.items() if name.endswith("_config") and isinstance(value, dict)}
    text = next((parts[name] for name in _TEXT_PARTS if name in parts), None)
    if text is None and not {"vision_config", "audio_config"} & set(parts):
        return "is not a family known here.", known
    rule = "reads more than text, and only a language model is trained here"
    kind = text.get("model_type") if text is not None else None
    if kind in list(FAMILIES):  # a list: JSON may hold what no dictionary can be asked for
        remedy = f"Save its language model, which is a {kind}, as a folder of its own (docs/families.md)."
        return f"{rule}.", remedy
    which = f", and its language model is a {kind!r}" if kind else ""
    return f"{rule}{which}.", f"Use a model whose language model is of a known family. {known}"


def read_config(folder: str | Path, rope: RopeSettings | None = None) -> dict[str, Any]:
    """The fields of config.json, with other rotary positions if there are any. Raises BadInput."""
    fields = _read_object(Path(folder) / "config.json")
    return fields if rope is None else with_text_fields(fields, with_positions(text_fields(fields), rope))


def stated_dtype(folder: str | Path) -> str | None:
    """The dtype that config.json states, such as `bfloat16`; None where it is for the weights to say. Raises BadInput.

    Tensors may have another one. Where `dtype` and `torch_dtype` differ, transformers follows the first.
    """
    config = read_config(folder)
    words = [fields.get(name) for fields in (config, text_fields(config)) for name in ("dtype", "torch_dtype")]
    word = next(filter(None, words), None)
    return word.removeprefix("torch.") if isinstance(word, str) and word != "auto" else None


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


def places_in_stacks(shape: ModelShape, stacks: Iterable[Stack] | None = None) -> dict[str, StackPlace]:
    """Where the tensors of the name table are that folders hold in one with those of other experts, by their names.

    Args:
        stacks: the tensors that hold them in a folder; None: those of published ones.
    """
    return {
        name: place
        for stack in (family_of(shape).stacks if stacks is None else stacks)
        for layer in shape.sparse_layers
        for name, place in stack_places(stack, layer, shape.experts).items()
    }


def stacks_of(config: Mapping[str, Any]) -> tuple[Stack, ...]:
    """The tensors that may hold what all experts of a layer have, in the folder of a config.json."""
    model_type = text_fields(config).get("model_type")
    return FAMILIES[model_type].stacks if isinstance(model_type, str) and model_type in FAMILIES else ()


def adapter_fault(folder: Path) -> Fault:
    """Why a folder that holds an adapter and no model cannot be read."""
    rule = "is the description of an adapter (PEFT), and the folder holds no model."
    remedy = (
        "Merge the adapter into its base model: in peft, "
        "AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW_DIR); then copy the "
        "tokenizer's files beside it."
    )
    return Fault(str(folder / ADAPTER), rule, remedy)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        if (path.parent / ADAPTER).is_file():
            raise BadInput(adapter_fault(path.parent))
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
