"""Weights in fp8 with a scale for each block, as DeepSeek-V3 is released (arXiv:2412.19437, section 3.3), read as bf16.

A matrix `NAME` of e4m3 numbers has a matrix `NAME_scale_inv` of factors, one for each block of its rows and columns;
blocks at the ends may be smaller.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SCALES, _FP8 = "_scale_inv", "F8_E4M3"
READ_AS = "BF16"
"""What it is read as, in safetensors' words."""


def scales_of(file_of: Mapping[str, Any]) -> dict[str, str]:
    """The names of the scales of all matrices in fp8, by the names of these.

    Args:
        file_of: the open safetensors that hold each tensor of a folder.
    """
    names = {name: f"{name}{_SCALES}" for name in file_of}
    return {
        name: scales
        for name, scales in names.items()
        if scales in file_of and file_of[name].get_slice(name).get_dtype() == _FP8
    }


def dequantized(part: Tensor, scales: Tensor, block: tuple[int, int], row: int, column: int) -> Tensor:
    """A part of a matrix times the scales of its blocks, rounded once, to bfloat16.

    Args:
        part: e4m3 [rows, columns].
        scales: of the whole matrix, one for each block.
        block: rows and columns of a block.
        row, column: where the part begins in the matrix.
    """
    rows = torch.arange(row, row + part.size(0)) // block[0]
    columns = torch.arange(column, column + part.size(1)) // block[1]
    return part.float().mul_(scales.float()[rows][:, columns]).bfloat16()
