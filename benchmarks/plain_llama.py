"""A Llama in plain PyTorch, as one would write it with care and nothing else: the baseline of train_step.py."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_cpt.families.family import ModelShape


def rotary(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding: [length, head_dim] each."""
    inverse = base ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates [b, heads, s, d] by position."""
    half = states.size(-1) // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cosine + turned * sine


class Layer(nn.Module):
    """Attention and a gated MLP, each behind an RMSNorm."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.query_key_value = nn.Linear(shape.hidden, shape.query_width + 2 * shape.key_value_width, bias=False)
        self.output = nn.Linear(shape.query_width, shape.hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.ffn_hidden, bias=False)
        self.down = nn.Linear(shape.ffn_hidden, shape.hidden, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """[b, s, hidden] to the same."""
        shape = self.shape
        widths = [shape.query_width, shape.key_value_width, shape.key_value_width]
        query, key, value = (
            states.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2)
            for states in self.query_key_value(self.attention_norm(hidden)).split(widths, dim=-1)
        )
        context = functional.scaled_dot_product_attention(
            rotate(query, cosine, sine),
            rotate(key, cosine, sine),
            value,
            is_causal=True,
            enable_gqa=shape.heads != shape.query_groups,
        )
        hidden = hidden + self.output(context.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(functional.silu(gate) * up)


class PlainLlama(nn.Module):
    """Tokens to the mean loss of their labels."""

    def __init__(self, shape: ModelShape, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_epsilon)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        if shape.tied_embeddings:
            self.head.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        cosine, sine = rotary(length, shape.head_dim, shape.rope_base)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Mean nats per token; tokens and labels are int64 [b, s]."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden, self.cosine, self.sine)
        logits = self.head(self.norm(hidden))
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
