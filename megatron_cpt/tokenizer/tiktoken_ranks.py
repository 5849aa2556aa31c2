"""Ranks of tiktoken: lines of base64 and a number, Megatron-LM's JSON, Mistral's tekken.json.

Lines contain neither the pattern that splits text nor the control tokens. Both are known for ranks whose SHA-256 is
that of Llama 3's (llama-models, tokenizer.py) or of one that tiktoken publishes (tiktoken_ext/openai_public.py). Those
of any other ranks are in a file beside them, which may name a published pattern. Megatron-LM's are in its TikTokenizer.
tekken.json has its pattern and, from version 7 on, its control tokens.
"""

import base64
import binascii
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import tiktoken

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.tokenizer.formats import END_OF_TEXT, Encoded, Opened, json_object

_BY_CASE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PATTERNS = {
    "r50k_base": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
        r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    ),
    "o200k_base": (
        rf"{_BY_CASE[0]}{_ENDINGS}?|{_BY_CASE[1]}{_ENDINGS}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama3": (
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""Published patterns by the name of their vocabulary: tiktoken's own three, Llama 3's, Qwen's (1 to 3)."""
_LLAMA3_BEGIN, _LLAMA3_END = "<|begin_of_text|>", "<|end_of_text|>"
_LLAMA3_CONTROL_TOKENS = 256
_LLAMA3_RANKS = "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55"
"""SHA-256 of the tokenizer.model of Llama 3 to 3.3."""
_TIKTOKENS_RANKS: dict[str, tuple[str, dict[str, int]]] = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": ("r50k_base", {END_OF_TEXT: 50256}),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": ("r50k_base", {END_OF_TEXT: 50256}),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": (
        "cl100k_base",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": (
        "o200k_base",
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    ),
}
"""Pattern and control tokens of r50k_base, p50k_base, cl100k_base and o200k_base, by the SHA-256 of their files."""
_MEGATRON_PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": (
        rf"{_BY_CASE[0]}|{_BY_CASE[1]}|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_MEGATRON_CONTROL = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
"""The first of Megatron-LM's control tokens; the rest are numbered."""
_MEGATRON_CONTROL_TOKENS = 1000
_MEGATRON_VOCABULARY = 1 << 17
_IDS = 1 << 31
"""Ids are below: a dataset keeps them in int32."""
_TEKKEN_CONTROL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""The first control tokens of a tekken.json that does not name them (mistral-common, tekken.py)."""


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
    """Whether a file holds ranks: JSON, or lines of base64 and a number."""
    with path.open("rb") as file:
        line = file.readline(1 << 12)
    if line.lstrip()[:1] in (b"[", b"{"):
        return True
    token, _, rank = line.strip().partition(b" ")
    try:
        return rank.isdigit() and bool(base64.b64decode(token, validate=True))
    except binascii.Error:
        return False


def open_ranks(path: Path, parse_special: bool) -> Opened:
    """Ranks of any kind; a JSON list as Megatron-LM's TikTokenizer reads it by default. BadInput: they are broken, or
    of no model that is known, and nothing beside them says what goes with them."""
    content = path.read_bytes()
    kind = content[:64].lstrip()[:1]
    if kind == b"[":
        return open_megatron_ranks(path, parse_special=parse_special)
    if kind == b"{":
        return _open_tekken(path, parse_special)
    try:
        lines = (line.split() for line in content.splitlines() if line)
        listed = [(base64.b64decode(token, validate=True), int(rank)) for token, rank in lines]
    except ValueError as error:
        raise _broken(path, error) from error
    ranks = _whole(path, listed)
    rest = path.with_name(f"{path.name}.json")
    found = _described_ranks(rest, ranks) if rest.is_file() else _published(content, len(ranks))
    if found is None:
        rule = "holds tiktoken ranks that are not known: they say neither the pattern nor the control tokens."
        raise BadInput(Fault(str(path), rule, f"Write them into {rest}: {_DESCRIPTION}."))
    pattern, control, bos, eos = found
    known = {name: None if name is None else control[name] for name in (bos, eos)}
    return _opened(rest, ranks, pattern, control, known[bos], known[eos], bos is not None, parse_special)


_DESCRIPTION = (
    '{"pat_str": REGULAR_EXPRESSION, "special_tokens": {TOKEN: ID, ...}, "bos_token": TOKEN or null, '
    '"eos_token": TOKEN or null}, the first two as tiktoken.Encoding takes them; pat_str may name a published pattern: '
    + ", ".join(_PATTERNS)
)
_JSON_TYPES = {str: "a string", float: "a fraction", bool: "a truth value", list: "a list", dict: "an object"}
_JSON_TYPES[type(None)] = "nothing"
Description = tuple[str, dict[str, int], str | None, str | None]
"""Pattern, control tokens, BOS and EOS."""


def _published(content: bytes, ranks: int) -> Description | None:
    """What goes with the ranks of a file whose hash is known; None for others."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == _LLAMA3_RANKS:
        names = [_LLAMA3_BEGIN, _LLAMA3_END]
        names += [f"<|reserved_special_token_{number}|>" for number in range(_LLAMA3_CONTROL_TOKENS - len(names))]
        control = {name: ranks + number for number, name in enumerate(names)}
        return _PATTERNS["llama3"], control, _LLAMA3_BEGIN, _LLAMA3_END
    if digest not in _TIKTOKENS_RANKS:
        return None
    name, control = _TIKTOKENS_RANKS[digest]
    return _PATTERNS[name], control, None, END_OF_TEXT


def _described_ranks(path: Path, ranks: dict[bytes, int]) -> Description:
    """Pattern, control tokens, BOS and EOS of ranks, as the file beside them has them. Raises BadInput."""
    content = json_object(path)
    pattern, control = content.get("pat_str"), content.get("special_tokens")
    ends = [content.get(name, False) for name in ("bos_token", "eos_token")]
    faults = []
    named = all(token is None or isinstance(token, str) for token in ends)
    if not isinstance(pattern, str) or not isinstance(control, dict) or not named or len(content) != 4:
        raise BadInput(Fault(str(path), "does not say what goes with the ranks.", f"Write {_DESCRIPTION}."))
    if re.fullmatch(r"\w+", pattern) and pattern not in _PATTERNS:
        rule = f"names the pattern {pattern}, which is not known."
        faults.append(Fault(str(path), rule, f"Name one of {', '.join(_PATTERNS)}, or write the pattern itself."))
    taken: dict[int, str] = {}
    texts = {rank: token for token, rank in ranks.items()}
    for token, number in control.items():
        wrong = ""
        if type(number) is not int:
            wrong = f"which is {_JSON_TYPES[type(number)]}, not a whole number"
        elif not 0 <= number < _IDS:
            wrong = f"which is not from 0 to {_IDS - 1:,}"
        elif number in texts:
            wrong = f"which is the rank of {texts[number]!r}"
        elif number in taken:
            wrong = f"which is also that of {taken[number]}: two control tokens one id"
        else:
            taken[number] = token
        if wrong:
            rule = f"gives {token} the id {orjson.dumps(number).decode()}, {wrong}."
            faults.append(Fault(str(path), rule, "Give each control token an id of its own."))
    for token in ends:
        if token is not None and token not in control:
            faults.append(Fault(str(path), f"names {token}, which is none of its special_tokens.", "Add it there."))
    refuse(faults)
    return _PATTERNS.get(pattern, pattern), control, ends[0], ends[1]


def open_megatron_ranks(
    path: Path,
    pattern: str = "v2",
    vocabulary_size: int = _MEGATRON_VOCABULARY,
    control_tokens: int = _MEGATRON_CONTROL_TOKENS,
    parse_special: bool = False,
) -> Opened:
    """The JSON file of Megatron-LM's TikTokenizer. Raises BadInput where it is broken or too small."""
    try:
        entries = orjson.loads(path.read_bytes())
        tokens = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, error) from error
    names = [*_MEGATRON_CONTROL, *(f"<SPECIAL_{n}>" for n in range(len(_MEGATRON_CONTROL), control_tokens))]
    ranks = _behind(path, control_tokens, tokens[: vocabulary_size - control_tokens])
    control = {name: number for number, name in enumerate(names)}
    return _opened(
        path, ranks, _MEGATRON_PATTERNS[pattern], control, control["<s>"], control["</s>"], False, parse_special
    )


def _open_tekken(path: Path, parse_special: bool) -> Opened:
    """Mistral's tekken.json, as mistral-common reads it: ids of text come behind those of the control tokens.

    BOS opens a document by itself (`adds_bos`): so do mistral-common's requests, and Mistral's tokenizer.json.
    """
    try:
        content = orjson.loads(path.read_bytes())
        config = content["config"]
        pattern, size, reserved = (
            config[name] for name in ("pattern", "default_vocab_size", "default_num_special_tokens")
        )
        if not isinstance(pattern, str):
            raise TypeError(f"the pattern is {pattern}")
        entries = content["vocab"][: size - reserved]
        tokens = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
        named = content.get("special_tokens") or [
            {"rank": rank, "token_str": token} for rank, token in enumerate(_TEKKEN_CONTROL)
        ]
        control = {str(token["token_str"]): int(token["rank"]) for token in named}
    except (ValueError, KeyError, TypeError) as error:
        rule = f"is neither a tekken.json nor other ranks ({error!r})."
        remedy = "Give a tekken.json, tiktoken ranks, a sentencepiece .model, or a Hugging Face folder."
        raise BadInput(Fault(str(path), rule, remedy)) from error
    control |= {f"<SPECIAL_{number}>": number for number in range(len(control), reserved)}
    whole = len(tokens) == size - reserved and [entry.get("rank") for entry in entries] == list(range(len(tokens)))
    if not whole or sorted(control.values()) != list(range(reserved)):
        rule = f"does not have {size - reserved:,} ranks in order and {reserved:,} special tokens, as it says."
        raise BadInput(Fault(str(path), rule, "Copy it again."))
    bos, eos = control.get("<s>"), control.get("</s>")
    return _opened(path, _behind(path, reserved, tokens), pattern, control, bos, eos, bos is not None, parse_special)


def _behind(path: Path, control_tokens: int, tokens: Sequence[bytes]) -> dict[bytes, int]:
    """Ids of tokens in the order of their ranks, behind those of control tokens. Raises BadInput as _whole does."""
    return _whole(path, [(token, control_tokens + rank) for rank, token in enumerate(tokens)])


def _whole(path: Path, listed: Sequence[tuple[bytes, int]]) -> dict[bytes, int]:
    """Ranks by token. Ranks may leave numbers out, as those of p50k_base do.

    Raises BadInput where a byte has no rank, for the library ends at a text with it; where a token or a rank is there
    twice; or where a rank is no id.
    """
    ranks = dict(listed)
    wrong = [rank for rank in ranks.values() if not 0 <= rank < _IDS]
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    tokens, numbers = (Counter(column) for column in zip(*listed, strict=True)) if listed else (Counter(), Counter())
    faults = []
    if missing:
        shown = ", ".join(f"0x{byte:02x}" for byte in missing[:8]) + (", ..." if len(missing) > 8 else "")
        rule = f"has no rank for {len(missing)} of the 256 bytes ({shown}): a text with one could not be encoded."
        faults.append(Fault(str(path), rule, "Copy it again."))
    for what, counted in (("token", tokens), ("rank", numbers)):
        [(value, times)] = counted.most_common(1) or [(None, 1)]
        if times > 1:
            rule = (
                f"has the {what} {value!r} {times} times: each stands for one {'rank' if what == 'token' else 'token'}."
            )
            faults.append(Fault(str(path), rule, "Copy it again."))
    if wrong:
        faults.append(Fault(str(path), f"has the rank {wrong[0]}, not from 0 to {_IDS - 1:,}.", "Copy it again."))
    refuse(faults)
    return ranks


def _opened(
    path: Path,
    ranks: dict[bytes, int],
    pattern: str,
    control: dict[str, int],
    bos: int | None,
    eos: int | None,
    adds_bos: bool,
    parse_special: bool,
) -> Opened:
    """A vocabulary over ranks; `path` is the file that says the pattern."""
    try:
        encoding = tiktoken.Encoding(name=path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens=control)
    except ValueError as error:  # of the pattern
        raise BadInput(Fault(str(path), f"has a pattern that is none ({error}).", "Correct it.")) from error
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
        unknown=None,
        says_all=True,
    )


def _broken(path: Path, error: Exception) -> BadInput:
    return BadInput(Fault(str(path), f"holds no whole tiktoken ranks ({error}).", "Copy it again."))
