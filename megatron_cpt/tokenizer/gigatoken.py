"""Ids from the gigatoken library, a hundred times faster, where it is proven to give the same ones.

The tokenizer's own library decides what is right. gigatoken is compared with it on real text of the input
and on text that tokenizers trip over; one difference and it is not used. It reads control tokens out
of plain text, so where they are to stay plain text it is given a tokenizer that has none.
"""

import importlib.util
import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import orjson

from megatron_cpt.tokenizer.formats import Encoded, HuggingFace, SentencePiece
from megatron_cpt.tokenizer.tokenizer import Tokenizer

_ODD_TEXTS = (
    "",
    " ",
    "a",
    "\n\n\n",
    " \t \r\n  x   y    z\u00a0\u3000\u2028w",
    "don't DON'T we'll I'VE it's 'tis y'all'd",
    "1 22 333 4444 55555 3.14159 1,000,000 ½ ² ٣٤ 二〇",
    "naïve café e\u0301 \u1e9b\u0323 ﬁ Ⅷ ①",
    "Привет, мир! Ψηφία δέλτα. שלום مرحبا नमस्ते สวัสดี",
    "漢字かな交じり文。한국어 텍스트",
    "😀👩‍👩‍👧‍👦🇩🇪 \U0001f3f4\U000e0067\U000e0062",
    "\x00\x01\x7f\u0085\u200b\u200d\ufeff\ufffd\U0010ffff",
    "def f(x):\n    return {**x}  # !!! ??? ... --- ___ ===\n\n\n\n        y\n",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "x" * 300 + " " * 300 + "\n" * 60 + "=" * 300,
)


class NotEqual(Exception):
    """gigatoken cannot stand in for a tokenizer; the message says why."""


Encoder = Callable[[Sequence[str]], Encoded]
"""Texts to the ids of each alone."""


def encoder_for(tokenizer: Tokenizer, sample: Callable[[], list[str]], fast: bool) -> Encoder:
    """gigatoken where it is there and gives the same ids on a sample; else its own library, with a warning."""
    if not fast or importlib.util.find_spec("gigatoken") is None:
        return tokenizer.encode_flat
    try:
        return FastTokenizer(tokenizer, sample()).encode_flat
    except NotEqual as error:
        warnings.warn(
            f"gigatoken is not used: {error}. The tokenizer's own library does the same some tens of times slower.",
            stacklevel=3,
        )
        return tokenizer.encode_flat


class FastTokenizer:
    """gigatoken in the place of a tokenizer. Raises NotEqual where it cannot be loaded or differs."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        load, added = _loader(tokenizer)
        probes = [f"a{token}b {token} c" for token in added]
        proof = [*_ODD_TEXTS, *probes, *texts]
        with encoded_beside(tokenizer, proof) as encoded:
            try:
                self._backend = load()
            # The library raises several kinds for what it does not know.
            except Exception as error:
                raise NotEqual(f"it cannot load {tokenizer.folder} ({str(error).splitlines()[0]})") from error
            for text, right, ours in zip(proof, encoded().each(), self.encode_flat(proof).each(), strict=True):
                if not np.array_equal(right, ours):
                    raise NotEqual(f"it gives other ids for {text[:60]!r}")

    def encode_flat(self, texts: Sequence[str]) -> Encoded:
        """The ids of each text alone, laid end to end; one thread of the library does it."""
        # One at a time, for the library's batches come in arrays whose import alone takes as long as tokenizing 30 MB.
        return Encoded.joined([self._backend.encode(text) for text in texts])


@contextmanager
def encoded_beside(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Callable[[], Encoded]]:
    """The ids of texts by the tokenizer's own library, in another process: gigatoken takes as long to load."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def encode() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to answer.
        # Open here too, it would keep this process waiting for a reader when the other one has been killed.
        ours.close()
        theirs.send(tokenizer.encode_flat(texts))

    def encoded() -> Encoded:
        try:
            result: Encoded = ours.recv()
        except EOFError:
            # What ended that process is met again, and told, here.
            result = tokenizer.encode_flat(texts)
        return result

    process = context.Process(target=encode, daemon=True)
    process.start()
    theirs.close()
    try:
        yield encoded
    finally:
        ours.close()
        process.kill()
        process.join()


def _loader(tokenizer: Tokenizer) -> tuple[Callable[[], Any], list[str]]:
    """What loads gigatoken's tokenizer, and the added and control tokens that must be proven to be treated alike."""
    # An optional library.
    import gigatoken  # noqa: PLC0415

    library = tokenizer.library
    if isinstance(library, SentencePiece):
        return partial(gigatoken.Tokenizer.from_sentencepiece, library.path), tokenizer.control_names()
    if not isinstance(library, HuggingFace):
        raise NotEqual("it is used for tokenizer.json and sentencepiece models alone")
    content: dict[str, Any] = orjson.loads(library.content)
    added = content.get("added_tokens") or []
    content["added_tokens"] = [token for token in added if tokenizer.parses_special or not token["special"]]
    # What both must leave alone: BOS and EOD are put by prepare, nothing is cut or padded.
    content["post_processor"] = content["truncation"] = content["padding"] = None
    return lambda: gigatoken.Tokenizer.from_json(orjson.dumps(content)), [token["content"] for token in added]
