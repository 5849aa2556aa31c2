"""Texts that are numbers already, parted by single blanks: Megatron-LM's NullTokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_cpt.tokenizer.encoded import Encoded, Opened


@dataclass(frozen=True)
class PlainNumbers:
    """Ids as they are written. A text that is not such numbers gives no ids at all, and is rejected for it."""

    vocabulary_size: int

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded.of([self._numbers(text) for text in texts])

    def _numbers(self, text: str) -> list[int]:
        try:
            numbers = [int(word) for word in text.split(" ")]
        except ValueError:
            return []
        return numbers if all(0 <= number < self.vocabulary_size for number in numbers) else []

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def number_of(self, token: str) -> int | None:
        return int(token) if token.isdecimal() and int(token) < self.vocabulary_size else None

    def token_of(self, number: int) -> str:
        return str(number)

    def token_bytes(self) -> npt.NDArray[np.int64]:
        return np.array([len(str(number)) for number in range(self.vocabulary_size)], np.int64)


def open_numbers(vocabulary_size: int) -> Opened:
    """Numbers below `vocabulary_size`, which is itself the id that closes documents."""
    size = vocabulary_size + 1
    control = np.zeros(size, np.bool_)
    return Opened(PlainNumbers(size), f"numbers below {vocabulary_size}", size, None, vocabulary_size, False, control)
