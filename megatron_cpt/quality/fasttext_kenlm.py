"""Scores by models that other people have trained on text: fastText classifiers and KenLM language models.

Documents are decoded: such models know words, not the ids of a tokenizer. Both libraries parse a file in C++ and run
nothing that is in it, but do not check it against malice: a file that was made to harm can corrupt their memory.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.corpus.manifest import Manifest
from megatron_cpt.corpus.stream import DocumentChunk, tokenizer_of
from megatron_cpt.quality.engines import Engine
from megatron_cpt.quality.score import Method, Scorer
from megatron_cpt.runs.folder import file_sha256
from megatron_cpt.tokenizer.tokenizer import Tokenizer


def fasttext_method(manifest: Manifest, model: Path | None, label: str | None) -> Method:
    """The probability, 0 to 1, that a supervised fastText model gives a label, for datasets tokenized as that of
    `manifest`. BadInput: no file, none of fastText, or it has no such label."""
    path = _file("fasttext", "fasttext-predict", model)
    if label is None:
        remedy = "Name one of the model, such as __label__en of lid.176.bin: --label __label__en."
        raise BadInput(Fault("--by fasttext", "needs the label whose probability is the score.", remedy))
    return _method(manifest, "fasttext", path, {"label": label}, partial(_fasttext_probability, path, label))


def kenlm_method(manifest: Manifest, model: Path | None) -> Method:
    """The perplexity a word that a KenLM model of plain words gives, for datasets tokenized as that of `manifest`.

    Words are what blanks part. Each line is a sentence, with its begin and end, and its end counts as a word.
    BadInput: no file, or none of KenLM.
    """
    path = _file("kenlm", "kenlm", model)
    return _method(manifest, "kenlm", path, {}, partial(_kenlm_perplexity, path))


def _file(by: str, package: str, model: Path | None) -> Path:
    if importlib.util.find_spec(by) is None:
        rule = f"needs the package {package}, which is not installed."
        raise BadInput(Fault(f"--by {by}", rule, "pip install 'megatron-cpt[models]'."))
    if model is None:
        raise BadInput(Fault(f"--by {by}", "needs a model.", "Give its file: --model-file FILE."))
    if not model.is_file():
        raise BadInput(Fault(f"--model-file {model}", "is no file.", "Give the model's file."))
    return model.absolute()


OfText = Callable[[str], float]


def _method(manifest: Manifest, by: str, path: Path, more: dict[str, str], open_model: Callable[[], OfText]) -> Method:
    scorer = _TextScorer(by, manifest, open_model)

    def learn(folder: Path, engine: Engine) -> Scorer:
        return scorer

    return Method({"by": by, "model_sha256": file_sha256(path), **more}, learn)


class _TextScorer:
    """Scores documents as text. What is pickled of it are its arguments: another process opens the files itself."""

    def __init__(self, by: str, manifest: Manifest, open_model: Callable[[], OfText]) -> None:
        self._arguments = (by, manifest, open_model)
        tokenizer = tokenizer_of(manifest)
        if tokenizer is None:
            rule = "reads text, and the tokenizer of the dataset is unknown or no longer where it was."
            raise BadInput(Fault(f"--by {by}", rule, "Put the tokenizer back where the manifest names it."))
        self._tokenizer, self._eod, self._of_text = tokenizer, manifest.eod, open_model()

    def __reduce__(self) -> tuple[Any, ...]:
        return _TextScorer, self._arguments

    def __call__(self, chunk: DocumentChunk) -> npt.NDArray[np.float32]:
        return np.array([self._of_text(text) for text in texts_of(chunk, self._tokenizer, self._eod)], np.float32)


def texts_of(chunk: DocumentChunk, tokenizer: Tokenizer, eod: int | None) -> Iterator[str]:
    """The text of each document, without its EOD."""
    ends = np.cumsum(chunk.lengths)
    for start, end in zip((ends - chunk.lengths).tolist(), ends.tolist(), strict=True):
        closed = end > start and chunk.tokens[end - 1] == eod
        yield tokenizer.decode_all(chunk.tokens[start : end - 1 if closed else end])


_ALL_LABELS = {"k": -1, "threshold": -1.0}
"""Of a prediction: hierarchical softmax leaves out what is below 1e-5 with a threshold of 0."""


def _fasttext_probability(path: Path, label: str) -> OfText:
    # An optional library.
    import fasttext  # noqa: PLC0415

    try:
        model = fasttext.load_model(str(path))
        labels = model.predict("", **_ALL_LABELS)[0]
    # The library raises several kinds for what it cannot read, and for models that are not supervised.
    except Exception as error:
        rule = f"is no supervised fastText model ({error})."
        raise BadInput(Fault(f"--model-file {path}", rule, "Give a .bin or .ftz with labels.")) from error
    if label not in labels:
        named = ", ".join(sorted(labels)[:10])
        more = f", and {len(labels) - 10:,} more" if len(labels) > 10 else ""
        raise BadInput(Fault(f"--label {label}", f"is no label of {path}.", f"It has {named}{more}."))

    def probability(text: str) -> float:
        # The library takes one line; it parts words at blanks of any kind.
        found, probabilities = model.predict(text.replace("\n", " "), **_ALL_LABELS)
        # The library adds 1e-5 to a probability.
        return min(float(dict(zip(found, probabilities, strict=True)).get(label, 0.0)), 1.0)

    return probability


def _kenlm_perplexity(path: Path) -> OfText:
    # An optional library.
    import kenlm  # noqa: PLC0415

    try:
        model = kenlm.Model(str(path))
    except (OSError, RuntimeError) as error:
        rule = f"is no KenLM model ({str(error).splitlines()[0]})."
        raise BadInput(
            Fault(f"--model-file {path}", rule, "Give an ARPA file or what build_binary made of one.")
        ) from error

    def perplexity(text: str) -> float:
        lines = [words for line in text.splitlines() if (words := line.split())]
        # A document without words is the end of a sentence alone.
        logs = sum(model.score(" ".join(words)) for words in lines or [[]])
        return float(10 ** (-logs / (sum(map(len, lines)) + max(len(lines), 1))))

    return perplexity
