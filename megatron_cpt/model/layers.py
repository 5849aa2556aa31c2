"""Transformer layers that Megatron-Core lacks, made of its own parts through layer specs."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.model.local_rotary import own_angles

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
        refuse_partial_recomputation(config, "attention and MLP in parallel")
        super().__init__(config, submodules, **named)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h]; the rest is what self-attention takes. Returns [s, b, h], and no context."""
        refuse_context(named, "ParallelResidualLayer")
        attended = self.self_attention(self.input_layernorm(hidden_states), attention_mask, **named)
        transformed = self.mlp(self.pre_mlp_layernorm(hidden_states))
        fused = self.config.bias_dropout_fusion
        with_attention = self.self_attn_bda(self.training, fused)(attended, hidden_states, self.hidden_dropout)
        return self.mlp_bda(self.training, fused)(transformed, with_attention, self.hidden_dropout), None


class PostNormLayer(TransformerLayer):
    """y = x + norm(attention(n(x))), then y + norm(MLP(n(y))), where n is a norm or nothing.

    As in OLMo 2 (arXiv:2501.00656, without n), Gemma 2 (arXiv:2408.00118) and Gemma 3 (arXiv:2503.19786), with n.
    Megatron-Core 0.16.1 has no norm between a projection and the residual stream.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        post_norm: type[torch.nn.Module] | None = None,
        is_local: bool | None = None,
        **named: Any,
    ) -> None:
        """Takes what TransformerLayer takes, and more.

        Args:
            post_norm: kind of the norms after attention and MLP.
            is_local: whether the layer turns positions as local ones do; None: all layers turn them alike.
        Raises:
            BadInput: `megatron.transformer` asks for a recomputation that this layer does not have.
        """
        refuse_partial_recomputation(config, "norms after attention and MLP")
        super().__init__(config, submodules, **named)
        assert post_norm is not None
        self.is_local = is_local
        size, epsilon = config.hidden_size, config.layernorm_epsilon
        self.post_attention_layernorm = post_norm(config=config, hidden_size=size, eps=epsilon)
        self.post_mlp_layernorm = post_norm(config=config, hidden_size=size, eps=epsilon)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states: [s, b, h]; the rest is what self-attention takes. Returns [s, b, h], and no context."""
        refuse_context(named, "PostNormLayer")
        if self.is_local is not None:
            named["rotary_pos_emb"] = own_angles(named["rotary_pos_emb"], self.is_local)
        fused = self.config.bias_dropout_fusion
        attended, bias = self.self_attention(self.input_layernorm(hidden_states), attention_mask, **named)
        normed = self.post_attention_layernorm(attended if bias is None else attended + bias)
        hidden_states = self.self_attn_bda(self.training, fused)((normed, None), hidden_states, self.hidden_dropout)
        transformed, bias = self.mlp(self.pre_mlp_layernorm(hidden_states))
        normed = self.post_mlp_layernorm(transformed if bias is None else transformed + bias)
        return self.mlp_bda(self.training, fused)((normed, None), hidden_states, self.hidden_dropout), None


def refuse_partial_recomputation(config: TransformerConfig, kind: str) -> None:
    """Raises BadInput where parts are to be recomputed that only Megatron-Core's own forward pass recomputes."""
    recomputed = set(config.recompute_modules or ()) if config.recompute_granularity == "selective" else set()
    if recomputed & SERIAL_ONLY:
        raise BadInput(
            Fault(
                f"megatron.transformer.recompute_modules = {sorted(recomputed)}",
                f"a layer with {kind} recomputes nothing smaller than core_attn alone.",
                "Use [core_attn], or `recompute_granularity: full`.",
            )
        )


def refuse_context(named: dict[str, Any], layer: str) -> None:
    """Takes out what a layer of a language model is given and does not use; it must be None."""
    for name in ("context", "context_mask", "padding_mask", "dynamic_inference_decode_only"):
        if named.pop(name, None) is not None:
            raise ValueError(f"{layer} takes no {name}")
