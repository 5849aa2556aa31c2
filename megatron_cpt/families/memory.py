"""Memory of a rank in training, in closed form."""

from dataclasses import dataclass, replace
from math import prod

from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.size import embedding_rule, weight_rules
from megatron_cpt.families.weights import Rule, local_size, places

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the fullest rank during training, without the allocator's and the kernels' own."""

    parameters: int
    """Weights in the precision of the forward pass."""
    gradients: int
    """Gradients, summed over micro batches in fp32."""
    optimizer: int
    """Two fp32 moments, and fp32 main parameters where the weights are bf16."""
    activations: int
    """Saved for the backward pass by the micro batches in flight, and the logits."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.gradients + self.optimizer + self.activations


def memory_per_rank(shape: ModelShape, config: RunConfig, world_size: int) -> MemoryEstimate:
    """Memory of the fullest pipeline stage's first tensor-parallel rank."""
    return max(stage_memories(shape, config, world_size), key=lambda memory: memory.total)


def stage_memories(shape: ModelShape, config: RunConfig, world_size: int) -> list[MemoryEstimate]:
    """Memory of the first tensor-parallel rank of each pipeline stage.

    With P the rank's parameters, w bytes a weight and D data-parallel ranks: w P for weights, 4 P for
    gradients, 8 P for moments and 4 P for main parameters (bf16 alone), the last two divided by D with
    the distributed optimizer (arXiv:1910.02054), those of experts by D over the expert-parallel size.
    Activations: _activation_bytes.
    """
    parallel = config.parallel
    sharing = max(world_size // (parallel.tensor * parallel.pipeline), 1)  # ranks of data and context parallel
    weight = BYTES[config.training.precision]
    state = 12 if config.training.precision == "bf16" else 8

    def stage_memory(stage: int) -> MemoryEstimate:
        dense, experts = stage_parameters(shape, config, stage)
        shards = sharing if parallel.distributed_optimizer else 1
        expert_shards = max(sharing // parallel.expert, 1) if parallel.distributed_optimizer else 1
        return MemoryEstimate(
            parameters=weight * (dense + experts),
            gradients=4 * (dense + experts),
            optimizer=-(-state * dense // shards) + -(-state * experts // expert_shards),
            activations=_activation_bytes(shape, config, stage, max(sharing // parallel.context, 1)),
        )

    return [stage_memory(stage) for stage in range(parallel.pipeline)]


def _activation_bytes(shape: ModelShape, config: RunConfig, stage: int, replicas: int) -> int:
    """Bytes of activations on a stage, at its fullest.

    What its layers keep (layer_bytes) for each chunk in flight (chunks_in_flight), and the larger of two: what the last
    stage needs between its layers and the loss (_loss_bytes), or what a layer needs in its backward pass, which with
    recomputation computes it again.
    """
    parallel, training = config.parallel, config.training
    weight = BYTES[training.precision]
    micro_batches = max(training.global_batch_size // (training.micro_batch_size * replicas), 1)
    tokens = training.micro_batch_size * config.data.sequence_length // parallel.context
    stages, chunks = parallel.pipeline, parallel.virtual_pipeline
    of_chunk = max(shape.layers // (stages * chunks), 1)
    held = [layer for layer in range(shape.layers) if layer // of_chunk % stages == stage]
    kept = {layer: layer_bytes(shape, config, layer) for layer in held}
    in_flight = chunks_in_flight(config, stage, micro_batches)
    of_layers = in_flight * sum(kept.values()) / chunks
    if stages > 1:  # what is sent on stays until its gradient is there; one more is on its way
        sequence = parallel.tensor if parallel.sequence else 1
        of_layers += (in_flight + 1) * weight * shape.hidden / sequence
    whole = replace(config, training=replace(training, recompute="none"))
    again = max(layer_bytes(shape, whole, layer) - kept[layer] for layer in held)
    working = again + max(_backward_bytes(shape, config, layer) for layer in held)
    # A matrix's gradient in the precision of the weights, before it is added to its buffer.
    dense = shape.ffn_hidden if len(shape.sparse_layers) < shape.layers else 0
    widest = max(dense, shape.expert_ffn_hidden, shape.shared_expert_ffn_hidden)
    most_wide = max(shape.query_width, shape.delta_gated_width, (2 if shape.gated_mlp else 1) * widest)
    of_layer = tokens * working + weight * shape.hidden * most_wide // parallel.tensor
    of_loss = _loss_bytes(shape, config, tokens) if stage == stages - 1 else 0
    return round(tokens * of_layers + max(of_layer, of_loss))


def layer_bytes(shape: ModelShape, config: RunConfig, layer: int) -> float:
    """Bytes that a layer keeps of each token for the backward pass.

    After arXiv:2205.05198, section 4, as the modules of model/layers.py have it, which `plan --simulate` shows line by
    line. With t tensor-parallel ranks, what all of them would hold alike is divided by t where sequences are.
    """
    recompute = config.training.recompute
    sequence = config.parallel.tensor if config.parallel.sequence else 1
    if recompute == "full":
        return BYTES[config.training.precision] * shape.hidden / sequence
    kept = _norm_bytes(shape, config) + _attention_bytes(shape, config, layer)
    if recompute == "selective" and not shape.parallel_residual:
        return kept
    return kept + _mlp_bytes(shape, config, layer)


def _norm_bytes(shape: ModelShape, config: RunConfig) -> float:
    """Inputs and outputs of the norms of a layer, and of the matrices that read them."""
    weight = BYTES[config.training.precision]
    share = shape.hidden / (config.parallel.tensor if config.parallel.sequence else 1)
    if shape.parallel_residual:
        return 3 * weight * share
    before, after = 2 * shape.pre_norm, 2 * shape.post_norm
    if _in_fp32(shape):  # before and after the division; its input is kept by nobody
        return share * (8 * (before + after) + weight * before)
    return share * weight * (2 + before + after)


def _in_fp32(shape: ModelShape) -> bool:
    """Whether norms are computed in fp32, step by step, where others are one kernel."""
    return shape.zero_centered_norms and shape.normalization == "RMSNorm"


def _attention_bytes(shape: ModelShape, config: RunConfig, layer: int) -> float:
    """Queries, keys and values as projected and as rotated, the angles, the output, and what its kernel keeps."""
    weight, parallel, length = BYTES[config.training.precision], config.parallel, config.data.sequence_length
    if layer in shape.delta_layers:  # what its projections give and read; the rest is computed again
        return weight * (shape.delta_gated_width + shape.delta_rates + shape.delta_value_width) / parallel.tensor
    if shape.latent_attention:
        return _latent_attention_bytes(shape, config)
    query, key = shape.query_width, shape.key_value_width
    turned = 4 * weight * shape.head_dim * shape.rotary_share
    normed = _normed_bytes(shape, weight, layer)
    if shape.attention_soft_cap is not None:
        # Rotated queries, keys and values repeated for each, output; and the scores of blocks of queries.
        seen = length if length <= SCORED_AT_ONCE else (length + SCORED_AT_ONCE) / 2
        score = 4 + weight + (weight if shape.attention_soft_cap is not None else 0)
        return (4 * weight * query + normed + shape.heads * seen * score) / parallel.tensor + seen + turned
    kept = float(weight * (3 * query + 3 * key) + normed + 4 * shape.heads)
    if shape.attention_sinks:
        kept = _bytes_with_sinks(shape, config, layer)
    elif parallel.context > 1:  # of keys and values those of all ranks; the outputs of two parts
        kept += weight * (2 * key * parallel.context - 3 * key)
    elif layer in shape.local_layers and (shape.local_reach or length) < length:
        kept += weight * query  # the outputs of blocks, or of chunks
    if shape.attention_gate:  # as projected, its sigmoid in fp32, and the product
        kept += (2 * weight + 4) * query
    return kept / parallel.tensor + turned


def _normed_bytes(shape: ModelShape, weight: int, layer: int) -> float:
    """What the norms of queries and keys keep.

    Args:
        weight: bytes of a number.
    """
    query, key = shape.query_width, shape.key_value_width
    if shape.all_heads_norm or (shape.query_key_norm and shape.zero_centered_norms):
        return 8 * (query + key)  # in fp32, before and after the division
    without_weight = shape.query_key_l2_norm and layer not in shape.unturned_layers
    if without_weight and weight < 4:
        return 4 * (query + key)  # in fp32, before the division
    return weight * query if (shape.query_key_norm or without_weight) and query > key else 0


def _bytes_with_sinks(shape: ModelShape, config: RunConfig, layer: int) -> float:
    """Copies of queries, keys and values with two more dimensions, what the kernel gives, and the output."""
    weight, length = BYTES[config.training.precision], config.data.sequence_length
    wider, copies = 1 + 2 / shape.head_dim, 1.0
    if config.parallel.context > 1:
        copies = config.parallel.context
    elif layer in shape.local_layers and shape.local_window is not None and shape.local_window < length:
        block = min(max(shape.local_window, SMALLEST_BLOCK), LARGEST_BLOCK)  # each has the keys of a window before it
        copies = (block + min(shape.local_window, length - block)) / block
    keys = 2 * shape.key_value_width * copies
    return weight * (wider * (2 * shape.query_width + keys) + shape.query_width) + 4 * shape.heads


def _latent_attention_bytes(shape: ModelShape, config: RunConfig) -> float:
    """Latent vectors before and after their norms, queries, keys and values as they are scored, output and angles."""
    weight, parallel = BYTES[config.training.precision], config.parallel
    sequence = parallel.tensor if parallel.sequence else 1
    latent = 2 * (shape.query_latent + shape.key_value_latent) + shape.shared_key_dim
    # Values as wide as keys, and so what is made of them; keys and values of all ranks.
    scored = 2 * shape.query_width * (1 + parallel.context) + shape.value_width
    heads = weight * scored + 4 * shape.heads
    return heads / parallel.tensor + weight * (latent / sequence + 4 * shape.shared_key_dim)


SCORED_AT_ONCE = 1024
"""Queries whose scores stand in memory at once where no kernel computes them (model/attention.py)."""
SMALLEST_BLOCK, LARGEST_BLOCK = 128, 1024
"""Bounds of the queries of a block in a layer with a window, as many as the window has tokens (model/attention.py)."""


def _mlp_bytes(shape: ModelShape, config: RunConfig, layer: int) -> float:
    """What MLP or experts keep, their input apart.

    A gate by SiLU is one kernel: it keeps what it reads, 2 f, and the next matrix its output. Any other keeps both
    halves, the activation and what it multiplies, and the output. Without a gate it is the input of the activation and
    its output. k experts for a token keep its k copies beside this, and where shares multiply these, the products; the
    router keeps its scores and masks.
    """
    weight, tensor = BYTES[config.training.precision], config.parallel.tensor
    if layer not in shape.sparse_layers:
        widths = (3 if shape.activation == "silu" else 5) if shape.gated_mlp else 2
        return weight * widths * shape.ffn_hidden / tensor
    chosen, sequence = shape.experts_per_token, tensor if config.parallel.sequence else 1
    routing = 20 * shape.experts + 24 * chosen
    copies = 2 if shape.router_scales_inputs else 1
    kept = weight * chosen * (copies * shape.hidden + 3 * shape.expert_ffn_hidden / tensor) + routing / sequence
    kept += weight * 3 * shape.shared_expert_ffn_hidden / tensor
    if shape.shared_expert_gate:  # what it computes, before its gate
        kept += weight * shape.hidden / sequence
    return kept


def _backward_bytes(shape: ModelShape, config: RunConfig, layer: int) -> float:
    """What the backward pass of a layer allocates at most of each token, beside what the layer keeps."""
    weight, parallel = BYTES[config.training.precision], config.parallel
    hidden = 2.0 * weight * shape.hidden
    if layer in shape.sparse_layers:
        of_mlp = hidden + weight * shape.experts_per_token * 2 * shape.hidden
        if parallel.tensor > 1:
            # When ranks sum what experts gave, it is there as given and in order, and in fp32 before the sum, as its
            # parts and as these end to end; and what this rank sent, as it left and, with others' experts, as it came.
            copies = 2 * weight + 2 * 4 + (4 if weight < 4 else 0)
            sent = weight * (1 if parallel.expert == 1 else 2) / parallel.tensor
            of_mlp = max(of_mlp, (copies + sent) * shape.experts_per_token * shape.hidden)
    else:
        of_mlp = hidden + weight * shape.ffn_hidden / parallel.tensor
    if layer not in shape.delta_layers:
        return of_mlp
    # When the inside of a delta net is computed again, what the MLP behind it kept is gone.
    return max(of_mlp, hidden + delta_bytes(shape) / parallel.tensor - _mlp_bytes(shape, config, layer))


def delta_bytes(shape: ModelShape) -> float:
    """What the inside of a gated delta net keeps of each token where it is computed again (model/gated_delta_net.py).

    In fp32: of a chunk's tokens with each other four matrices of each head and two of each key head, a chunk's state,
    and in ten steps values, in four the keys of all heads, in two all that is convolved.
    """
    pairs = DELTA_CHUNK * (4 * shape.delta_value_heads + 2 * shape.delta_key_heads)
    keys = shape.delta_value_heads * shape.delta_key_dim
    states = keys * shape.delta_value_dim / DELTA_CHUNK
    return 4 * (pairs + states + 10 * shape.delta_value_width + 4 * keys + 2 * shape.delta_convolved_width)


DELTA_CHUNK = 64
"""Tokens of a chunk of a gated delta net."""


def _loss_bytes(shape: ModelShape, config: RunConfig, tokens: int) -> float:
    """What the last stage keeps between its layers and the loss.

    The final norm's input and output, logits, and their softmax in fp32; a soft cap keeps its tanh, the z-loss an fp32
    copy of the logits and, backward, two more. Later the gradients of the logits stand beside that of the output layer.
    """
    weight, parallel = BYTES[config.training.precision], config.parallel
    share = shape.hidden / (parallel.tensor if parallel.sequence else 1)
    norm = share * (8 + weight if _in_fp32(shape) else 2 * weight)
    rows = -(-shape.vocabulary // parallel.tensor)
    logits = weight + 4 if config.training.precision == "bf16" else 4
    logits += weight if shape.logit_soft_cap is not None else 0
    logits += 12 if config.training.z_loss else 0
    of_logits = max(tokens * logits, weight * (tokens + shape.hidden)) * rows
    gathered = weight * shape.hidden * tokens if parallel.sequence else 0  # the whole input of the output layer
    return tokens * norm + of_logits + gathered


def chunks_in_flight(config: RunConfig, stage: int, micro_batches: int) -> int:
    """Chunks of layers whose forward pass a stage has done and whose backward pass it has not, at most.

    Stage i of p holds p - i micro batches (1F1B). With v chunks a stage, interleaved, it runs ahead by
    2 (p - i - 1) + (v - 1) p chunks (arXiv:2104.04473, section 2.2).
    """
    pipeline, virtual = config.parallel.pipeline, config.parallel.virtual_pipeline
    ahead = pipeline - stage if virtual == 1 else 2 * (pipeline - stage - 1) + (virtual - 1) * pipeline + 1
    return min(ahead, virtual * micro_batches)


def stage_parameters(shape: ModelShape, config: RunConfig, stage: int) -> tuple[int, int]:
    """Parameters of the first tensor-parallel rank of a stage: those of no expert, and those of its experts."""
    tensor, pipeline, virtual = config.parallel.tensor, config.parallel.pipeline, config.parallel.virtual_pipeline
    first, last = stage == 0, stage == pipeline - 1
    of_chunk = max(shape.layers // (pipeline * virtual), 1)
    layers = {layer for layer in range(shape.layers) if layer // of_chunk % pipeline == stage}

    def copies(rule: Rule) -> int:
        if rule.of_layer:
            return sum(place.layer in layers for place in places(rule, shape))
        if rule.names == embedding_rule(shape).names:
            return int(first)
        # A tied output layer is a copy of its own where the embedding is on another stage.
        return int(last and (rule.exported or not first))

    def count(of_expert: bool) -> int:
        rules = [rule for rule in weight_rules(shape) if rule.of_expert == of_expert and not rule.buffer]
        return sum(prod(local_size(rule, shape, 0, tensor)) * copies(rule) for rule in rules)

    return count(of_expert=False), count(of_expert=True) // config.parallel.expert
