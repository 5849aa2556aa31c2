"""config.json with other rotary positions than the folder's: what `model.rope` makes of it."""

from typing import Any

from megatron_cpt.config.model import RopeSettings

# What stays where the kind of scaling changes: the base, and the part of a head that is turned.
OF_NO_KIND = ("rope_theta", "partial_rotary_factor")
# Where positions are told by kind of layer: those that see the whole sequence; local ones see no further than before.
WIDE_LAYERS = "full_attention"
BASE_NAMES = ("rotary_emb_base", "rope_theta")


def with_positions(fields: dict[str, Any], rope: RopeSettings) -> dict[str, Any]:
    """The fields of a config.json with the positions of a run, in the form that transformers 4 or 5 has given them.

    Args:
        fields: config.json as it is in the folder; left as it is.
    """
    changed = fields | {"max_position_embeddings": rope.positions}
    by_kind = fields.get("rope_parameters")
    if isinstance(by_kind, dict) and WIDE_LAYERS in by_kind:
        of_wide = with_positions(fields | {"rope_parameters": by_kind[WIDE_LAYERS]}, rope)["rope_parameters"]
        return changed | {"rope_parameters": by_kind | {WIDE_LAYERS: of_wide}}
    newer = isinstance(fields.get("rope_parameters"), dict)
    before: dict[str, Any] = dict(fields.get("rope_parameters" if newer else "rope_scaling") or {})
    after = before
    if rope.scaling != "kept":
        after = {name: before[name] for name in OF_NO_KIND if name in before}
        after |= scaling_fields(fields, before, rope)
    if rope.base is not None and newer:
        after = after | {"rope_theta": rope.base}
    elif rope.base is not None:
        changed |= {next((name for name in BASE_NAMES if name in fields), "rope_theta"): rope.base}
    if newer:
        return changed | {"rope_parameters": after}
    return {name: value for name, value in changed.items() if name != "rope_scaling"} | (
        {"rope_scaling": after} if after and after.get("rope_type") != "default" else {}
    )


def scaling_fields(fields: dict[str, Any], before: dict[str, Any], rope: RopeSettings) -> dict[str, Any]:
    """The fields of a kind of scaling, under transformers' names.

    Args:
        before: those of the folder's own scaling.
    """
    if rope.scaling == "none":
        return {"rope_type": "default"}
    original = rope.original_positions or before.get("original_max_position_embeddings")
    original = original or fields.get("max_position_embeddings")
    factor = rope.factor or (rope.positions / original if original else None)
    further = {} if rope.scaling == "linear" else {"original_max_position_embeddings": original}
    if rope.scaling == "llama3":
        further |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_type": rope.scaling, "factor": factor, **further, **rope.further}
