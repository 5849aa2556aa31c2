"""How large a model is: parameters, FLOPs of a token, memory of a rank, all from the name table."""

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


def parameter_count(shape: ModelShape) -> int:
    """Parameters as transformers counts them, all experts among them; a tied output layer counts once.

    For a Llama with width h, vocabulary V, query width q, key-value width k, MLP width f and L layers:
    V h (2 V h untied) + L (h (q + 2 k) + q h + 3 h f + 2 h) + h.
    """
    return sum(_parameters(rule, shape) * _copies(rule, shape) for rule in _rules(shape) if rule.exported)


def active_parameter_count(shape: ModelShape) -> int:
    """Parameters that one token meets: of the experts of a layer, those that it is sent to."""
    return sum(_parameters(rule, shape) * _active_copies(rule, shape) for rule in _rules(shape) if rule.exported)


def non_embedding_parameter_count(shape: ModelShape) -> int:
    """Parameters without embedding and output layer, the N of arXiv:2001.08361, section 2.1."""
    return sum(
        _parameters(rule, shape) * _copies(rule, shape)
        for rule in _rules(shape)
        if not isinstance(rule, VocabularyParallel)
    )


def flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """Floating-point operations of one training token, forward and backward.

    6 per weight of every matrix that multiplies a token (the output layer does, the embedding and experts
    that it is not sent to do not), plus 6 L q s for attention, with L layers, query width q and sequence
    length s: scores and values take 2 x 2 q s a layer, backward twice that again, and causality halves it all.
    """
    matrices = sum(
        _parameters(rule, shape) * _active_copies(rule, shape)
        for rule in _rules(shape)
        if len(rule.tensors[0].size) > 1 and rule.names != _embedding(shape).names
    )
    return 6.0 * matrices + 6.0 * shape.layers * shape.query_width * sequence_length


def memory_per_rank(shape: ModelShape, config: RunConfig, world_size: int) -> MemoryEstimate:
    """Memory of the fullest pipeline stage's first tensor-parallel rank.

    With P the rank's parameters, w bytes a weight and D data-parallel ranks: w P for weights, 4 P for
    gradients, 8 P for moments and 4 P for main parameters (bf16 alone), the last two divided by D with
    the distributed optimizer (arXiv:1910.02054). Activations: activation_bytes.
    """
    replicas = max(world_size // (config.parallel.tensor * config.parallel.pipeline), 1)
    weight = BYTES[config.training.precision]
    shards = replicas if config.parallel.distributed_optimizer else 1
    main_parameters = 4 if config.training.precision == "bf16" else 0

    def stage_memory(stage: int) -> MemoryEstimate:
        parameters = _stage_parameters(shape, config, stage)
        return MemoryEstimate(
            parameters=weight * parameters,
            gradients=4 * parameters,
            optimizer=-(-(8 + main_parameters) * parameters // shards),
            activations=activation_bytes(shape, config, stage, replicas),
        )

    return max(map(stage_memory, range(config.parallel.pipeline)), key=lambda memory: memory.total)


def activation_bytes(shape: ModelShape, config: RunConfig, stage: int, replicas: int) -> int:
    """Bytes that a stage keeps for the backward pass, at its fullest.

    After arXiv:2205.05198, section 4, for attention that keeps no scores. For each token and layer, times
    the bytes of a weight: 4 h (inputs and outputs of both norms) + (3 q + 3 k)/t (query and key before and
    after rotation, value, attention's output) + 4 f/t (gate, up, their activation and product; without a
    gate 2 f/t), with t tensor-parallel ranks; h alone with full recomputation. Of k experts for a token, each
    keeps 4 f/t of its own f, and its input and output. Stage i of p holds the
    micro batches of p - i steps at once (1F1B); the last adds logits and their fp32 softmax.
    """
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    weight = BYTES[config.training.precision]
    micro_batches = max(config.training.global_batch_size // (config.training.micro_batch_size * replicas), 1)
    tokens = config.training.micro_batch_size * config.data.sequence_length
    divided = 3 * shape.query_width + 3 * shape.key_value_width + (4 if shape.gated_mlp else 2) * shape.ffn_hidden
    layer = 4 * shape.hidden + -(-divided // tensor)
    if shape.experts:
        # A token's copies for its experts stand beside what they compute; layers without experts keep less.
        chosen = shape.experts_per_token
        divided = 3 * shape.query_width + 3 * shape.key_value_width + 4 * chosen * shape.expert_ffn_hidden
        layer = (4 + 2 * chosen) * shape.hidden + -(-divided // tensor)
    if config.megatron.transformer.get("recompute_granularity") == "full":
        layer = shape.hidden
    in_flight = min(pipeline - stage, micro_batches)
    kept = in_flight * (shape.layers // pipeline) * layer * weight
    logits = -(-shape.vocabulary // tensor) * (weight + 4) if stage == pipeline - 1 else 0
    return tokens * (kept + logits)


def _stage_parameters(shape: ModelShape, config: RunConfig, stage: int) -> int:
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    first, last = stage == 0, stage == pipeline - 1
    layers = range(stage * shape.layers // pipeline, (stage + 1) * shape.layers // pipeline)

    def copies(rule: Rule) -> int:
        if rule.of_layer:
            return sum(place.layer in layers for place in places(rule, shape))
        if rule.names == _embedding(shape).names:
            return int(first)
        # A tied output layer is a copy of its own where the embedding is on another stage.
        return int(last and (rule.exported or not first))

    return sum(prod(local_size(rule, shape, 0, tensor)) * copies(rule) for rule in _rules(shape))


def _rules(shape: ModelShape) -> Iterator[Rule]:
    return iter(family_of(shape).weights(shape))


def _embedding(shape: ModelShape) -> Rule:
    return next(rule for rule in _rules(shape) if isinstance(rule, VocabularyParallel))


def _copies(rule: Rule, shape: ModelShape) -> int:
    return len(places(rule, shape))


def _active_copies(rule: Rule, shape: ModelShape) -> int:
    copies = _copies(rule, shape)
    return copies // shape.experts * shape.experts_per_token if rule.of_expert else copies


def _parameters(rule: Rule, shape: ModelShape) -> int:
    return sum(prod(tensor_size(tensor, shape)) for tensor in rule.tensors)
