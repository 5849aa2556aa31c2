"""Megatron-Core's HybridModel in the place of GPTModel, for releases that have no GPTModel any more.

HybridModel builds a layer for each symbol of a pattern. The patterns that Megatron-LM's guide gives for a GPTModel
(`*-*-`) make two layers of each of its layers, attention and MLP, which are added one after the other. Here a symbol
is a whole transformer layer, by the same spec as in GPTModel. So layers have the same numbers, parameters the same
names and checkpoints the same keys, and attention and MLP may run in parallel (GPT-NeoX). Neither Mamba's kernels nor
Transformer Engine are needed.

Releases before 0.18 have no such module: it is imported where a model is built from it, and nowhere else.
"""

import contextlib
from typing import Any

from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.model.mcore_patches import temporary_attributes


def hybrid_model(config: TransformerConfig, block: TransformerBlockSubmodules, **named: Any) -> HybridModel:
    """A rank's chunk of a model.

    Args:
        block: specs of the chunk's layers, and its final norm.
        named: what GPTModel and HybridModel both take.
    Raises:
        BadInput: `megatron.transformer` divides layers among stages in a way that HybridModel does not have.
    """
    pattern = _layer_pattern(config)
    stack = ModuleSpec(
        module=_TransformerStack,
        params={"final_norm": block.layer_norm, "vp_stage": named.get("vp_stage")},
        submodules=HybridStackSubmodules(
            attention_layer=ModuleSpec(module=_LayerOfStage, params={"specs": block.layer_specs})
        ),
    )
    # The pattern has these in it, and HybridModel refuses both at once.
    with temporary_attributes(config, num_layers_in_first_pipeline_stage=None, num_layers_in_last_pipeline_stage=None):
        return _TransformerModel(config=config, hybrid_stack_spec=stack, hybrid_layer_pattern=pattern, **named)


def _layer_pattern(config: TransformerConfig) -> str:
    """A symbol for each layer of the whole model, and `|` between pipeline stages, in the order of their layers."""
    if config.pipeline_model_parallel_layout is not None:
        rule = "the installed Megatron-Core has no GPTModel, and its HybridModel does not read this field."
        value = f"megatron.transformer.pipeline_model_parallel_layout = {config.pipeline_model_parallel_layout}"
        raise BadInput(Fault(value, rule, "Take it out: stages then have the same number of layers."))
    chunks = range(config.virtual_pipeline_model_parallel_size or 1)
    interleaved = len(chunks) > 1
    return "|".join(
        "*" * get_num_layers_to_build(config, chunk if interleaved else None, stage)
        for chunk in chunks
        for stage in range(config.pipeline_model_parallel_size)
    )


class _TransformerModel(HybridModel):
    """HybridModel with the checkpoint keys of GPTModel."""

    def sharded_state_dict(self, *given: Any, **named: Any) -> dict[str, Any]:
        """Its part of a distributed checkpoint: without the empty extra state of the output layer."""
        sharded: dict[str, Any] = super().sharded_state_dict(*given, **named)
        return {key: value for key, value in sharded.items() if not key.endswith("output_layer._extra_state")}


class _TransformerStack(HybridStack):
    """The layers of a chunk, in the ways of GPTModel's TransformerBlock.

    HybridStack names the final norm otherwise and builds it from Transformer Engine alone, and it draws the dropout of
    hidden states alike on all tensor-parallel ranks, also where each has a part of the sequence.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: HybridStackSubmodules,
        final_norm: Any,
        vp_stage: int | None,
        **named: Any,
    ) -> None:
        """Takes what HybridStack takes, and more.

        Args:
            final_norm: kind of the norm after the last layer.
            vp_stage: which of the rank's chunks it is; None: the only one.
        """
        super().__init__(config, submodules, post_layer_norm=False, **named)
        self.vp_stage = vp_stage
        if self.post_process:
            self.final_layernorm = final_norm(
                config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon
            )

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """Takes what HybridStack takes: hidden states [s, b, h]. Returns [s, b, h]."""
        random_state = get_cuda_rng_tracker().fork() if self.config.sequence_parallel else contextlib.nullcontext()
        with random_state:
            hidden_states: Tensor = super().forward(*given, **named)
        return self.final_layernorm(hidden_states) if self.post_process else hidden_states

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Its part of a distributed checkpoint, under the keys that a TransformerBlock of this release gives."""
        sharded: dict[str, Any] = TransformerBlock.sharded_state_dict(self, prefix, sharded_offsets or (), metadata)
        return sharded


class _LayerOfStage:
    """Makes a layer by the spec of its place in the chunk: HybridStack has one spec for all layers of a symbol."""

    def __new__(cls, specs: list[ModuleSpec], layer_number: int, pp_layer_offset: int, **named: Any) -> Any:
        """A layer.

        Args:
            specs: of the chunk's layers.
            layer_number: in the whole model, from 1.
            pp_layer_offset: layers before the chunk.
            named: what the layer takes besides.
        """
        return build_module(specs[layer_number - 1 - pp_layer_offset], layer_number=layer_number, **named)
