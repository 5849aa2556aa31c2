"""Parts of a model that are not trained."""

from collections.abc import Sequence

from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_cpt.config.model import FrozenSettings
from megatron_cpt.families.shape import ModelShape


def freeze(model: Sequence[GPTModel], shape: ModelShape, frozen: FrozenSettings) -> None:
    """Takes the frozen parts of this rank's model out of training, before it is wrapped.

    They get no gradient, no optimizer state and no weight decay; the final norm is always trained.
    """
    for chunk in model:
        for layer in chunk.decoder.layers:
            number = layer.layer_number  # from 1, over all pipeline stages
            if number <= frozen.bottom or number > shape.layers - frozen.top:
                layer.requires_grad_(False)
        if frozen.embeddings:
            for part in (getattr(chunk, "embedding", None), getattr(chunk, "output_layer", None)):
                if part is not None:
                    part.requires_grad_(False)
