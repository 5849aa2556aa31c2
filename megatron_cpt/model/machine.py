"""What a run asks of this machine and it does not have: refused before the ranks meet."""

from collections.abc import Iterator

from megatron_cpt.config.errors import Fault
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.model.specs import transformer_engine_usable

# Fields of TransformerConfig that only Transformer Engine's modules obey. Megatron-Core's local layers would leave
# most of them out without a word.
ENGINE_ONLY = (
    "fp8",
    "fp4",
    "fp8_param",
    "tp_comm_overlap",
    "moe_grouped_gemm",
    "apply_rope_fusion",
    "use_te_activation_func",
    "use_te_rng_tracker",
    "cp_comm_type",
    "softmax_type",
)


def machine_faults(config: RunConfig) -> Iterator[Fault]:
    """Settings that need Transformer Engine, where it is not usable: it takes the package and a GPU."""
    if transformer_engine_usable():
        return
    for name in ENGINE_ONLY:
        value = config.megatron.transformer.get(name)
        if value not in (None, False, "vanilla"):
            yield Fault(
                f"megatron.transformer.{name} = {value!r}",
                "only Transformer Engine's layers have it, and it is not usable here (`megatron-cpt doctor` says why).",
                "Install transformer_engine on a machine with a GPU, or take this out.",
            )
    for name, value in config.megatron.ddp.items():
        if name.startswith("fp8") and value:
            yield Fault(
                f"megatron.ddp.{name} = {value!r}",
                "only Transformer Engine's layers have fp8 parameters, and it is not usable here.",
                "Take this out.",
            )
