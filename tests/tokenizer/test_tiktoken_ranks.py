"""Ranks of tiktoken and their kin against tiktoken's own Encoding and mistral-common's reader."""

import base64
import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from megatron_cpt.config.errors import BadInput
from megatron_cpt.tokenizer import tiktoken_ranks
from megatron_cpt.tokenizer.tokenizer import Tokenizer

BYTES = [bytes([byte]) for byte in range(256)]
MERGED = [b"th", b"the", b" the", b"12", b"123", b" 1", b"\n\n", b"  ", b"'l", b"'ll", b"\xc3\xa9", b"eT", b"/\n"]
TEXTS = (
    "the the1234 12345, WE'LL we'll HeThe theThe\n\n\n  caf\u00e9 th/\n/\n",
    " \t \r\n  x   y    z\u00a0\u3000w  ",
    "\u6f22\u5b57 \U0001f600 <|endoftext|> </s>[INST]",
    "",
)


def write_ranks(path: Path, tokens: Sequence[bytes]) -> None:
    path.write_text("\n".join(f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)))


def written_with(path: Path, description: dict[str, Any]) -> Tokenizer:
    """The tokenizer of small ranks with a description beside them."""
    write_ranks(path, [*BYTES, *MERGED])
    path.with_name(f"{path.name}.json").write_text(json.dumps(description))
    return Tokenizer.load(path)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[str, dict[str, Any]]]:
    """By name: the hash that tiktoken expects of ranks, and its Encoding's arguments over small ranks."""

    def arguments(name: str) -> tuple[str, dict[str, Any]]:
        hashes = []

        def load(url: str, expected_hash: str) -> dict[bytes, int]:
            hashes.append(expected_hash)
            return {token: rank for rank, token in enumerate([*BYTES, *MERGED])}

        monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", load)
        given = tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[name]()
        given.pop("explicit_n_vocab", None)
        return hashes[0], given

    return arguments


def test_llama_3s_original_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of its tokenizer.model: base64 and rank; BOS before each document, control tokens behind the ranks.

    A small file in the place of the real one, whose hash is the only one that is known.
    """
    tokens = [*BYTES, b"th", b"the", b" the", b"12", b"123"]
    path = tmp_path / "tokenizer.model"
    write_ranks(path, tokens)
    monkeypatch.setattr(tiktoken_ranks, "_LLAMA3_RANKS", sha256(path.read_bytes()).hexdigest())
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocabulary_size == len(tokens) + 256
    assert (tokenizer.bos_for("auto"), tokenizer.eod) == (len(tokens), len(tokens) + 1)
    # The pattern parts digits in threes and takes a blank to the word behind it.
    [ids] = tokenizer.encode_batch(["the the1234"])
    assert ids.tolist() == [257, 258, 260, ord("4")]
    assert tokenizer.decode(ids.tolist()) == "the the1234"
    assert tokenizer.token_bytes()[ids].tolist() == [3, 4, 3, 1]
    literal = "a<|end_of_text|>"
    [plain] = tokenizer.encode_batch([literal])
    assert plain.max() < 256 and tokenizer.decode(plain.tolist()) == literal
    [meant] = Tokenizer.load(path, parse_special=True).encode_batch([literal])
    assert meant.tolist() == [ord("a"), tokenizer.eod]
    folder = Tokenizer.load(tmp_path)
    assert folder.identity == tokenizer.identity
    path.write_text(path.read_text() + "\n!")
    with pytest.raises(BadInput, match="holds no whole tiktoken ranks"):
        Tokenizer.load(path)


def test_other_ranks_are_no_llama_3(tmp_path: Path) -> None:
    """As of qwen.tiktoken: without pattern and control tokens they are refused, with them they are what they are."""
    tokens = [*BYTES, b"12", b"123", b" 1"]
    path = tmp_path / "qwen.tiktoken"
    write_ranks(path, tokens)
    with pytest.raises(BadInput, match=r"that are not known.*Write them into .*qwen\.tiktoken\.json: ") as caught:
        Tokenizer.load(path)
    assert '"pat_str"' in str(caught.value)
    beside = tmp_path / "qwen.tiktoken.json"
    right = {
        "pat_str": r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "special_tokens": {"<|endoftext|>": 300, "<|im_start|>": 301},
        "bos_token": None,
        "eos_token": "<|endoftext|>",
    }
    beside.write_text(json.dumps(right))
    tokenizer = Tokenizer.load(path)
    assert (tokenizer.bos_for("auto"), tokenizer.eod, tokenizer.vocabulary_size) == (None, 300, 302)
    # This pattern parts digits one by one.
    assert tokenizer.encode_batch(["123"])[0].tolist() == [ord("1"), ord("2"), ord("3")]
    with_bos = right | {"bos_token": "<|im_start|>"}
    beside.write_text(json.dumps(with_bos))
    assert Tokenizer.load(path).bos_for("auto") == 301
    for change, message in (
        ({"pat_str": None}, "does not say what goes with the ranks"),
        ({"pat_str": "("}, "has a pattern that is none"),
        ({"pat_str": "cl100k"}, "names the pattern cl100k, which is not known.*cl100k_base"),
        ({"special_tokens": {"<|endoftext|>": 5}}, r"the id 5, which is the rank of b'\\x05'"),
        ({"special_tokens": {"<|endoftext|>": "300"}}, 'the id "300", which is a string, not a whole number'),
        ({"special_tokens": {"<|endoftext|>": [300]}}, r"the id \[300\], which is a list"),
        ({"special_tokens": {"<|endoftext|>": -1}}, "the id -1, which is not from 0 to 2,147,483,647"),
        ({"special_tokens": {"<|endoftext|>": 1 << 40}}, "which is not from 0 to 2,147,483,647"),
        ({"special_tokens": {"<|endoftext|>": 300, "<|im_end|>": 300}}, "two control tokens one id"),
        ({"eos_token": ["<|endoftext|>"]}, "does not say what goes with the ranks"),
        ({"eos_token": "</s>"}, "names </s>, which is none of its special_tokens"),
    ):
        beside.write_text(json.dumps(right | change))
        with pytest.raises(BadInput, match=message):
            Tokenizer.load(path)


def line(token: bytes, rank: int) -> str:
    return f"{base64.b64encode(token).decode()} {rank}"


WHOLE = [line(token, rank) for rank, token in enumerate(BYTES)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line for line in WHOLE if line != "QQ== 65"], r"no rank for 1 of the 256 bytes \(0x41\)"),
        (WHOLE[:100], r"no rank for 156 of the 256 bytes \(0x64, .*0x6b, \.\.\.\)"),
        ([*WHOLE, line(b"A", 300)], "has the token b'A' 2 times"),
        ([*WHOLE, line(b"th", 65)], "has the rank 65 2 times"),
        ([*WHOLE, line(b"th", -1)], "has the rank -1, not from 0 to"),
        ([*WHOLE, line(b"th", 1 << 40)], "has the rank 1099511627776, not from 0 to"),
    ],
)
def test_ranks_that_could_not_encode_every_text_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "holes.tiktoken"
    path.write_text("\n".join(lines))
    description = {"pat_str": "qwen2", "special_tokens": {"</s>": 500}, "bos_token": None, "eos_token": "</s>"}
    path.with_name(f"{path.name}.json").write_text(json.dumps(description))
    with pytest.raises(BadInput, match=message):
        Tokenizer.load(path)


def test_numbers_that_no_rank_has(tmp_path: Path) -> None:
    """As in p50k_base, whose end of text lies among its ranks."""
    path = tmp_path / "gaps.tiktoken"
    path.write_text("\n".join([*WHOLE, line(b"th", 300), line(b"the", 302)]))
    description = {"pat_str": "qwen2", "special_tokens": {"</s>": 301}, "bos_token": None, "eos_token": "</s>"}
    path.with_name(f"{path.name}.json").write_text(json.dumps(description))
    tokenizer = Tokenizer.load(path)
    [ids] = tokenizer.encode_batch(["the th"])
    assert ids.tolist() == [302, ord(" "), 300] and tokenizer.eod == 301


def test_megatron_lms_ranks_without_a_byte(tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps([entry for entry in tekken()["vocab"] if entry["rank"] != 65]))
    with pytest.raises(BadInput, match=r"no rank for 1 of the 256 bytes \(0x41\)"):
        Tokenizer.load(path)


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_ranks_that_tiktoken_publishes(
    name: str,
    published: Callable[[str], tuple[str, dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Known by their hash, with nothing beside them: a small file in the place of the real one."""
    digest, arguments = published(name)
    encoding = tiktoken.Encoding(**arguments)
    path = tmp_path / f"{name}.tiktoken"
    write_ranks(path, [*BYTES, *MERGED])
    known = tiktoken_ranks._TIKTOKENS_RANKS[digest]
    monkeypatch.setattr(tiktoken_ranks, "_TIKTOKENS_RANKS", {sha256(path.read_bytes()).hexdigest(): known})
    tokenizer = Tokenizer.load(path)
    assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == encoding.encode_ordinary_batch(list(TEXTS))
    meant = Tokenizer.load(path, parse_special=True).encode_batch(TEXTS)
    assert [ids.tolist() for ids in meant] == encoding.encode_batch(list(TEXTS), allowed_special="all")
    assert (tokenizer.bos, tokenizer.eod) == (None, encoding.eot_token)
    assert tokenizer.vocabulary_size == encoding.n_vocab
    assert tokenizer.control_names() == sorted(encoding.special_tokens_set, key=encoding.encode_single_token)


@pytest.mark.parametrize("name", ["r50k_base", "cl100k_base", "o200k_base"])
def test_a_pattern_by_name_is_tiktokens(
    name: str, published: Callable[[str], tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    """As for gpt-oss, whose ranks are those of o200k_base with other control tokens."""
    special = {"<|return|>": 300, "<|start|>": 301}
    encoding = tiktoken.Encoding(**published(name)[1] | {"special_tokens": special})
    tokenizer = written_with(
        tmp_path / "a.tiktoken",
        {"pat_str": name, "special_tokens": special, "bos_token": None, "eos_token": "<|return|>"},
    )
    assert [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)] == encoding.encode_ordinary_batch(list(TEXTS))
    assert (tokenizer.eod, tokenizer.vocabulary_size) == (300, encoding.n_vocab)


def test_qwens_pattern_by_name_is_that_of_transformers(tmp_path: Path) -> None:
    rest = {"special_tokens": {"<|endoftext|>": 300}, "bos_token": None, "eos_token": "<|endoftext|>"}
    named = written_with(tmp_path / "qwen.tiktoken", {"pat_str": "qwen2"} | rest)
    spelled = written_with(tmp_path / "spelled.tiktoken", {"pat_str": PRETOKENIZE_REGEX} | rest)
    assert named.identity == spelled.identity
    assert named.encode_batch(["123"])[0].tolist() == [ord("1"), ord("2"), ord("3")]


PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tekken(control: int = 24, spare: int = 3, **more: object) -> dict[str, Any]:
    """A tekken.json of small ranks, with some more of them than the vocabulary takes."""
    tokens = [*BYTES, *MERGED, *(b"spare%d" % number for number in range(spare))]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for rank, token in enumerate(tokens)
    ]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(tokens),
        "default_vocab_size": control + len(tokens) - spare,
        "default_num_special_tokens": control,
        "version": "v3",
    }
    return {"config": config, "vocab": vocabulary} | more


def with_token(rank: int, token: bytes) -> dict[str, Any]:
    """A tekken.json with another token at a rank."""
    content = tekken()
    content["vocab"][rank]["token_bytes"] = base64.b64encode(token).decode()
    return content


def equal_to_mistral_common(path: Path) -> Tokenizer:
    """The tokenizer of a tekken.json, compared with mistral-common's."""
    theirs = pytest.importorskip("mistral_common.tokens.tokenizers.tekken").Tekkenizer.from_file(path)
    tokenizer = Tokenizer.load(path)
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids.tolist() == theirs.encode(text, bos=False, eos=False)
        assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.vocabulary_size == theirs.n_words
    assert (tokenizer.bos_for("auto"), tokenizer.eod) == (theirs.bos_id, theirs.eos_id)
    names = [theirs.id_to_piece(number) for number in range(theirs.num_special_tokens)]
    assert tokenizer.control_names() == names
    return tokenizer


def test_mistrals_tekken_with_and_without_its_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(tekken()))
    tokenizer = equal_to_mistral_common(path)
    assert tokenizer.encode_batch(["the"])[0].tolist() == [24 + 257]
    assert tokenizer.control_names()[20:] == ["<SPECIAL_20>", "<SPECIAL_21>", "<SPECIAL_22>", "<SPECIAL_23>"]
    # A folder without tokenizer.json, as of Mistral's own format.
    assert Tokenizer.load(tmp_path).identity == tokenizer.identity
    [meant] = Tokenizer.load(path, parse_special=True).encode_batch(["a</s>"])
    assert meant.tolist() == [24 + ord("a"), tokenizer.eod]
    special = [{"rank": rank, "token_str": name, "is_control": rank < 3} for rank, name in enumerate(["</s>", "<s>"])]
    path.write_text(json.dumps(tekken(5, special_tokens=special)))
    assert equal_to_mistral_common(path).eod == 0


def test_mistrals_published_tekken() -> None:
    """The file that mistral-common brings, of Pixtral."""
    data = pytest.importorskip("mistral_common").__path__[0]
    equal_to_mistral_common(Path(data) / "data" / "tekken_240911.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "is neither a tekken.json nor other ranks"),
        (tekken() | {"vocab": tekken()["vocab"][:100]}, "does not have 269 ranks in order"),
        (tekken() | {"vocab": tekken()["vocab"][::-1]}, "does not have 269 ranks in order"),
        (with_token(65, b"AA"), r"no rank for 1 of the 256 bytes \(0x41\)"),
        (with_token(260, b"th"), "has the token b'th' 2 times"),
        (tekken() | {"config": tekken()["config"] | {"pattern": 5}}, "is neither a tekken.json nor other ranks"),
        (tekken(special_tokens=[{"rank": 1, "token_str": "<s>"}]), "and 24 special tokens, as it says"),
    ],
)
def test_what_is_no_whole_tekken_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message):
        Tokenizer.load(path)
