"""Layers with experts (arXiv:2101.03961): the names that Megatron-Core has for them, and their config fields."""

from megatron_cpt.families.fields import ConfigFields
from megatron_cpt.families.weights import GatedUp, Replicated, RowParallel, Rule, Tensor


def expert_weights(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """The name table of the router and the experts of a layer.

    Args:
        block: Hugging Face's name of the part of a layer that holds them.
        gate, up, down: its names of an expert's three matrices.
    """
    # One expert after the other, and Transformer Engine's experts of a rank in one module.
    ours = (
        "decoder.layers.{{layer}}.mlp.experts.local_experts.{{expert}}.{linear}.weight",
        "decoder.layers.{{layer}}.mlp.experts.{linear}.weight{{expert}}",
    )
    expert = f"model.layers.{{layer}}.{block}.experts.{{expert}}"
    return (
        Replicated(
            ("decoder.layers.{layer}.mlp.router.weight",),
            (Tensor(f"model.layers.{{layer}}.{block}.gate.weight", ("experts", "hidden")),),
            layers="sparse",
        ),
        GatedUp(
            tuple(name.format(linear="linear_fc1") for name in ours),
            (
                Tensor(f"{expert}.{gate}.weight", ("expert_ffn_hidden", "hidden")),
                Tensor(f"{expert}.{up}.weight", ("expert_ffn_hidden", "hidden")),
            ),
            layers="sparse",
        ),
        RowParallel(
            tuple(name.format(linear="linear_fc2") for name in ours),
            (Tensor(f"{expert}.{down}.weight", ("hidden", "expert_ffn_hidden")),),
            layers="sparse",
        ),
    )


def read_chosen(fields: ConfigFields, experts: int, default: int) -> int:
    """`num_experts_per_tok`. Notes a fault where a token could not be sent to so many."""
    chosen = fields.integer("num_experts_per_tok", default)
    if chosen > experts:
        fields.fault("num_experts_per_tok", chosen, f"there are {experts} experts.", "Mend config.json.")
    return chosen
