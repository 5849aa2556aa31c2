"""How large a model is: parameters, and FLOPs per token."""

from collections.abc import Iterator
from math import prod

from megatron_cpt.families.family import ModelShape
from megatron_cpt.families.shape import family_of
from megatron_cpt.families.weights import Rule, VocabularyParallel, parameters_of, places, tensor_size


def parameter_count(shape: ModelShape) -> int:
    """Parameters as transformers counts them, all experts among them; a tied output layer counts once.

    For a Llama with width h, vocabulary V, query width q, key-value width k, MLP width f and L layers:
    V h (2 V h untied) + L (h (q + 2 k) + q h + 3 h f + 2 h) + h.
    """
    return sum(_parameters(rule, shape) * _copies(rule, shape) for rule in weight_rules(shape) if rule.exported)


def active_parameter_count(shape: ModelShape) -> int:
    """Parameters that one token meets: of the experts of a layer, those that it is sent to."""
    return sum(_parameters(rule, shape) * _active_copies(rule, shape) for rule in weight_rules(shape) if rule.exported)


def non_embedding_parameter_count(shape: ModelShape) -> int:
    """Parameters without embedding and output layer, the N of arXiv:2001.08361, section 2.1."""
    return sum(
        _parameters(rule, shape) * _copies(rule, shape)
        for rule in weight_rules(shape)
        if not isinstance(rule, VocabularyParallel)
    )


def flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """Floating-point operations of one training token, forward and backward.

    6 per weight of every matrix that multiplies a token (the output layer does, the embedding and experts
    that it is not sent to do not), plus 6 (q + v) for each key that a query sees, with the width q of all queries and v
    of what they give, mostly q too: scores and values take 2 q + 2 v, backward twice that again. Of s tokens a query
    sees s / 2 in the mean, w - w^2 / 2 s in a layer with a window of w, c / 2 in one with whole chunks of c. A gated
    delta net reads each head's state, of k v numbers, twice for a token, and adds to it once: 6 k v, backward twice
    that again.
    """
    matrices = _multiplying_parameters(shape)
    local = len(shape.local_layers)
    whole = shape.layers - local - len(shape.delta_layers)
    keys = whole * sequence_length / 2 + local * _keys_of_local_layer(shape, sequence_length)
    return 6.0 * matrices + 6.0 * (shape.query_width + shape.value_width) * keys + _state_flops(shape)


def _keys_of_local_layer(shape: ModelShape, sequence_length: int) -> float:
    """Keys that a query of a local layer sees, in the mean."""
    if shape.local_chunk is not None:
        chunks, rest = divmod(sequence_length, shape.local_chunk)
        return (chunks * shape.local_chunk**2 + rest**2) / (2 * sequence_length)
    window = min(shape.local_window or sequence_length, sequence_length)
    return window - window**2 / (2 * sequence_length)


def palm_flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """Those of a training token as MFU in PaLM's sense counts them (arXiv:2204.02311, appendix B).

    Every query is counted with every key, also with those after it and outside of its window.
    """
    widths, layers = shape.query_width + shape.value_width, shape.layers - len(shape.delta_layers)
    return 6.0 * _multiplying_parameters(shape) + 6.0 * widths * layers * sequence_length + _state_flops(shape)


def _state_flops(shape: ModelShape) -> float:
    """Those of the states of gated delta nets, forward and backward, of one token."""
    return 18.0 * len(shape.delta_layers) * shape.delta_key_dim * shape.delta_value_width


def _multiplying_parameters(shape: ModelShape) -> int:
    """Weights of the matrices that multiply a token."""
    return sum(
        _parameters(rule, shape) * _active_copies(rule, shape)
        for rule in weight_rules(shape)
        if len(rule.tensors[0].size) > 1 and rule.names != embedding_rule(shape).names
    )


def weight_rules(shape: ModelShape) -> Iterator[Rule]:
    """The name table of a model."""
    return iter(family_of(shape).weights(shape))


def embedding_rule(shape: ModelShape) -> Rule:
    """The rule of the embedding."""
    return next(rule for rule in weight_rules(shape) if isinstance(rule, VocabularyParallel))


def _copies(rule: Rule, shape: ModelShape) -> int:
    return len(places(rule, shape))


def _active_copies(rule: Rule, shape: ModelShape) -> int:
    copies = _copies(rule, shape)
    return copies // shape.experts * shape.experts_per_token if rule.of_expert else copies


def _parameters(rule: Rule, shape: ModelShape) -> int:
    return 0 if rule.buffer else sum(prod(tensor_size(tensor, shape)) for tensor in parameters_of(rule))
