"""Token ids of many texts, and what prepare needs of whatever library makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Encoded:
    """The ids of texts, laid end to end."""

    tokens: npt.NDArray[np.int32]
    """Ids of all: int32[sum of lengths]."""
    lengths: npt.NDArray[np.int64]
    """Ids of each text: int64[texts]."""

    @staticmethod
    def of(texts: Sequence[Sequence[int]]) -> "Encoded":
        """From the ids of every text apart."""
        return Encoded.joined([np.array(ids, np.int32) for ids in texts])

    @staticmethod
    def joined(texts: Sequence[npt.NDArray[Any]]) -> "Encoded":
        """From arrays of the ids of every text apart, each of a dtype of four bytes."""
        tokens = np.concatenate(texts).view(np.int32) if texts else np.empty(0, np.int32)
        return Encoded(tokens, np.array([len(ids) for ids in texts], np.int64))

    def chosen(self, which: npt.NDArray[np.bool_]) -> "Encoded":
        """The texts where bool[texts] is true."""
        return Encoded(self.tokens[np.repeat(which, self.lengths)], self.lengths[which])

    def each(self) -> list[npt.NDArray[np.int32]]:
        """The ids of every text apart."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


class Library(Protocol):
    """A tokenizer library with a vocabulary in it."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text alone, without BOS, EOD or anything else that is not in it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are shown as they are written."""

    def number_of(self, token: str) -> int | None:
        """The id of a token, or None."""

    def token_of(self, number: int) -> str:
        """The token of an id."""

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each token stands for: int64[vocabulary], control tokens 0."""


@dataclass(frozen=True)
class Opened:
    """A vocabulary that was read, with what its files say of it."""

    library: Library
    identity: str
    """Hash of what determines ids."""
    vocabulary_size: int
    """One more than the largest id."""
    bos: int | None
    eos: int | None
    adds_bos: bool
    """Whether the tokenizer by itself begins a text with BOS, as in the base model's training."""
    control: npt.NDArray[np.bool_]
    """bool[vocabulary]: ids that plain text never gives, `unk` aside."""
