"""The stability gradient: the norm of the gradient of what the model knew, on a held-out batch.

De Lange et al. (arXiv:2205.13452) divide the gradient of continual learning into plasticity and stability; the
second is about 0 when the text changes, and grows as the loss on old text rises. It is measured here as the norm of
the gradient of the mean loss of fixed sequences that are never trained on; no update is made of it.
"""

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_cpt.evaluate.validate import ValidationSet, deal, micro_batches
from megatron_cpt.model.forward import run_micro_batches, without_dropout
from megatron_cpt.train.optimizer import clear_gradients, gather_gradients


def gradient_norm(
    model: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    validation_set: ValidationSet,
    sequences: int,
    micro_batch_size: int,
) -> float:
    """Norm of the gradient of the loss, nats per token, of the first sequences of a set. Every rank gets the same.

    Dropout is off, and the gradient buffers are left empty, as a step finds them.
    """
    chosen = [(validation_set, number) for number in range(min(sequences, len(validation_set.scored_tokens)))]
    parts = deal(len(chosen), micro_batch_size)
    clear_gradients(model, optimizer)
    with without_dropout(model):
        run_micro_batches(
            model,
            micro_batches(chosen, parts),
            len(parts),
            micro_batch_size,
            validation_set.sequence_length,
            backward=True,
        )
    norm, _ = gather_gradients(optimizer)
    clear_gradients(model, optimizer)
    return norm
