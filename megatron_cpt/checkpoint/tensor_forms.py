"""The forms in which folders hold tensors, each read in parts: as they are, in fewer bits, and all experts' in one.

- fp8 with a scale for each block, as DeepSeek-V3 is released (arXiv:2412.19437, section 3.3): a matrix `NAME` of e4m3
  numbers has a matrix `NAME_scale_inv` of factors, one for each block of its rows and columns; blocks at the ends may
  be smaller. Some folders have those of all experts in one. Read as bf16.
- MXFP4, as GPT-OSS is released: `NAME_blocks` of bytes, [experts, rows, blocks, 16], two numbers of 4 bits in each, the
  first in its lower half, and `NAME_scales`, [experts, rows, blocks], powers of two. Read as bf16, which holds all
  products exactly but for those that are too small or too large for it.
- One tensor for all experts of a layer (families/weights.py, Stack).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_cpt.families.weights import StackPlace

Index = tuple[int | slice, ...]
"""Which part of a tensor is read, axis by axis; what is not named is whole."""
_FP8_SCALES, _FP8 = "_scale_inv", "F8_E4M3"
_MXFP4_BLOCKS, _MXFP4_SCALES, _BYTES = "_blocks", "_scales", "U8"
_READ_AS = "BF16"
_ALL = slice(None)


class Form(Protocol):
    """A tensor that can be read in parts."""

    @property
    def size(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype that it is read in, in safetensors' words: F32, BF16, ..."""
        ...

    @property
    def bits(self) -> str | None:
        """What its numbers are stored in, where they are fewer bits than those of a dtype that it is read in."""
        ...

    def read(self, index: Index) -> Tensor:
        """A part of it, on the CPU."""
        ...


@dataclass(frozen=True)
class Plain:
    """A tensor as a file holds it."""

    file: Any
    """The open safetensors."""
    name: str
    """Its name there."""
    bits: str | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """Its dimensions."""
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        """Its dtype."""
        return str(self.file.get_slice(self.name).get_dtype())

    def read(self, index: Index) -> Tensor:
        """A part of it."""
        part: Tensor = self.file.get_slice(self.name)[index] if index else self.file.get_tensor(self.name)
        return part


@dataclass(frozen=True)
class Fp8Blocks:
    """A matrix in fp8, or one of each expert, each block of which has a scale."""

    numbers: Plain
    """Its numbers."""
    scales: Tensor
    """One for each block."""
    block: tuple[int, int]
    """Rows and columns of a block."""
    dtype: str = _READ_AS
    bits: str | None = "fp8"

    @property
    def size(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.numbers.size

    def read(self, index: Index) -> Tensor:
        """A part of it: numbers times the scales of their blocks, rounded once."""
        whole: Index = (*index, *[_ALL] * (len(self.size) - len(index)))
        scales = self.scales[whole[:-2]].float()
        scales = scales[self._blocks(whole[-2], 0)][:, self._blocks(whole[-1], 1)]
        return self.numbers.read(index).float().mul_(scales).bfloat16()

    def _blocks(self, part: int | slice, axis: int) -> Tensor:
        """The blocks of some rows (axis 0) or columns (axis 1)."""
        return torch.arange(self.size[axis - 2])[part] // self.block[axis]


# The numbers of 4 bits: a sign, two bits of exponent, one of mantissa.
_MXFP4 = torch.tensor([sign * number for sign in (1.0, -1.0) for number in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)])
_EXPONENT_BIAS = 127


@dataclass(frozen=True)
class Mxfp4:
    """Matrices of all experts in MXFP4, [experts, rows, columns]."""

    blocks: Plain
    """Two numbers in a byte."""
    scales: Plain
    """The exponent of each block."""
    dtype: str = _READ_AS
    bits: str | None = "mxfp4"

    @property
    def size(self) -> tuple[int, ...]:
        """Its dimensions."""
        *rest, blocks, of_block = self.blocks.size
        return (*rest, blocks * of_block * 2)

    def read(self, index: Index) -> Tensor:
        """A part of one expert: its number, which rows and which columns."""
        expert, rows, columns = (*index, _ALL, _ALL)[:3]
        packed = self.blocks.read((expert, rows))
        numbers = torch.stack([_MXFP4[(packed & 15).long()], _MXFP4[(packed >> 4).long()]], dim=-1).flatten(-2)
        exponents = self.scales.read((expert, rows)).int() - _EXPONENT_BIAS
        return torch.ldexp(numbers, exponents.unsqueeze(-1)).flatten(-2)[..., columns].bfloat16()


@dataclass(frozen=True)
class OfStack:
    """A tensor that is a part of one of all experts."""

    whole: Form
    """That of all."""
    place: StackPlace
    """Where in it."""

    @property
    def dtype(self) -> str:
        """Its dtype."""
        return self.whole.dtype

    @property
    def bits(self) -> str | None:
        """What its numbers are stored in."""
        return self.whole.bits

    @property
    def size(self) -> tuple[int, ...]:
        """Its dimensions."""
        rows, *columns = self._of_expert
        return (rows // self.place.parts, *columns)

    @property
    def _of_expert(self) -> tuple[int, ...]:
        """Rows of an expert, and columns."""
        return self.whole.size[:0:-1] if self.place.transposed else self.whole.size[1:]

    def read(self, index: Index) -> Tensor:
        """A part of it."""
        rows, *columns = index or (_ALL,)
        assert isinstance(rows, slice)
        rows = self.place.rows(self._of_expert[0], *(() if rows == _ALL else (rows.start, rows.stop)))
        if self.place.transposed:
            return self.whole.read((self.place.expert, *(columns or (_ALL,)), rows)).T
        return self.whole.read((self.place.expert, rows, *columns))


def view_in_stack(whole: Tensor, place: StackPlace) -> Tensor:
    """Where a tensor stands in that of all experts, as a view of it."""
    of_expert = whole[place.expert].T if place.transposed else whole[place.expert]
    return of_expert[place.rows(len(of_expert))]


def forms_of(file_of: Mapping[str, Any], fp8_block: tuple[int, int] | None, mxfp4: bool) -> dict[str, Form]:
    """The tensors of a folder, by the names that they have where they are stored in full.

    Args:
        file_of: the open safetensors that hold each tensor.
        fp8_block: rows and columns of the blocks of matrices in fp8; None: there are none.
        mxfp4: whether there are matrices in MXFP4.
    """
    plain = {name: Plain(file, name) for name, file in file_of.items()}
    forms: dict[str, Form] = dict(plain)
    for name, tensor in plain.items():
        scales = plain.get(f"{name}{_FP8_SCALES}")
        if fp8_block is not None and scales is not None and tensor.dtype == _FP8:
            forms[name] = Fp8Blocks(tensor, scales.read(()), fp8_block)
            del forms[scales.name]
        whole = name.removesuffix(_MXFP4_BLOCKS)
        scales = plain.get(f"{whole}{_MXFP4_SCALES}")
        if mxfp4 and whole != name and scales is not None and tensor.dtype == scales.dtype == _BYTES:
            forms[whole] = Mxfp4(tensor, scales)
            del forms[name], forms[scales.name]
    return forms


def of_stack(whole: Form, place: StackPlace) -> Form | None:
    """The form of a tensor that is a part of one of all experts; None where that is no such tensor."""
    if isinstance(whole, Mxfp4):  # which is never turned: its blocks lie along what rows are summed over
        place = replace(place, transposed=False)
    if len(whole.size) < 2 + place.transposed:
        return None
    rows = whole.size[2 if place.transposed else 1]
    return OfStack(whole, place) if rows % place.parts == 0 else None
