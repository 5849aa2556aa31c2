"""What a folder is whose tensors are not those of a language model, told by their names."""

from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.families.shape import read_config

# Parts of names, as peft, quantizers and transformers' other heads write them.
_ADAPTERS = ("lora_", ".base_layer.", "base_model.model.")
_QUANTIZED = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_packed", ".absmax", ".quant_map", ".SCB",
    "_scales", "_blocks", ".input_scale",
)  # fmt: skip
_HEADS = ("score.", "classifier.", "qa_outputs.", "v_head.", "value_head.", "reward_head.", "regression_head.")
_OTHER_SENSES = ("vision", "visual", "audio", "image", "multi_modal", "language_model.", "mm_projector")


def misfit(folder: Path, missing: Sequence[str], surplus: Sequence[str], output: str) -> Fault | None:
    """One reason for the tensors that are missing and surplus; None where their names tell none.

    Args:
        missing: tensors that config.json calls for.
        surplus: tensors that it does not.
        output: the output layer's tensor.
    """
    shown = f"{folder}: {some(surplus or missing)}"
    if _any_holds(surplus, _ADAPTERS):
        rule = "these are tensors of an adapter (PEFT) beside or inside the model."
        return Fault(shown, rule, "Merge it first (merge_and_unload in peft) and save the model.")
    if _any_holds(surplus, _QUANTIZED):
        return Fault(shown, "the weights are quantized, and quantized weights cannot be trained.", UNQUANTIZED)
    if surplus and all(name.startswith(_HEADS) for name in surplus) and set(missing) <= {output}:
        rule = (
            f"this is {_architecture(folder)} with a head that gives no words, such as a classifier or a reward model."
        )
        return Fault(shown, rule, "Use the language model that it was made from.")
    if _any_holds(surplus, _OTHER_SENSES):
        rule = "these are tensors of a model that reads more than text, and only a language model is trained here."
        return Fault(shown, rule, "Save its language model as a folder of its own (docs/families.md).")
    if missing and surplus and {name.partition(".")[2] for name in missing if name != output} == set(surplus):
        rule = f"this is {_architecture(folder)}, a language model without its output layer."
        if output in missing:
            return Fault(shown, rule, f"Use the folder that has {output} too: the whole language model.")
        remedy = (
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR) in transformers adds it: it is tied."
        )
        return Fault(shown, rule, remedy)
    return None


UNQUANTIZED = "Use the model that was quantized: its card names it (base_model)."


def some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _any_holds(names: Sequence[str], parts: Sequence[str]) -> bool:
    return any(part in name for name in names for part in parts)


def _architecture(folder: Path) -> str:
    try:
        named = read_config(folder).get("architectures")
    except BadInput:
        named = None
    return f"a {named[0]}" if isinstance(named, list) and named and isinstance(named[0], str) else "a model"
