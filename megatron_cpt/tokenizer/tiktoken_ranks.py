"""tiktoken's ranks, read by the tiktoken library: Llama 3's original tokenizer.model, and Megatron-LM's JSON.

Ranks say nothing of the pattern by which text is cut nor of control tokens; both are facts of the model:
Llama 3's are published with its weights (llama-models, tokenizer.py), Megatron-LM's in its TikTokenizer.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import tiktoken

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.tokenizer.encoded import Encoded, Opened

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_BEGIN, LLAMA3_END = "<|begin_of_text|>", "<|end_of_text|>"
LLAMA3_CONTROL_TOKENS = 256
MEGATRON_PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
MEGATRON_CONTROL = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
"""The first of Megatron-LM's control tokens; the rest are numbered."""
MEGATRON_CONTROL_TOKENS = 1000
MEGATRON_VOCABULARY = 1 << 17


@dataclass(frozen=True)
class Ranks:
    """The library with ranks in it."""

    encoding: tiktoken.Encoding
    control: dict[str, int]
    parse_special: bool

    def encode(self, texts: Sequence[str]) -> Encoded:
        if not self.parse_special:
            return Encoded.of(self.encoding.encode_ordinary_batch(list(texts), num_threads=1))
        return Encoded.of(self.encoding.encode_batch(list(texts), num_threads=1, allowed_special="all"))

    def decode(self, ids: Sequence[int]) -> str:
        return self.encoding.decode(list(ids))

    def number_of(self, token: str) -> int | None:
        try:
            return self.encoding.encode_single_token(token)
        except KeyError:
            return None

    def token_of(self, number: int) -> str:
        return self.encoding.decode_single_token_bytes(number).decode(errors="replace")

    def token_bytes(self) -> npt.NDArray[np.int64]:
        lengths = np.zeros(self.encoding.max_token_value + 1, np.int64)
        for number in set(range(len(lengths))) - set(self.control.values()):
            try:
                lengths[number] = len(self.encoding.decode_single_token_bytes(number))
            except KeyError:  # an id that stands for nothing
                continue
        return lengths


def is_ranks(path: Path) -> bool:
    """Whether a file holds ranks: Megatron-LM's JSON, or lines of base64 and a number."""
    with path.open("rb") as file:
        line = file.readline(1 << 12)
    if line.lstrip().startswith(b"["):
        return True
    token, _, rank = line.strip().partition(b" ")
    try:
        return rank.isdigit() and bool(base64.b64decode(token, validate=True))
    except binascii.Error:
        return False


def open_ranks(path: Path, parse_special: bool) -> Opened:
    """Ranks of either kind; JSON as Megatron-LM's TikTokenizer reads it by default. BadInput: they are broken."""
    if path.read_bytes()[:64].lstrip().startswith(b"["):
        return open_megatron_ranks(path, parse_special=parse_special)
    try:
        lines = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as error:
        raise _broken(path, error) from error
    first = len(ranks)
    names = [LLAMA3_BEGIN, LLAMA3_END]
    names += [f"<|reserved_special_token_{number}|>" for number in range(LLAMA3_CONTROL_TOKENS - len(names))]
    control = {name: first + number for number, name in enumerate(names)}
    return _opened(
        path, ranks, LLAMA3_PATTERN, control, control[LLAMA3_BEGIN], control[LLAMA3_END], True, parse_special
    )


def open_megatron_ranks(
    path: Path,
    pattern: str = "v2",
    vocabulary_size: int = MEGATRON_VOCABULARY,
    control_tokens: int = MEGATRON_CONTROL_TOKENS,
    parse_special: bool = False,
) -> Opened:
    """The JSON file of Megatron-LM's TikTokenizer. Raises BadInput where it is broken or too small."""
    try:
        entries = orjson.loads(path.read_bytes())
        tokens = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, error) from error
    names = [*MEGATRON_CONTROL, *(f"<SPECIAL_{n}>" for n in range(len(MEGATRON_CONTROL), control_tokens))]
    inner = tokens[: vocabulary_size - control_tokens]
    ranks = {token: control_tokens + rank for rank, token in enumerate(inner)}
    control = {name: number for number, name in enumerate(names)}
    return _opened(
        path, ranks, MEGATRON_PATTERNS[pattern], control, control["<s>"], control["</s>"], False, parse_special
    )


def _opened(
    path: Path,
    ranks: dict[bytes, int],
    pattern: str,
    control: dict[str, int],
    bos: int,
    eos: int,
    adds_bos: bool,
    parse_special: bool,
) -> Opened:
    encoding = tiktoken.Encoding(name=path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens=control)
    size = encoding.max_token_value + 1
    is_control = np.zeros(size, np.bool_)
    is_control[list(control.values())] = True
    listed = sorted((number, token.hex()) for token, number in ranks.items())
    determining = orjson.dumps([pattern, listed, sorted(control.items())])
    return Opened(
        library=Ranks(encoding, control, parse_special),
        identity=hashlib.sha256(determining).hexdigest(),
        vocabulary_size=size,
        bos=bos,
        eos=eos,
        adds_bos=adds_bos,
        control=is_control,
    )


def _broken(path: Path, error: Exception) -> BadInput:
    return BadInput(Fault(str(path), f"holds no whole tiktoken ranks ({error}).", "Copy it again."))
