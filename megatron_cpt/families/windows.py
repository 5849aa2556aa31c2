"""Which layers see no further back than a window."""

from megatron_cpt.families.fields import ConfigFields

KINDS = ("full_attention", "sliding_attention")


def read_layer_types(fields: ConfigFields, layers: int) -> frozenset[int] | None:
    """The layers that `layer_types` marks as having a window, counted from 0; None where it is not written."""
    kinds = fields.take("layer_types")
    if kinds is None:
        return None
    if not (isinstance(kinds, list) and len(kinds) == layers and all(kind in KINDS for kind in kinds)):
        rule = f"must name one of {' and '.join(KINDS)} for each of {layers} layers."
        fields.fault("layer_types", kinds, rule, "Mend config.json.")
        return frozenset()
    return frozenset(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")


def every_layer(window: int | None, layers: int) -> frozenset[int]:
    """All layers where there is a window, else none."""
    return frozenset(range(layers)) if window else frozenset()
