"""Gradients of weights added to their buffer by the multiplication that gives them, on a CPU.

Megatron-Core has this for GPUs (`gradient_accumulation_fusion`), with a kernel of apex's. Here a matrix product of the
processor's library does it: no array of the weight's size is made, and none is read and written once more.
"""

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import layers
from torch import Tensor


def add_in_products(model: Sequence[DistributedDataParallel]) -> None:
    """Has the linear layers of a model that has its buffers add to them this way."""
    layers.fused_weight_gradient_mlp_cuda = Products
    for chunk in model:
        for module in chunk.modules():
            if hasattr(module, "gradient_accumulation_fusion"):
                module.gradient_accumulation_fusion = True


class Products:
    """In the place of apex's module, by its names."""

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs: Tensor, gradient: Tensor, buffer: Tensor) -> None:
        """Adds gradient^T inputs to the buffer.

        Args:
            inputs: [tokens, in].
            gradient: of the outputs, [tokens, out].
            buffer: fp32 [out, in].
        """
        if inputs.dtype is buffer.dtype:
            buffer.addmm_(gradient.t(), inputs)
        else:
            buffer.add_(gradient.t() @ inputs)
