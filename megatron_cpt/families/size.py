"""How large a model is: parameters, FLOPs per token, and memory of a rank in training."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from megatron_cpt.config.schema import RunConfig
from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import family_of
from megatron_cpt.families.weights import Rule, VocabularyParallel, local_size, places, tensor_size

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
    """Memory of the fullest pipeline stage's first tensor-parallel rank.

    With P the rank's parameters, w bytes a weight and D data-parallel ranks: w P for weights, 4 P for
    gradients, 8 P for moments and 4 P for main parameters (bf16 alone), the last two divided by D with
    the distributed optimizer (arXiv:1910.02054), those of experts by D over the expert-parallel size.
    Activations: activation_bytes.
    """
    parallel = config.parallel
    sharing = max(world_size // (parallel.tensor * parallel.pipeline), 1)  # ranks of data and context parallel
    weight = BYTES[config.training.precision]
    state = 12 if config.training.precision == "bf16" else 8

    def stage_memory(stage: int) -> MemoryEstimate:
        dense, experts = _stage_parameters(shape, config, stage)
        shards = sharing if parallel.distributed_optimizer else 1
        expert_shards = max(sharing // parallel.expert, 1) if parallel.distributed_optimizer else 1
        return MemoryEstimate(
            parameters=weight * (dense + experts),
            gradients=4 * (dense + experts),
            optimizer=-(-state * dense // shards) + -(-state * experts // expert_shards),
            activations=activation_bytes(shape, config, stage, max(sharing // parallel.context, 1)),
        )

    return max(map(stage_memory, range(config.parallel.pipeline)), key=lambda memory: memory.total)


def activation_bytes(shape: ModelShape, config: RunConfig, stage: int, replicas: int) -> int:
    """Bytes that a stage keeps for the backward pass, at its fullest.

    The layers' (layer_width) for each chunk in flight (chunks_in_flight), and, on the last stage, logits and
    their fp32 softmax of one micro batch, for the z-loss an fp32 copy of the logits too.
    """
    parallel = config.parallel
    weight = BYTES[config.training.precision]
    micro_batches = max(config.training.global_batch_size // (config.training.micro_batch_size * replicas), 1)
    tokens = config.training.micro_batch_size * config.data.sequence_length // parallel.context
    layers_of_chunk = shape.layers // (parallel.pipeline * parallel.virtual_pipeline)
    kept = chunks_in_flight(config, stage, micro_batches) * layers_of_chunk * _layer_width(shape, config) * weight
    fp32_copies = 8 if config.training.z_loss else 4
    logits = -(-shape.vocabulary // parallel.tensor) * (weight + fp32_copies) if stage == parallel.pipeline - 1 else 0
    return tokens * (kept + logits)


def _layer_width(shape: ModelShape, config: RunConfig) -> int:
    """Numbers that a layer keeps of each token for the backward pass.

    After arXiv:2205.05198, section 4, for attention that keeps no scores: 4 h (inputs and outputs of both
    norms), divided by the t tensor-parallel ranks where sequences are; (4 q + 4 k)/t (query and key before and
    after rotation, and with their halves turned; value, attention's output); and 4 f/t (gate, up, their
    activation and product; without a gate 2 f/t). Of k experts for a token each keeps 4 f/t of its own f, and
    its input and output. Recomputation leaves out the MLP or the experts, or all but the layer's input.
    """
    tensor, recompute = config.parallel.tensor, config.training.recompute
    sequence = tensor if config.parallel.sequence else 1
    attention = -(-4 * (shape.query_width + shape.key_value_width) // tensor)
    norms = -(-4 * shape.hidden // sequence)
    if recompute == "full":
        return -(-shape.hidden // sequence)
    if recompute == "selective" and not shape.parallel_residual:
        return norms + attention
    if shape.experts:  # layers without experts keep less
        chosen = shape.experts_per_token
        copies = -(-2 * chosen * shape.hidden // sequence)
        return norms + attention + copies + -(-4 * chosen * shape.expert_ffn_hidden // tensor)
    return norms + attention + -(-(4 if shape.gated_mlp else 2) * shape.ffn_hidden // tensor)


def chunks_in_flight(config: RunConfig, stage: int, micro_batches: int) -> int:
    """Chunks of layers whose forward pass a stage has done and whose backward pass it has not, at most.

    Stage i of p holds p - i micro batches (1F1B). With v chunks a stage, interleaved, it runs ahead by
    2 (p - i - 1) + (v - 1) p chunks (arXiv:2104.04473, section 2.2).
    """
    pipeline, virtual = config.parallel.pipeline, config.parallel.virtual_pipeline
    ahead = pipeline - stage if virtual == 1 else 2 * (pipeline - stage - 1) + (virtual - 1) * pipeline + 1
    return min(ahead, virtual * micro_batches)


def _stage_parameters(shape: ModelShape, config: RunConfig, stage: int) -> tuple[int, int]:
    """Parameters of the first tensor-parallel rank of a stage: those of no expert, and those of its experts."""
    tensor, pipeline, virtual = config.parallel.tensor, config.parallel.pipeline, config.parallel.virtual_pipeline
    first, last = stage == 0, stage == pipeline - 1
    of_chunk = max(shape.layers // (pipeline * virtual), 1)
    layers = {layer for layer in range(shape.layers) if layer // of_chunk % pipeline == stage}

    def copies(rule: Rule) -> int:
        if rule.of_layer:
            return sum(place.layer in layers for place in places(rule, shape))
        if rule.names == _embedding_rule(shape).names:
            return int(first)
        # A tied output layer is a copy of its own where the embedding is on another stage.
        return int(last and (rule.exported or not first))

    def count(of_expert: bool) -> int:
        rules = [rule for rule in _weight_rules(shape) if rule.of_expert == of_expert]
        return sum(prod(local_size(rule, shape, 0, tensor)) * copies(rule) for rule in rules)

    return count(of_expert=False), count(of_expert=True) // config.parallel.expert


def parameter_count(shape: ModelShape) -> int:
    """Parameters as transformers counts them, all experts among them; a tied output layer counts once.

    For a Llama with width h, vocabulary V, query width q, key-value width k, MLP width f and L layers:
    V h (2 V h untied) + L (h (q + 2 k) + q h + 3 h f + 2 h) + h.
    """
    return sum(_parameters(rule, shape) * _copies(rule, shape) for rule in _weight_rules(shape) if rule.exported)


def active_parameter_count(shape: ModelShape) -> int:
    """Parameters that one token meets: of the experts of a layer, those that it is sent to."""
    return sum(_parameters(rule, shape) * _active_copies(rule, shape) for rule in _weight_rules(shape) if rule.exported)


def non_embedding_parameter_count(shape: ModelShape) -> int:
    """Parameters without embedding and output layer, the N of arXiv:2001.08361, section 2.1."""
    return sum(
        _parameters(rule, shape) * _copies(rule, shape)
        for rule in _weight_rules(shape)
        if not isinstance(rule, VocabularyParallel)
    )


def flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """Floating-point operations of one training token, forward and backward.

    6 per weight of every matrix that multiplies a token (the output layer does, the embedding and experts
    that it is not sent to do not), plus 12 q for each key that a query sees, with query width q: scores and values
    take 2 x 2 q, backward twice that again. Of s tokens a query sees s / 2 in the mean, and w - w^2 / 2 s in a layer
    with a window of w.
    """
    matrices = sum(
        _parameters(rule, shape) * _active_copies(rule, shape)
        for rule in _weight_rules(shape)
        if len(rule.tensors[0].size) > 1 and rule.names != _embedding_rule(shape).names
    )
    window = min(shape.local_window or sequence_length, sequence_length)
    local, whole = len(shape.local_layers), shape.layers - len(shape.local_layers)
    keys = whole * sequence_length / 2 + local * (window - window**2 / (2 * sequence_length))
    return 6.0 * matrices + 12.0 * shape.query_width * keys


def _weight_rules(shape: ModelShape) -> Iterator[Rule]:
    """The name table of a model."""
    return iter(family_of(shape).weights(shape))


def _embedding_rule(shape: ModelShape) -> Rule:
    """The rule of the embedding."""
    return next(rule for rule in _weight_rules(shape) if isinstance(rule, VocabularyParallel))


def _copies(rule: Rule, shape: ModelShape) -> int:
    return len(places(rule, shape))


def _active_copies(rule: Rule, shape: ModelShape) -> int:
    copies = _copies(rule, shape)
    return copies // shape.experts * shape.experts_per_token if rule.of_expert else copies


def _parameters(rule: Rule, shape: ModelShape) -> int:
    return sum(prod(tensor_size(tensor, shape)) for tensor in rule.tensors)
