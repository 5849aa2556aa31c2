"""Transformer layers that Megatron-Core lacks, made of its own parts through layer specs."""

from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_cpt.config.errors import BadInput, Fault

# Megatron-Core recomputes these inside the forward pass that is replaced here; core_attn recomputes itself.
SERIAL_ONLY = {"layernorm", "mlp"}


class ParallelResidualLayer(TransformerLayer):
    """y = x + attention(norm(x)) + MLP(other norm(x)), as in GPT-J and GPT-NeoX (arXiv:2204.06745, section 2.1).

    Megatron-Core 0.16.1 gives the MLP what attention has changed already. Its modules, their names and
    their checkpoints are those of TransformerLayer.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        **named: Any,
    ) -> None:
        """Takes what TransformerLayer takes.

        Raises:
            BadInput: `megatron.transformer` asks for a recomputation that this layer does not have.
        """
        recomputed = set(config.recompute_modules or ()) if config.recompute_granularity == "selective" else set()
        if recomputed & SERIAL_ONLY:
            raise BadInput(
                Fault(
                    f"megatron.transformer.recompute_modules = {sorted(recomputed)}",
                    "a layer with attention and MLP in parallel recomputes nothing smaller than core_attn alone.",
                    "Use [core_attn], or `recompute_granularity: full`.",
                )
            )
        super().__init__(config, submodules, **named)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h]; the rest is what self-attention takes. Returns [s, b, h], and no context."""
        for name in ("context", "context_mask", "padding_mask", "dynamic_inference_decode_only"):
            if named.pop(name, None) is not None:
                raise ValueError(f"ParallelResidualLayer takes no {name}")
        attended = self.self_attention(self.input_layernorm(hidden_states), attention_mask, **named)
        transformed = self.mlp(self.pre_mlp_layernorm(hidden_states))
        fused = self.config.bias_dropout_fusion
        with_attention = self.self_attn_bda(self.training, fused)(attended, hidden_states, self.hidden_dropout)
        return self.mlp_bda(self.training, fused)(transformed, with_attention, self.hidden_dropout), None
