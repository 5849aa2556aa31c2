"""Rotary positions (arXiv:2104.09864) in config.json, in the two forms that transformers has written them."""

from dataclasses import dataclass
from typing import Any

from megatron_cpt.families.fields import ConfigFields

# The one rescaling that Megatron-Core's RotaryEmbedding knows, with these numbers built in.
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a model."""

    base: float
    """Base of the wavelengths."""
    scaling: dict[str, Any] | None
    """None, or the Llama-3 rescaling of long wavelengths."""
    share: float
    """Part of each head that is turned."""


def read_rope(
    fields: ConfigFields,
    family: str,
    base_name: str = "rope_theta",
    share_name: str | None = None,
    share: float = 1.0,
    base: float = 10_000.0,
) -> Rope:
    """The rotary positions as transformers 5 (`rope_parameters`) or 4 (fields of their own) writes them.

    Args:
        family: its name, for messages.
        base_name: transformers 4's name of the base.
        share_name: transformers 4's name of the part of a head that is turned; None: the family turns all.
        share: that part where nothing states it.
        base: the base where nothing states it.
    """
    outer_base = fields.positive(base_name, base)
    outer_share = share if share_name is None else fields.positive(share_name, share)
    older, newer = fields.take("rope_scaling", {}), fields.take("rope_parameters", {})
    if older and newer:
        rule = "rope_scaling and rope_parameters are both given, and say it twice."
        fields.fault("rope_scaling", older, rule, "Take rope_scaling out of config.json.")
    name, given = ("rope_parameters", newer) if newer else ("rope_scaling", older)
    if not isinstance(given, dict):
        fields.fault(name, given, "must be an object.", "Mend config.json.")
        return Rope(outer_base, None, outer_share)
    inner = ConfigFields(f"{fields.path}: {name}", given)
    base = inner.positive("rope_theta", outer_base)
    legacy_kind = inner.take("type", "default")
    kind = inner.take("rope_type", legacy_kind)
    if share_name is None:
        inner.require("partial_rotary_factor", [1, 1.0], 1.0)
    else:
        outer_share = inner.positive("partial_rotary_factor", outer_share)
    scaling = _read_scaling(inner, kind)
    if not inner.faults:  # the fields of a kind that is refused need no faults of their own
        inner.refuse_left(family)
    fields.faults += inner.faults
    return Rope(base, scaling, outer_share)


def _read_scaling(fields: ConfigFields, kind: str) -> dict[str, Any] | None:
    if kind == "default":
        return None
    if kind != "llama3":
        fields.fault(
            "rope_type",
            kind,
            "only 'default' and 'llama3' can be computed by Megatron-Core's GPTModel.",
            "Use a model without this kind of RoPE scaling.",
        )
        return None
    for name, built_in in LLAMA3_SCALING.items():
        fields.require(name, [built_in], None)
    return {"rope_type": "llama3", "factor": fields.positive("factor", 8.0), **LLAMA3_SCALING}
