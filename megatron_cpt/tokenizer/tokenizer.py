"""Text to token ids, by whichever library reads the given tokenizer; and text to sentences.

Ids are of the text alone. preparation/process_piece.py adds BOS and EOD; no library does. Control tokens that stand in
the text (`<|endoftext|>` on a web page) stay plain text unless they are asked for. `control_tokens` says where a model
cannot do that (Unigram).

Sentences are split as by Megatron-LM's --split-sentences, with nothing downloaded. nltk's Punkt model is used where
nltk's data are installed (NLTK_DATA, `punkt_tab`). Elsewhere Punkt learns from a sample of the input; every worker and
every shard learns the same from the same input.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.tokenizer.formats import (
    Encoded,
    HuggingFace,
    Library,
    Opened,
    open_folder,
    open_gpt2,
    open_sentencepiece,
)
from megatron_cpt.tokenizer.tiktoken_ranks import is_ranks, open_ranks

BosPolicy = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer. `Tokenizer.load` makes one."""

    folder: Path
    """The folder or file that it came from."""
    identity: str
    """Hash of what determines ids: equal for equal ids, however the files are laid out."""
    vocabulary_size: int
    """One more than the largest id."""
    bos: int | None
    """The token that its files name so."""
    adds_bos: bool
    """Whether the tokenizer by itself begins a text with BOS, as in the base model's training."""
    parses_special: bool
    """Whether control tokens written in a text become control tokens."""
    library: Library
    """What makes the ids."""
    unknown: int | None
    """The id that stands for text which it cannot say; None: there is none."""
    says_all: bool
    """Whether there is a token for every byte, so that no text is lost."""
    _eod: int | None
    _control: npt.NDArray[np.bool_]

    @staticmethod
    def load(path: str | Path, eod: str | None = None, parse_special: bool = False) -> "Tokenizer":
        """Reads a Hugging Face folder, one with GPT-2's two files, a sentencepiece .model, tiktoken ranks, tekken.json.

        `eod` names another token than the one that ends texts. Raises BadInput for anything unusable.
        """
        path = Path(path)
        return Tokenizer.of(path, _opened(path, parse_special), eod, parse_special)

    @staticmethod
    def of(path: Path, opened: Opened, eod: str | None = None, parse_special: bool = False) -> "Tokenizer":
        """A tokenizer over a vocabulary that is open."""
        return Tokenizer(
            folder=path,
            identity=opened.identity,
            vocabulary_size=opened.vocabulary_size,
            bos=opened.bos,
            adds_bos=opened.adds_bos,
            parses_special=parse_special,
            library=opened.library,
            unknown=opened.unknown,
            says_all=opened.says_all,
            _eod=opened.eos if eod is None else _end_of_document(path, opened.library, eod),
            _control=opened.control,
        )

    @property
    def eod(self) -> int:
        """Closes each document: the token that ends texts, or the one asked for. BadInput: there is neither."""
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
        return self.library.encode(texts)

    def control_tokens(self, encoded: Encoded) -> dict[int, str]:
        """Of plain texts those among whose ids is a control token, and the first such token.

        BPE builds none from text; Unigram and word models find the piece in their vocabulary.
        """
        # Most vocabularies end with them: one pass tells that there is none.
        if not self._control[: encoded.tokens.max(initial=-1) + 1].any():
            return {}
        places = np.flatnonzero(np.take(self._control, encoded.tokens))
        texts = np.searchsorted(np.cumsum(encoded.lengths), places, side="right")
        numbers, firsts = np.unique(texts, return_index=True)
        ids = encoded.tokens[places[firsts]]
        return {int(n): self.library.token_of(int(i)) for n, i in zip(numbers, ids, strict=True)}

    @property
    def control_ids(self) -> npt.NDArray[np.int64]:
        """The tokens that plain text never gives, ascending."""
        return np.flatnonzero(self._control)

    def control_names(self) -> list[str]:
        """The tokens that plain text never gives."""
        return [self.library.token_of(int(number)) for number in self.control_ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are shown as they are written."""
        return self.library.decode([int(number) for number in ids])

    def decode_all(self, ids: npt.NDArray[Any]) -> str:
        """As `decode`, for many ids of the vocabulary: several times faster where tokens are spelled in bytes."""
        contents = self.library.contents if isinstance(self.library, HuggingFace) else None
        if contents is None:
            return self.decode(ids)
        return b"".join(map(contents.__getitem__, ids.tolist())).decode(errors="replace")

    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each token stands for: int64[vocabulary], special tokens 0.

        Exact for byte-level tokenizers. A sentencepiece-like one counts the blank that it puts before
        a text; a normalizer's changes (NFC, lower case) are not seen.
        """
        return self.library.token_bytes()


def _opened(path: Path, parse_special: bool) -> Opened:
    vocabulary, merges = path / "vocab.json", path / "merges.txt"
    if path.is_dir() and not (path / "tokenizer.json").is_file():
        if vocabulary.is_file() and merges.is_file():
            return open_gpt2(vocabulary, merges, parse_special)
        files = (path / name for name in ("tekken.json", "tokenizer.model"))
        path = next((file for file in files if file.is_file()), path)
    if not path.is_file():
        return open_folder(path, parse_special)
    return open_ranks(path, parse_special) if is_ranks(path) else open_sentencepiece(path)


def _end_of_document(path: Path, library: Library, asked: str) -> int:
    number = library.number_of(asked)
    if number is None:
        remedy = "Name one that is, for example the eos_token."
        raise BadInput(Fault(f"--eod {asked}", f"is no token of {path}.", remedy))
    return number


_LONGEST_TEXT = 1_000_000
"""Characters that are split at a time, as in Megatron-LM."""
_ABBREVIATIONS = (
    "dr mr mrs ms prof rev hon st sr jr gen col lt capt sgt vs etc al fig figs eq no vol pp ed eds i.e e.g cf "
    "approx ca dept inc ltd co corp jan feb mar apr jun jul aug sept sep oct nov dec u.s u.k a.m p.m ph.d"
)
"""Words of English that end in a point without ending a sentence."""


def sentence_splitter(language: str, keep_newlines: bool, sample: Callable[[], Sequence[str]]) -> "SentenceSplitter":
    """The splitter of a language, from nltk's data or else learnt from the sample.

    Raises BadInput where nltk's data are not installed and the language is not English, of which alone we know
    abbreviations.
    """
    # It takes a second to import.
    import nltk.data  # noqa: PLC0415
    from nltk.tokenize import punkt  # noqa: PLC0415

    class BlanksKept(punkt.PunktLanguageVars):
        """What follows a sentence end up to the next word stays with the sentence."""

        _period_context_fmt = r"\S*%(SentEndChars)s\s*(?=(?P<after_tok>%(NonWord)s|(?P<next_tok>\S+)))"

    try:
        nltk.data.find(f"tokenizers/punkt_tab/{language}/")
        parameters = punkt.PunktTokenizer(language)._params
    except LookupError:
        if language != "english":
            remedy = "Put nltk's punkt_tab where NLTK_DATA points."
            raise BadInput(Fault(f"--lang {language}", "is known only from nltk's data.", remedy)) from None
        trainer = punkt.PunktTrainer()
        trainer.train("\n\n".join(sample()), finalize=True)
        parameters = trainer.get_params()
        parameters.abbrev_types |= set(_ABBREVIATIONS.split())
    variables = BlanksKept() if keep_newlines else punkt.PunktLanguageVars()
    return SentenceSplitter(punkt.PunktSentenceTokenizer(parameters, lang_vars=variables).tokenize)


class SentenceSplitter:
    """Text to its sentences."""

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[str]:
        parts = (text[start : start + _LONGEST_TEXT] for start in range(0, len(text), _LONGEST_TEXT))
        return [sentence for part in parts for sentence in self._tokenize(part)]
