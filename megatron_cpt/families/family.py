"""What a model family is: how its config.json becomes numbers, and how its weights are named.

Layers with experts (arXiv:2101.03961) share their names and fields across families.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from megatron_cpt.families.fields import Activation, ConfigFields
from megatron_cpt.families.rope import LongRopeScaling, RopeScaling, YarnScaling
from megatron_cpt.families.weights import GatedUp, Replicated, RowParallel, Rule, Stack, Tensor, linear_rules


def expert_weights(
    block: str, gate: str, up: str, down: str, router: str = "gate", biased: bool = False
) -> tuple[Rule, ...]:
    """The name table of the router and the experts of a layer.

    Args:
        block: Hugging Face's name of the part of a layer that holds them.
        gate, up, down: its names of an expert's three matrices.
        router: its name of the router.
        biased: whether all of them have biases.
    """
    mlp, theirs = "decoder.layers.{layer}.mlp", f"model.layers.{{layer}}.{block}"

    def of_experts(linear: str, part: str) -> tuple[str, str]:
        """Our names: one expert after the other, and Transformer Engine's experts of a rank in one module."""
        return f"{mlp}.experts.local_experts.{{expert}}.{linear}.{part}", f"{mlp}.experts.{linear}.{part}{{expert}}"

    def rules(part: str, down_kind: type[Rule], *columns: str) -> tuple[Rule, ...]:
        """Those of all weights, or of all biases.

        Args:
            down_kind: how ranks divide that of the last projection.
            columns: of what reads hidden states, and of what reads an expert's inside; none for biases.
        """
        expert = f"{theirs}.experts.{{expert}}"
        up_tensors = [Tensor(f"{expert}.{name}.{part}", ("expert_ffn_hidden", *columns[:1])) for name in (gate, up)]
        router_tensor = Tensor(f"{theirs}.{router}.{part}", ("experts", *columns[:1]))
        down_tensor = Tensor(f"{expert}.{down}.{part}", ("hidden", *columns[1:]))
        return (
            Replicated((f"{mlp}.router.{part}",), (router_tensor,), layers="sparse"),
            GatedUp(of_experts("linear_fc1", part), tuple(up_tensors), layers="sparse"),
            down_kind(of_experts("linear_fc2", part), (down_tensor,), layers="sparse"),
        )

    weights = rules("weight", RowParallel, "hidden", "expert_ffn_hidden")
    # The bias of a row-parallel projection is whole on every rank.
    return (*weights, *rules("bias", Replicated)) if biased else weights


def expert_stacks(
    block: str,
    transposed: bool = False,
    either_way: bool = False,
    alternate: bool = False,
    biased: bool = False,
    is_only_form: bool = False,
) -> tuple[Stack, ...]:
    """The tensors of a layer that hold those of all its experts: gate and up in one, down in another.

    Args:
        block: Hugging Face's name of the part of a layer that holds them.
        transposed: whether published folders hold matrices turned.
        either_way: whether others hold them otherwise.
        alternate: whether rows of gate and up alternate, or up's follow the gate's.
        biased: whether all of them have biases.
        is_only_form: whether transformers reads no folder that holds each expert by itself.
    """
    experts = f"model.layers.{{layer}}.{block}.experts"

    def stack(name: str, tensors: tuple[str, ...], hidden_axis: int, part: str) -> Stack:
        return Stack(
            f"{experts}.{name}" + ("_bias" if part == "bias" else ""),
            tuple(f"{experts}.{{expert}}.{tensor}.{part}" for tensor in tensors),
            alternate,
            transposed and part == "weight",
            hidden_axis if either_way else None,
            is_only_form,
        )

    return tuple(
        stack(name, tensors, hidden_axis, part)
        for part in (("weight", "bias") if biased else ("weight",))
        for name, tensors, hidden_axis in (
            ("gate_up_proj", ("gate_proj", "up_proj"), 1),
            ("down_proj", ("down_proj",), 0),
        )
    )


def shared_expert_weights(block: str, expert: str, gate: str | None = None) -> tuple[Rule, ...]:
    """The name table of the expert that every token of a layer is sent to, and of the gate that weighs it if there is.

    Args:
        block: Hugging Face's name of the part of a layer that holds them.
        expert, gate: its names of both.
    """
    ours, theirs, width = "mlp.shared_experts", f"model.layers.{{layer}}.{block}", "shared_expert_ffn_hidden"
    up = [(f"{theirs}.{expert}.{name}", width) for name in ("gate_proj", "up_proj")]
    rules = (
        *linear_rules(GatedUp, f"{ours}.linear_fc1", up, "hidden", layers="sparse"),
        *linear_rules(
            RowParallel, f"{ours}.linear_fc2", [(f"{theirs}.{expert}.down_proj", "hidden")], width, layers="sparse"
        ),
    )
    if gate is None:
        return rules
    weight = (Tensor(f"{theirs}.{gate}.weight", ("one", "hidden")),)
    return (*rules, Replicated((f"decoder.layers.{{layer}}.{ours}.gate_weight",), weight, layers="sparse"))


def with_experts(
    fields: ConfigFields,
    shape: "ModelShape",
    experts: int,
    width: int,
    chosen: int,
    balance: float = 0.001,
    always_normed: bool = False,
) -> "ModelShape":
    """The shape with experts that are weighted as `norm_topk_prob` says.

    Args:
        experts: of a layer.
        width: inside one expert.
        chosen, balance: transformers' defaults of `num_experts_per_tok` and `router_aux_loss_coef`.
        always_normed: whether transformers does not read `norm_topk_prob`, and computes as if it were true.
    """
    chosen = read_chosen(fields, experts, chosen)
    if always_normed:
        fields.require("norm_topk_prob", [True], True)
    normed = always_normed or fields.boolean("norm_topk_prob", False)
    if normed and chosen == 1:
        # Megatron-Core has no way to give one chosen expert the whole weight.
        rule = "with one expert per token its weight would always be 1."
        if always_normed:
            fields.fault("num_experts_per_tok", chosen, rule, "Use another model.")
        else:
            fields.fault("norm_topk_prob", True, rule, "Set it to false, or use another model.")
    fields.take("output_router_logits")  # what transformers returns beside the logits
    return replace(
        shape,
        experts=experts,
        experts_per_token=chosen,
        expert_ffn_hidden=width,
        router_shares_sum_to_one=normed,
        router_balance=fields.not_negative("router_aux_loss_coef", balance),
    )


def read_chosen(fields: ConfigFields, experts: int, default: int | None) -> int:
    """`num_experts_per_tok`. Notes a fault where a token could not be sent to so many."""
    chosen = fields.integer("num_experts_per_tok", default)
    if chosen > experts:
        fields.fault("num_experts_per_tok", chosen, f"there are {experts} experts.", "Mend config.json.")
    return chosen


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What fixes a model's mathematics, whatever its weights. The defaults are those of a Llama."""

    family: str
    """`model_type` of the Hugging Face config."""
    layers: int
    """Transformer layers."""
    hidden: int
    """Width of the residual stream."""
    ffn_hidden: int
    """Width inside the MLP."""
    heads: int
    """Query heads."""
    query_groups: int
    """Key and value heads; each serves heads / query_groups query heads."""
    head_dim: int
    """Width of one head."""
    vocabulary: int
    """Rows of the embedding, as the Hugging Face folder has them (no padding)."""
    max_positions: int
    """Longest sequence that the model was made for, in tokens."""
    norm_epsilon: float
    """Added to the mean square (RMSNorm) or the variance (LayerNorm) before its root."""
    rope_base: float
    """Base of the rotary embedding's wavelengths (`rope_theta`)."""
    rope_scaling: RopeScaling | None = None
    """How the wavelengths were changed for longer sequences; None: they were not."""
    tied_embeddings: bool = False
    """Whether the output layer is the embedding."""
    normalization: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    """RMSNorm has a weight alone, LayerNorm a weight and a bias."""
    activation: Activation = "silu"
    """Inside the MLP."""
    gated_mlp: bool = True
    """Whether the MLP multiplies its activation with a second projection (arXiv:2002.05202)."""
    query_key_value_bias: bool = False
    """Whether the projections to queries, keys and values add a bias."""
    attention_output_bias: bool = False
    """Whether the projection of attention's output adds a bias."""
    mlp_bias: bool = False
    """Whether the projections of the MLP, or of experts and their router, add a bias."""
    gate_limit: float | None = None
    """None, or the largest number of the gate, and of what it multiplies in size."""
    gated_offset: float = 0.0
    """What is added to what the gate multiplies."""
    query_key_norm: bool = False
    """Whether each head's query and key pass a norm of their own before rotation (arXiv:2302.05442)."""
    all_heads_norm: bool = False
    """Whether all heads' queries, and all heads' keys, pass one norm together before rotation."""
    pre_norm: bool = True
    """Whether attention and MLP read a normed input."""
    post_norm: bool = False
    """Whether what attention and MLP give is normed before it is added to the residual stream."""
    zero_centered_norms: bool = False
    """Whether norms multiply by 1 + their weight."""
    attention_scale: float | None = None
    """Factor of the attention scores; None: the root of head_dim, inverted."""
    attention_sinks: bool = False
    """Whether each head has a learnt score that takes part in its softmax and belongs to no token
    (arXiv:2309.17453, section 3.3)."""
    attention_soft_cap: float | None = None
    """None, or c of c * tanh(score / c)."""
    logit_soft_cap: float | None = None
    """None, or c of c * tanh(logit / c)."""
    logit_divisor: float = 1.0
    """What the logits are divided by."""
    embedding_scale: float = 1.0
    """Factor of the embeddings as the first layer reads them."""
    residual_scale: float = 1.0
    """Factor of what attention and MLP add to the residual stream."""
    query_key_l2_norm: bool = False
    """Whether each head's query and key are divided by their root mean square, without a weight, in layers with rotary
    positions."""
    temperature_beta: float = 0.0
    """b of 1 + b ln(1 + floor(position / temperature_positions)), the factor of queries after their rotation; 0: it is
    always 1."""
    temperature_positions: int = 1
    """Positions from which on it grows, once more for each further so many."""
    temperature_first: int = 0
    """The position of the first token, for this."""
    temperature_layers: frozenset[int] | None = None
    """Layers, counted from 0, whose queries have this factor; None: all."""
    local_window: int | None = None
    """Tokens that a position sees in a local layer, itself included."""
    local_chunk: int | None = None
    """Tokens of each part of a sequence, or of a document where they are apart, within which a position of a local
    layer sees itself and those before it; None: it sees those of a window."""
    local_layers: frozenset[int] = frozenset()
    """The local layers, counted from 0."""
    local_rope_base: float | None = None
    """Base of the rotary embedding in local layers, whose wavelengths are never rescaled; None: that of the others."""
    rotary_share: float = 1.0
    """Part of each head's width that the rotary embedding turns; the rest passes unturned."""
    rotary_interleaved: bool = False
    """Whether neighbouring dimensions are turned together, or each with the one half a head away."""
    unturned_layers: frozenset[int] = frozenset()
    """Layers, counted from 0, without rotary positions (NoPE, arXiv:2501.18795)."""
    key_value_latent: int = 0
    """Width of the latent vector from which keys and values come (MLA, arXiv:2405.04434, section 2.1); 0: from hidden
    states."""
    query_latent: int = 0
    """Width of that from which queries come; 0: from hidden states."""
    value_head_dim: int = 0
    """Width of one value head; 0: head_dim."""
    shared_key_dim: int = 0
    """Dimensions at the end of each key that are the same in all heads and turned by their position; 0: none."""
    attention_gate: bool = False
    """Whether what each head gives is multiplied by the sigmoid of a projection (arXiv:2505.06708)."""
    delta_layers: frozenset[int] = frozenset()
    """Layers, counted from 0, that have a gated delta net in the place of attention (arXiv:2412.06464)."""
    delta_key_heads: int = 0
    """Query heads of a delta net, and key heads; each serves delta_value_heads / delta_key_heads value heads."""
    delta_value_heads: int = 0
    """Its value heads, each with a state of its own."""
    delta_key_dim: int = 0
    """Width of one of its queries and keys."""
    delta_value_dim: int = 0
    """Width of one of its values."""
    delta_kernel: int = 0
    """Tokens that its convolution sees, the last one itself."""
    parallel_residual: bool = False
    """Whether attention and MLP both read the layer's input and are added to it together."""
    experts: int = 0
    """Experts of a layer that routes each token to a few of them (arXiv:2101.03961); 0: every MLP is dense."""
    experts_per_token: int = 0
    """Experts that a token is sent to."""
    expert_ffn_hidden: int = 0
    """Width inside one expert."""
    shared_expert_ffn_hidden: int = 0
    """Width inside the expert that every token is sent to; 0: there is none."""
    shared_expert_gate: bool = False
    """Whether a gate of its own weighs that expert."""
    dense_layers: frozenset[int] = frozenset()
    """Layers, counted from 0, whose MLP is dense although the others have experts."""
    router_shares_sum_to_one: bool = True
    """Whether the chosen experts are weighted among themselves, or by their share among all experts."""
    router_balance: float = 0.0
    """Weight of the loss that keeps experts equally busy in training, as config.json states it."""
    router_balance_in_sequences: bool = False
    """Whether that loss is of each sequence by itself, and not of all of a micro batch."""
    router_score: Literal["softmax", "sigmoid"] = "softmax"
    """What gives the shares of the experts from the router's logits."""
    router_bias: bool = False
    """Whether a bias, which no gradient changes, is added to the shares where experts are chosen (arXiv:2408.15664)."""
    router_scale: float = 1.0
    """Factor of the chosen experts' shares."""
    router_scales_inputs: bool = False
    """Whether the share of an expert multiplies what it reads, or what it gives."""
    router_groups: int = 1
    """Equal parts of the experts, of which a token is sent to experts of some (arXiv:2405.04434, section 2.2.2)."""
    router_groups_chosen: int = 1
    """How many of these parts."""

    @property
    def query_width(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.query_groups * self.head_dim

    @property
    def query_key_value_width(self) -> int:
        """Width of all query, key and value heads."""
        return self.query_width + 2 * self.key_value_width

    @property
    def query_and_gate_width(self) -> int:
        """Width of all query heads, and of the gates of what they give."""
        return 2 * self.query_width

    @property
    def delta_key_width(self) -> int:
        """Width of all query heads of a delta net, and of all its key heads."""
        return self.delta_key_heads * self.delta_key_dim

    @property
    def delta_value_width(self) -> int:
        """Width of all value heads of a delta net."""
        return self.delta_value_heads * self.delta_value_dim

    @property
    def delta_convolved_width(self) -> int:
        """Width of its queries, keys and values."""
        return 2 * self.delta_key_width + self.delta_value_width

    @property
    def delta_gated_width(self) -> int:
        """Width of its queries, keys, values and gates."""
        return self.delta_convolved_width + self.delta_value_width

    @property
    def delta_rates(self) -> int:
        """Its betas and alphas, one of each for a value head."""
        return 2 * self.delta_value_heads

    @property
    def query_key_value_bias_alone(self) -> bool:
        """Whether the projections to queries, keys and values add a bias, and those of the MLP do not."""
        return self.query_key_value_bias and not self.mlp_bias

    @property
    def softmax_type(self) -> str:
        """Megatron-Core's name of the softmax of attention's scores."""
        return "learnable" if self.attention_sinks else "vanilla"

    @property
    def squared_relu(self) -> bool:
        """Whether the MLP's activation is the square of ReLU."""
        return self.activation == "relu2"

    @property
    def one(self) -> int:
        """The size of a parameter that is one number."""
        return 1

    @property
    def gate_and_up(self) -> int:
        """Rows of the gate and of up together."""
        return 2 * self.ffn_hidden

    @property
    def turned_width(self) -> int:
        """Dimensions of a head that the rotary embedding turns."""
        return self.shared_key_dim or int(self.head_dim * self.rotary_share)

    @property
    def own_key_dim(self) -> int:
        """Dimensions of each key that are its head's own."""
        return self.head_dim - self.shared_key_dim

    @property
    def latent_attention(self) -> bool:
        """Whether keys and values come from a latent vector."""
        return self.key_value_latent > 0

    @property
    def value_width(self) -> int:
        """Width of what all query heads give."""
        return self.heads * (self.value_head_dim or self.head_dim)

    @property
    def latent_and_shared_key(self) -> int:
        """Width of the latent vector of keys and values, and of what all keys share."""
        return self.key_value_latent + self.shared_key_dim

    @property
    def own_key_and_value_width(self) -> int:
        """Width of what heads have of their own of all keys, and of all values."""
        return self.heads * self.own_key_dim + self.value_width

    @property
    def turned_factor(self) -> float:
        """Factor of what is turned of queries and of keys."""
        scaling = self.rope_scaling
        return scaling.attention_factor if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0

    @property
    def has_engine_layers(self) -> bool:
        """Whether Transformer Engine's layers have all parts of this model's; they have windows."""
        own_norms = self.post_norm or self.all_heads_norm or self.zero_centered_norms
        own_attention = (self.attention_soft_cap is not None or self.temperature_beta or self.latent_attention) or (
            self.attention_sinks or self.attention_gate or self.delta_layers or self.local_chunk
        )
        return not own_norms and not own_attention

    @property
    def local_reach(self) -> int | None:
        """Tokens that a position of a local layer sees at most, itself included; None: there are no local layers."""
        return (self.local_chunk or self.local_window) if self.local_layers else None

    def sharpens(self, layer: int) -> bool:
        """Whether the queries of a layer have a factor of their position."""
        return self.temperature_beta > 0 and (self.temperature_layers is None or layer in self.temperature_layers)

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers that have experts, counted from 0."""
        return tuple(layer for layer in range(self.layers) if self.experts and layer not in self.dense_layers)


@dataclass(frozen=True)
class Family:
    """One model family."""

    model_type: str
    """`model_type` in config.json."""
    read: Callable[[ConfigFields], ModelShape]
    """Takes the fields of config.json that it understands and notes a fault for each it cannot honour."""
    weights: Callable[[ModelShape], tuple[Rule, ...]]
    """The name table of a model of this shape; `{layer}` stands for the global number of a layer."""
    ignored_tensors: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that some folders hold and that the model computes or ties."""
    stacks: tuple[Stack, ...] = ()
    """The tensors of its folders that may hold what all experts of a layer have."""

    @property
    def has_mxfp4(self) -> bool:
        """Whether there are releases in MXFP4: rows of gate and up alternate in them."""
        return any(stack.alternate for stack in self.stacks)
