"""A sentencepiece .model file, read by the sentencepiece library."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.tokenizer.encoded import Encoded, Opened


@dataclass(frozen=True)
class SentencePiece:
    """The library with a model in it. Text never gives its control symbols: they stay text by themselves."""

    path: Path
    model: sentencepiece.SentencePieceProcessor

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded.of(self.model.encode(list(texts), out_type=int, num_threads=1))

    def decode(self, ids: Sequence[int]) -> str:
        # Control symbols decode to nothing: the text between them is decoded, they are shown as they are written.
        parts: list[str] = []
        plain: list[int] = []
        for number in ids:
            if self.model.is_control(number):
                parts += [self.model.decode(plain), self.model.id_to_piece(number)]
                plain = []
            else:
                plain.append(number)
        return "".join([*parts, self.model.decode(plain)])

    def number_of(self, token: str) -> int | None:
        number = self.model.piece_to_id(token)
        return int(number) if self.model.id_to_piece(number) == token else None

    def token_of(self, number: int) -> str:
        return str(self.model.id_to_piece(number))

    def token_bytes(self) -> npt.NDArray[np.int64]:
        lengths = np.zeros(self.model.get_piece_size(), np.int64)
        for number in range(len(lengths)):
            if self.model.is_byte(number):
                lengths[number] = 1
            elif not (self.model.is_control(number) or self.model.is_unknown(number)):
                lengths[number] = len(self.model.id_to_piece(number).replace("▁", " ").encode())
        return lengths


def open_sentencepiece(path: Path) -> Opened:
    """A .model file. Raises BadInput where the library cannot read it."""
    model = sentencepiece.SentencePieceProcessor()
    content = path.read_bytes()
    try:
        model.LoadFromSerializedProto(content)
    # The library raises RuntimeError with its own source lines in the message.
    except RuntimeError as error:
        remedy = "Give a sentencepiece .model, tiktoken ranks, or a Hugging Face folder."
        raise BadInput(Fault(str(path), "is not a tokenizer that is read.", remedy)) from error
    size = int(model.get_piece_size())
    control = np.array([model.is_control(number) for number in range(size)], np.bool_)
    bos, eos = (None if number < 0 else int(number) for number in (model.bos_id(), model.eos_id()))
    # The library adds no BOS unless it is asked to; that Llama 2 was trained with one only its users know.
    return Opened(SentencePiece(path, model), hashlib.sha256(content).hexdigest(), size, bos, eos, False, control)
