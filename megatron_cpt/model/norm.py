"""torch's own fused norms, for Megatron-Core's local layer spec, also where sequences are divided."""

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

NORMS = {"RMSNorm": torch.nn.RMSNorm, "LayerNorm": torch.nn.LayerNorm}


class Norm:
    """Makes the norm that the config names; Megatron-Core builds it where a spec says so.

    Theirs (WrappedTorchNorm) refuses sequence parallelism, because under it each tensor-parallel rank sees a part
    of the sequence and its gradient is a part of the whole. The mark set here makes Megatron-Core sum them.
    """

    def __new__(  # type: ignore[misc]
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5
    ) -> torch.nn.Module:
        """A norm over the last dimension, of width `hidden_size`."""
        norm = NORMS[config.normalization](hidden_size, eps=eps, dtype=config.params_dtype)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel
        return norm
