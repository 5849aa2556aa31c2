"""Text to token ids with the `tokenizers` library, from the tokenizer.json of a Hugging Face folder.

Ids of the text alone: BOS and EOD are put by batches.py, never by the library's post-processor, and
control tokens that stand in the text (`<|endoftext|>` on a web page) stay plain text unless they are
asked for. Where a model cannot do that (Unigram), `control_tokens` tells.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from megatron_cpt.config.errors import BadInput, Fault

BosPolicy = Literal["auto", "always", "never"]
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_BPE_DEFAULTS: dict[str, Any] = {"byte_fallback": False, "fuse_unk": False, "ignore_merges": False}


@dataclass(frozen=True)
class Encoded:
    """The ids of texts, laid end to end."""

    tokens: npt.NDArray[np.int32]
    """Ids of all: int32[sum of lengths]."""
    lengths: npt.NDArray[np.int64]
    """Ids of each text: int64[texts]."""

    def chosen(self, which: npt.NDArray[np.bool_]) -> "Encoded":
        """The texts where bool[texts] is true."""
        return Encoded(self.tokens[np.repeat(which, self.lengths)], self.lengths[which])

    def each(self) -> list[npt.NDArray[np.int32]]:
        """The ids of every text apart."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of a Hugging Face folder. `Tokenizer.load` makes one."""

    folder: Path
    """Where it came from."""
    identity: str
    """Hash of what determines ids: equal for equal ids, however the files are laid out."""
    vocabulary_size: int
    """One more than the largest id."""
    bos: int | None
    """The folder's bos_token."""
    adds_bos: bool
    """Whether the tokenizer's own post-processor begins a text with BOS, as in the base model's training."""
    parses_special: bool
    """Whether control tokens written in a text become control tokens."""
    _eod: int | None
    _backend: tokenizers.Tokenizer
    _control: npt.NDArray[np.bool_]
    """bool[vocabulary]: ids that text never gives, `unk` aside."""

    @staticmethod
    def load(folder: str | Path, eod: str | None = None, parse_special: bool = False) -> "Tokenizer":
        """Reads a folder; `eod` names another token than eos_token. Raises BadInput for anything unusable."""
        folder = Path(folder)
        content, backend = _read_backend(folder)
        backend.encode_special_tokens = not parse_special
        vocabulary = backend.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1
        bos = _named_token(folder, backend, "bos")
        unknown = _unknown_token(content["model"])
        control = np.zeros(size, np.bool_)
        for token in content.get("added_tokens", []):
            control[token["id"]] = token["special"] and token["content"] != unknown
        first = backend.encode("a", add_special_tokens=True).ids[:1]
        return Tokenizer(
            folder=folder,
            identity=_identity(content),
            vocabulary_size=size,
            bos=bos,
            adds_bos=bos is not None and first == [bos],
            parses_special=parse_special,
            _eod=_end_of_document(folder, backend, eod),
            _backend=backend,
            _control=control,
        )

    @property
    def eod(self) -> int:
        """Closes each document: the folder's eos_token, or the token asked for. BadInput: there is neither."""
        if self._eod is None:
            remedy = "Name the token that closes documents with --eod TOKEN, for example </s>."
            raise BadInput(Fault(str(self.folder), "names no eos_token.", remedy))
        return self._eod

    def bos_for(self, policy: BosPolicy) -> int | None:
        """The id that opens each document under a policy. BadInput: `always` without a bos_token."""
        if policy == "always" and self.bos is None:
            raise BadInput(
                Fault("--bos always", f"needs a bos_token, and {self.folder} names none.", "Use --bos never.")
            )
        return self.bos if policy == "always" or (policy == "auto" and self.adds_bos) else None

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The ids of each text alone, int32[tokens]."""
        return self.encode_flat(texts).each()

    def encode_flat(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text alone, laid end to end."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        pieces = [np.array(encoding.ids, np.int32) for encoding in encodings]
        tokens = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
        return Encoded(tokens, np.array([len(piece) for piece in pieces], np.int64))

    def control_tokens(self, encoded: Encoded) -> dict[int, str]:
        """Of plain texts those among whose ids is a control token, and the first such token.

        BPE builds none from text; Unigram and word models find the piece in their vocabulary.
        """
        places = np.flatnonzero(self._control[encoded.tokens])
        texts = np.searchsorted(np.cumsum(encoded.lengths), places, side="right")
        numbers, firsts = np.unique(texts, return_index=True)
        ids = encoded.tokens[places[firsts]]
        return {int(n): str(self._backend.id_to_token(int(i))) for n, i in zip(numbers, ids, strict=True)}

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are shown as they are written."""
        return str(self._backend.decode([int(number) for number in ids], skip_special_tokens=False))

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each token stands for: int64[vocabulary], special tokens 0.

        Exact for byte-level tokenizers. A sentencepiece-like one counts the blank that it puts before
        a text; a normalizer's changes (NFC, lower case) are not seen.
        """
        content = orjson.loads(self._backend.to_str())
        added = {token["id"]: token for token in content["added_tokens"]}
        alphabet = set(ByteLevel.alphabet()) if _uses_byte_level(content) else set()
        lengths = np.zeros(self.vocabulary_size, np.int64)
        for token, number in self._backend.get_vocab(with_added_tokens=True).items():
            if number in added:
                lengths[number] = 0 if added[number]["special"] else len(token.encode())
            elif alphabet and alphabet.issuperset(token):
                lengths[number] = len(token)
            elif _BYTE_TOKEN.fullmatch(token):
                lengths[number] = 1
            else:
                lengths[number] = len(token.replace("▁", " ").encode())
        return lengths


def _read_backend(folder: Path) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(
            Fault(
                str(folder),
                "is not a tokenizer folder (it has no tokenizer.json).",
                "Give the Hugging Face folder of the model, with its tokenizer.json.",
            )
        )
    try:
        text = path.read_text()
        backend = tokenizers.Tokenizer.from_str(text)
        content = orjson.loads(text)
    # The library raises bare Exceptions for anything it cannot read.
    except Exception as error:
        raise BadInput(
            Fault(str(path), f"cannot be read ({error}).", "Save the tokenizer again with save_pretrained.")
        ) from error
    # A folder may carry the truncation of its last use; it would cut documents in silence.
    backend.no_truncation()
    backend.no_padding()
    return content, backend


def _end_of_document(folder: Path, backend: tokenizers.Tokenizer, asked: str | None) -> int | None:
    if asked is None:
        return _named_token(folder, backend, "eos")
    number = backend.token_to_id(asked)
    if number is None:
        remedy = "Name one that is, for example the eos_token."
        raise BadInput(Fault(f"--eod {asked}", f"is no token of {folder}.", remedy))
    return int(number)


def _named_token(folder: Path, backend: tokenizers.Tokenizer, role: Literal["bos", "eos"]) -> int | None:
    """The id that a folder's side files give to a role, or None."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read_json(folder / file).get(f"{role}_token")
        content = token.get("content") if isinstance(token, dict) else token
        number = backend.token_to_id(content) if isinstance(content, str) else None
        if number is not None:
            return int(number)
    for file in ("generation_config.json", "config.json"):
        numbers = _read_json(folder / file).get(f"{role}_token_id")
        first = numbers[0] if isinstance(numbers, list) and numbers else numbers
        if isinstance(first, int) and backend.id_to_token(first) is not None:
            return first
    return None


def _unknown_token(model: dict[str, Any]) -> str | None:
    """The token that stands for what a model cannot say: a word model's or BPE's by name, Unigram's by id."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = orjson.loads(path.read_bytes())
    except ValueError as error:
        raise BadInput(Fault(str(path), f"is not JSON ({error}).", "Mend or remove the file.")) from error
    return content if isinstance(content, dict) else {}


def _identity(content: dict[str, Any]) -> str:
    """Hash of model, normalizer, pre-tokenizer and added tokens, free of how the file spells them."""
    model = {name: value for name, value in content["model"].items() if value is not None}
    for name, default in _BPE_DEFAULTS.items():
        if model.get(name) == default:
            del model[name]
    if "merges" in model:
        model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    determining = {
        "model": model,
        "normalizer": content.get("normalizer"),
        "pre_tokenizer": content.get("pre_tokenizer"),
        "added_tokens": sorted(content.get("added_tokens", []), key=lambda token: token["id"]),
    }
    return hashlib.sha256(orjson.dumps(determining, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _uses_byte_level(content: dict[str, Any]) -> bool:
    stages = [content.get("normalizer"), content.get("pre_tokenizer"), content.get("decoder")]
    return any(b'"ByteLevel"' in orjson.dumps(stage) for stage in stages)
