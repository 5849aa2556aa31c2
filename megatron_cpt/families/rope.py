"""Rotary positions (arXiv:2104.09864) in config.json, in both forms that transformers has written.

`with_positions` writes the config.json of a model that `model.rope` gives other positions than its folder has.
"""

import math
from dataclasses import dataclass
from typing import Any

from megatron_cpt.config.schema import RopeSettings
from megatron_cpt.families.fields import KINDS, ConfigFields

# What stays where the kind of scaling changes: the base, the part of a head that is turned, how queries grow.
_SECTIONS = ("mrope_section", "mrope_interleaved")
_OF_NO_KIND = ("rope_theta", "partial_rotary_factor", "llama_4_scaling_beta", *_SECTIONS)
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
        {"rope_scaling": after} if after and after != {"rope_type": "default"} else {}
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
    """Factor of what is turned of queries and of keys."""
    whole_dimensions: bool
    """Whether the dimensions of `fast` and `slow` are rounded to whole ones, away from each other."""
    all_dimensions: float = 0.0
    """w of 0.1 w ln(factor) + 1, whose square is a factor of all scores of latent attention (`mscale_all_dim`)."""

    @property
    def positions(self) -> int:
        """Longest sequence with it, in tokens."""
        return int(self.factor * self.original_positions)


@dataclass(frozen=True)
class DynamicScaling:
    """A larger base for sequences beyond the original positions, the larger the longer (transformers' `dynamic`).

    The base is multiplied by (factor s / original_positions - factor + 1) ^ (d / (d - 2)) in a sequence of s tokens,
    where d dimensions of a head are turned.
    """

    factor: float
    """By how much more positions it was made for."""
    original_positions: int
    """Longest sequence before the scaling, in tokens."""


@dataclass(frozen=True)
class LongRopeScaling:
    """Each wavelength longer by a factor of its own, of two by the sequence's length (LongRoPE, arXiv:2402.13753)."""

    short: tuple[float, ...]
    """Factors in sequences of at most original_positions, one for each pair of dimensions."""
    long: tuple[float, ...]
    """Factors in longer ones."""
    original_positions: int
    """Longest sequence before the scaling, in tokens."""
    attention_factor: float
    """Factor of what is turned of queries and of keys, whatever the length."""


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongRopeScaling
LengthScaling = DynamicScaling | LongRopeScaling
"""Those by which the angle of a position depends on how long its sequence is."""


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of a model."""

    base: float
    """Base of the wavelengths."""
    scaling: RopeScaling | None
    """How the wavelengths were changed for longer sequences; None: they were not."""
    share: float
    """Part of each head that is turned."""
    positions: int
    """Longest sequence that the model was made for, in tokens."""
    temperature_beta: float = 0.0
    """How much queries grow beyond the original positions (ModelShape.temperature_beta)."""
    temperature_positions: int = 1
    """The original positions, for this."""
    sections: tuple[int, ...] | None = None
    """Pairs of dimensions that are turned by time, height and width (`mrope_section`). None: not given."""


def read_rope(
    fields: ConfigFields,
    family: str,
    max_positions: int,
    base_name: str = "rope_theta",
    share_name: str | None = None,
    share: float = 1.0,
    base: float = 10_000.0,
    original_positions: int | None = None,
    grows_queries: bool = False,
    has_sections: bool = False,
) -> Rope:
    """The rotary positions as transformers 5 (`rope_parameters`) or 4 (fields of their own) writes them.

    Args:
        family: its name, for messages.
        max_positions: `max_position_embeddings` where nothing states it.
        base_name: transformers 4's name of the base.
        share_name: transformers 4's name of the part of a head that is turned; None: the family turns all.
        share: that part where nothing states it.
        base: the base where nothing states it.
        original_positions: `original_max_position_embeddings` where nothing states it; None: the family needs it.
        grows_queries: whether queries grow beyond the original positions.
        has_sections: whether each part of a head is turned by time, height or width (M-RoPE, arXiv:2409.12191, section
            2.1). In text the three are the same, so that these are the positions of a Llama.
    """
    stated = fields.integer("max_position_embeddings", max_positions)
    outer_base = fields.positive(base_name, base)
    outer_share = share if share_name is None else fields.positive(share_name, share)
    original = fields.optional_integer("original_max_position_embeddings", original_positions)
    older, newer = fields.take("rope_scaling", {}), fields.take("rope_parameters", {})
    if older and newer:
        rule = "rope_scaling and rope_parameters are both given, and say it twice."
        fields.fault("rope_scaling", older, rule, "Take rope_scaling out of config.json.")
    name, given = ("rope_parameters", newer) if newer else ("rope_scaling", older)
    if not isinstance(given, dict):
        fields.fault(name, given, "must be an object.", "Mend config.json.")
        return Rope(outer_base, None, outer_share, stated)
    kind = given.get("rope_type") or given.get("type") or "default"
    if original is not None and kind in ("llama3", "yarn", "longrope", "su"):  # transformers prefers the outer one
        given = given | {"original_max_position_embeddings": original}
    inner = ConfigFields(f"{fields.path}: {name}", given)
    inner.take("rope_type")
    inner.take("type")
    sections = None
    if has_sections:
        sections, kind = _read_sections(inner), "default" if kind == "mrope" else kind
    base = inner.positive("rope_theta", outer_base)
    if share_name is None:
        inner.require("partial_rotary_factor", [1, 1.0], 1.0)
    else:
        outer_share = inner.positive("partial_rotary_factor", outer_share)
    beta, begin = 0.0, 1
    if grows_queries:  # transformers computes with both, whatever the kind of scaling
        inner.take("max_position_embeddings")  # the outer one once more
        if not inner.has("llama_4_scaling_beta"):
            inner.fault("llama_4_scaling_beta", None, "transformers needs it in this family.", "State it, 0 for none.")
        beta = inner.not_negative("llama_4_scaling_beta", 0.0)
        original = given.get("original_max_position_embeddings")
        if kind in ("default", "linear", "dynamic"):  # which do not read it
            original = inner.integer("original_max_position_embeddings")
        begin = original if type(original) is int else 1
    scaling = _read_scaling(inner, kind, stated)
    if not inner.faults:  # the fields of a kind that is refused need no faults of their own
        inner.refuse_left(family)
    fields.faults += inner.faults
    return Rope(base, scaling, outer_share, _longest(stated, scaling), beta, begin, sections)


def _read_sections(fields: ConfigFields) -> tuple[int, ...] | None:
    """Pairs of dimensions by time, height and width, where they are given."""
    fields.boolean("mrope_interleaved", False)
    sections = fields.take("mrope_section")
    if sections is None:
        return None
    numbers = sections if isinstance(sections, list) else []
    if len(numbers) != 3 or not all(type(one) is int and one >= 0 for one in numbers):
        rule = "must be three whole numbers: pairs of dimensions by time, height and width."
        fields.fault("mrope_section", sections, rule, "Mend config.json.")
        return None
    return tuple(numbers)


def check_sections(fields: ConfigFields, rope: Rope, head_dim: int, needed: bool) -> None:
    """Notes a fault where the sections are not all pairs of dimensions that are turned, or are missing.

    Args:
        needed: whether transformers fails without them.
    """
    pairs = int(head_dim * rope.share) // 2
    if rope.sections is None and needed and not fields.faults:
        rule = "transformers needs it in this family."
        fields.fault("mrope_section", None, rule, f"State it in rope_scaling: three numbers with the sum {pairs}.")
    if rope.sections is not None and sum(rope.sections) != pairs:
        rule = f"its sum must be {pairs}, the pairs of dimensions of a head that are turned."
        fields.fault("mrope_section", list(rope.sections), rule, "Mend config.json.")


def _longest(stated: int, scaling: RopeScaling | None) -> int:
    """`max_position_embeddings`, or what scaling makes of it. With YaRN folders state the positions before or after."""
    match scaling:
        case YarnScaling():
            return max(stated, scaling.positions)
        case DynamicScaling():
            return int(stated * scaling.factor)
    return stated


def read_ropes_by_kind(
    fields: ConfigFields, family: str, max_positions: int, base: float, local_base: float
) -> tuple[Rope, float]:
    """The rotary positions of layers that see the whole sequence, and the base of local ones.

    transformers 5 writes them by kind of layer (`rope_parameters`), transformers 4 those of all layers that see the
    whole sequence in the fields of other families.

    Args:
        max_positions, base: defaults of the whole layers'.
        local_base: of local layers, where nothing is written by kind.
    """
    stated = {"max_position_embeddings": fields.integer("max_position_embeddings", max_positions)}
    older, newer = fields.take("rope_scaling", {}), fields.take("rope_parameters", {})
    if not isinstance(newer, dict) or not set(newer) <= set(KINDS) or (older and newer):
        rule = f"must be an object with {' and '.join(KINDS)}, and stands in place of rope_scaling."
        fields.fault("rope_parameters", newer, rule, "Mend config.json.")
        newer = {}
    by_kind = newer or {"full_attention": older}
    ropes = []
    for kind, default in zip(KINDS, (base, local_base), strict=True):
        inner = ConfigFields(f"{fields.path}: {kind}", {"rope_parameters": by_kind.get(kind)} | stated)
        ropes.append(read_rope(inner, family, max_positions, base=default))
        if kind == "sliding_attention" and ropes[-1].scaling:
            inner.fault("rope_parameters", by_kind[kind], "local layers are never rescaled.", "Mend config.json.")
        fields.faults += inner.faults
    return ropes[0], ropes[1].base


def _read_scaling(fields: ConfigFields, kind: object, stated: int) -> RopeScaling | None:
    """Args:
    stated: `max_position_embeddings`.
    """
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(fields.positive("factor", 1.0))
        case "dynamic":
            factor = fields.positive("factor", 1.0)
            if factor < 1:
                fields.fault("factor", factor, "must be at least 1.", "Mend config.json.")
            return DynamicScaling(factor, stated)
        case "llama3":
            scaling = Llama3Scaling(
                factor=fields.positive("factor", 8.0),
                low_frequency_factor=fields.positive("low_freq_factor", 1.0),
                high_frequency_factor=fields.positive("high_freq_factor", 4.0),
                original_positions=fields.integer("original_max_position_embeddings", 8192),
            )
            if scaling.high_frequency_factor < scaling.low_frequency_factor:
                rule = f"must be at least low_freq_factor ({scaling.low_frequency_factor})."
                fields.fault("high_freq_factor", scaling.high_frequency_factor, rule, "Mend config.json.")
            return scaling
        case "yarn":
            return _read_yarn(fields)
        case "longrope" | "su":  # the name in the first Phi-3
            return _read_longrope(fields, stated)
    known = "'default', 'linear', 'dynamic', 'llama3', 'yarn' and 'longrope'"
    remedy = "Use a model without this kind of RoPE scaling."
    fields.fault("rope_type", kind, f"only {known} are known.", remedy)
    return None


def _read_longrope(fields: ConfigFields, stated: int) -> LongRopeScaling:
    original = fields.integer("original_max_position_embeddings")
    factor = fields.optional_positive("factor", None) or stated / original
    implied = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    return LongRopeScaling(
        short=fields.positives("short_factor"),
        long=fields.positives("long_factor"),
        original_positions=original,
        attention_factor=fields.optional_positive("attention_factor", None) or implied,
    )


def _read_yarn(fields: ConfigFields) -> YarnScaling:
    factor = fields.positive("factor", 1.0)
    numerator = fields.not_negative("mscale", 0.0)
    denominator = fields.not_negative("mscale_all_dim", 0.0)
    implied = yarn_attention_factor(factor)
    if numerator and denominator:
        implied = yarn_attention_factor(factor, numerator) / yarn_attention_factor(factor, denominator)
    return YarnScaling(
        factor=factor,
        original_positions=fields.integer("original_max_position_embeddings"),
        fast=fields.positive("beta_fast", 32.0),
        slow=fields.positive("beta_slow", 1.0),
        attention_factor=fields.optional_positive("attention_factor", None) or implied,
        whole_dimensions=fields.boolean("truncate", True),
        all_dimensions=denominator,
    )


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """What queries and keys are multiplied by (arXiv:2309.00071, section 3.4), 1 where nothing is scaled."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
