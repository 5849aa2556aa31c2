"""Rotary positions (arXiv:2104.09864) in config.json, in both forms that transformers has written.

`with_positions` writes the config.json of a model that `model.rope` gives other positions than its folder has.
"""

import math
from dataclasses import dataclass
from typing import Any

from megatron_cpt.config.schema import RopeSettings
from megatron_cpt.families.fields import ConfigFields

# What stays where the kind of scaling changes: the base, and the part of a head that is turned.
_OF_NO_KIND = ("rope_theta", "partial_rotary_factor")
# Where positions are told by kind of layer: those that see the whole sequence; local ones see no further than before.
_WIDE_LAYERS = "full_attention"
_BASE_NAMES = ("rotary_emb_base", "rope_theta")


def with_positions(fields: dict[str, Any], rope: RopeSettings) -> dict[str, Any]:
    """The fields of a config.json with the positions of a run, in the form that transformers 4 or 5 has given them.

    Args:
        fields: config.json as it is in the folder; left as it is.
    """
    changed = fields | {"max_position_embeddings": rope.max_position_embeddings}
    by_kind = fields.get("rope_parameters")
    if isinstance(by_kind, dict) and _WIDE_LAYERS in by_kind:
        of_wide = with_positions(fields | {"rope_parameters": by_kind[_WIDE_LAYERS]}, rope)["rope_parameters"]
        return changed | {"rope_parameters": by_kind | {_WIDE_LAYERS: of_wide}}
    newer = isinstance(fields.get("rope_parameters"), dict)
    before: dict[str, Any] = dict(fields.get("rope_parameters" if newer else "rope_scaling") or {})
    after = before
    if rope.scaling != "keep":
        after = {name: before[name] for name in _OF_NO_KIND if name in before}
        after |= _scaling_fields(fields, before, rope)
    if rope.rope_theta is not None and newer:
        after = after | {"rope_theta": rope.rope_theta}
    elif rope.rope_theta is not None:
        changed |= {next((name for name in _BASE_NAMES if name in fields), "rope_theta"): rope.rope_theta}
    if newer:
        return changed | {"rope_parameters": after}
    return {name: value for name, value in changed.items() if name != "rope_scaling"} | (
        {"rope_scaling": after} if after and after.get("rope_type") != "default" else {}
    )


def _scaling_fields(fields: dict[str, Any], before: dict[str, Any], rope: RopeSettings) -> dict[str, Any]:
    """The fields of a kind of scaling, under transformers' names.

    Args:
        before: those of the folder's own scaling.
    """
    if rope.scaling == "none":
        return {"rope_type": "default"}
    original = rope.original_positions or before.get("original_max_position_embeddings")
    original = original or fields.get("max_position_embeddings")
    factor = rope.factor or (rope.max_position_embeddings / original if original else None)
    further = {} if rope.scaling == "linear" else {"original_max_position_embeddings": original}
    if rope.scaling == "llama3":
        further |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_type": rope.scaling, "factor": factor, **further, **rope.extra}


@dataclass(frozen=True)
class LinearScaling:
    """Every wavelength longer by the same factor (arXiv:2306.15595)."""

    factor: float
    """By how much."""


@dataclass(frozen=True)
class Llama3Scaling:
    """Long wavelengths longer, short ones as they were (arXiv:2407.21783, section 3.4.2; transformers' `llama3`)."""

    factor: float
    """By how much the long ones."""
    low_frequency_factor: float
    """A wavelength is long from original_positions / low_frequency_factor tokens on."""
    high_frequency_factor: float
    """It is short up to original_positions / high_frequency_factor tokens."""
    original_positions: int
    """Longest sequence before the scaling, in tokens."""


@dataclass(frozen=True)
class YarnScaling:
    """Long wavelengths longer, short ones as they were, and sharper attention (YaRN, arXiv:2309.00071)."""

    factor: float
    """By how much the long ones."""
    original_positions: int
    """Longest sequence before the scaling, in tokens."""
    fast: float
    """A wavelength is short that turns at least so many times within original_positions."""
    slow: float
    """It is long where it turns at most so many times."""
    attention_factor: float
    """Factor of queries and of keys."""
    whole_dimensions: bool
    """Whether the dimensions of `fast` and `slow` are rounded to whole ones, away from each other."""

    @property
    def positions(self) -> int:
        """Longest sequence with it, in tokens."""
        return int(self.factor * self.original_positions)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a model."""

    base: float
    """Base of the wavelengths."""
    scaling: RopeScaling | None
    """How the wavelengths were changed for longer sequences; None: they were not."""
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


def _read_scaling(fields: ConfigFields, kind: object) -> RopeScaling | None:
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(fields.positive("factor", 1.0))
        case "llama3":
            scaling = Llama3Scaling(
                factor=fields.positive("factor", 8.0),
                low_frequency_factor=fields.positive("low_freq_factor", 1.0),
                high_frequency_factor=fields.positive("high_freq_factor", 4.0),
                original_positions=fields.integer("original_max_position_embeddings", 8192),
            )
            if scaling.high_frequency_factor <= scaling.low_frequency_factor:
                rule = f"must be above low_freq_factor ({scaling.low_frequency_factor})."
                fields.fault("high_freq_factor", scaling.high_frequency_factor, rule, "Mend config.json.")
            return scaling
        case "yarn":
            return _read_yarn(fields)
    fields.fault(
        "rope_type",
        kind,
        "only 'default', 'linear', 'llama3' and 'yarn' are known.",
        "Use a model without this kind of RoPE scaling.",
    )
    return None


def _read_yarn(fields: ConfigFields) -> YarnScaling:
    factor = fields.positive("factor", 1.0)
    numerator = fields.optional_positive("mscale", None)
    denominator = fields.optional_positive("mscale_all_dim", None)
    implied = _yarn_attention_factor(factor)
    if numerator and denominator:
        implied = _yarn_attention_factor(factor, numerator) / _yarn_attention_factor(factor, denominator)
    return YarnScaling(
        factor=factor,
        original_positions=fields.integer("original_max_position_embeddings"),
        fast=fields.positive("beta_fast", 32.0),
        slow=fields.positive("beta_slow", 1.0),
        attention_factor=fields.optional_positive("attention_factor", None) or implied,
        whole_dimensions=fields.boolean("truncate", True),
    )


def _yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """What queries and keys are multiplied by (arXiv:2309.00071, section 3.4), 1 where nothing is scaled."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
