"""What a traced program may do."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_cpt.simulation.trace import Trace


def test_a_product_of_two_dtypes_is_refused() -> None:
    """Fake tensors take it, and no device does."""
    with FakeTensorMode(), Trace(lambda mask: mask.numel(), flops=1e12, bandwidth=1e9):
        wide, narrow = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bfloat16)
        assert (wide @ wide).dtype is torch.float32
        with pytest.raises(RuntimeError, match="float32 and torch"):
            wide @ narrow
