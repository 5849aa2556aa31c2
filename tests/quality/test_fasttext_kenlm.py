"""`score --by fasttext` and `--by kenlm`: models written by hand here, and their numbers worked out."""

import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.corpus.manifest import load_manifest
from megatron_cpt.corpus.scores import read_score

WriteJsonl = Callable[..., Path]
TEXTS = ["the heart", "heart the\nthe heart", "liver\n\n  the", "so it is"]


def prepared(tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path) -> str:
    corpus = write_jsonl("a.jsonl", TEXTS)
    prefix = f"{tmp_path}/out"
    words = ["--tokenizer", str(tokenizer_folder), "--order", "as_read", "--quiet", "--output", prefix]
    assert main(["prepare", str(corpus), *words]) == 0
    return prefix


WORDS = ("</s>", "the", "heart", "is")
LABELS = ("__label__hq", "__label__lq", "__label__other")
ROWS = np.array([[0.5, -0.25], [1.0, 2.0], [-1.5, 0.75], [0.0, -3.0]], np.float32)
OF_LABELS = np.array([[2.0, -1.0], [0.5, 1.5], [-1.0, 0.25]], np.float32)


def write_fasttext(path: Path) -> None:
    """A supervised model of softmax without subwords: fastText's format of version 12."""
    softmax, supervised = 3, 3
    settings = (2, 5, 5, 1, 5, 1, softmax, supervised, 0, 0, 0, 100)
    content = struct.pack("<2i", 793712314, 12) + struct.pack("<12i", *settings) + struct.pack("<d", 1e-4)
    content += struct.pack("<3i2q", len(WORDS) + len(LABELS), len(WORDS), len(LABELS), 100, -1)
    for kind, entries in enumerate((WORDS, LABELS)):
        for entry in entries:
            content += entry.encode() + b"\0" + struct.pack("<qb", 10, kind)
    for matrix in (ROWS, OF_LABELS):
        content += struct.pack("<?2q", False, *matrix.shape) + matrix.tobytes()
    path.write_bytes(content)


def probabilities(text: str) -> npt.NDArray[np.float64]:
    """Of the labels: softmax over the mean of the rows of the known words and of the end of the line."""
    rows = [WORDS.index(word) for word in text.split() if word in WORDS]
    logits = OF_LABELS.astype(np.float64) @ ROWS[[*rows, 0]].mean(axis=0)
    return np.exp(logits) / np.exp(logits).sum()


def test_the_probability_of_a_fasttext_label(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fasttext")
    prefix, model = prepared(tmp_path, write_jsonl, tokenizer_folder), tmp_path / "model.bin"
    write_fasttext(model)
    call = ["score", prefix, "--by", "fasttext", "--quiet", "--model-file", str(model)]
    for number, label in enumerate(LABELS):
        assert main([*call, "--label", label, "--name", label.strip("_")]) == 0
        scores = read_score(prefix, label.strip("_"), load_manifest(prefix))
        # fastText adds 1e-5 to a probability before it takes the logarithm.
        np.testing.assert_allclose(scores, [probabilities(text)[number] + 1e-5 for text in TEXTS], rtol=1e-5)
    capsys.readouterr()
    # The same file and label: nothing to do; another label is another score.
    assert main([*call, "--label", LABELS[0], "--name", "label__hq"]) == 0
    assert "already there" in capsys.readouterr().out
    assert main([*call, "--label", LABELS[1], "--name", "label__hq"]) == 2
    assert main([*call, "--label", "__label__de"]) == 2
    assert "It has __label__hq, __label__lq, __label__other." in capsys.readouterr().err
    taken = ["--keep", "highest", "--documents", "2", "--output", f"{tmp_path}/best"]
    assert main(["select", prefix, "--by", "label__hq", *taken]) == 0


ARPA = """\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.5
-0.7\t</s>
-0.9\tthe\t-0.3
-1.1\theart\t-0.2

\\2-grams:
-0.2\t<s> the
-0.4\tthe heart
-0.3\theart </s>

\\end\\
"""


def perplexity(logs: Sequence[float]) -> float:
    return float(10 ** -np.mean(logs))


def test_the_perplexity_of_a_kenlm_model(tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path) -> None:
    pytest.importorskip("kenlm")
    prefix, model = prepared(tmp_path, write_jsonl, tokenizer_folder), tmp_path / "model.arpa"
    model.write_text(ARPA)
    assert main(["score", prefix, "--by", "kenlm", "--quiet", "--model-file", str(model)]) == 0
    the_heart = [-0.2, -0.4, -0.3]
    heart_the = [-0.5 - 1.1, -0.2 - 0.9, -0.3 - 0.7]
    liver = [-0.5 - 1.0, -0.7]
    the = [-0.2, -0.3 - 0.7]
    so_it_is = [-0.5 - 1.0, -1.0, -1.0, -0.7]
    expected = [the_heart, heart_the + the_heart, liver + the, so_it_is]
    scores = read_score(prefix, "kenlm", load_manifest(prefix))
    np.testing.assert_allclose(scores, [perplexity(logs) for logs in expected], rtol=1e-5)


@pytest.mark.parametrize("by", ["fasttext", "kenlm"])
def test_what_is_no_model_is_refused(
    by: str, tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(by)
    prefix, model = prepared(tmp_path, write_jsonl, tokenizer_folder), tmp_path / "model"
    model.write_text("words\n")
    call = ["score", prefix, "--by", by, "--quiet", *(["--label", "a"] if by == "fasttext" else [])]
    for words, message in (
        ([], "needs a model"),
        (["--model-file", str(tmp_path / "none")], "is no file"),
        (["--model-file", str(model)], "is no supervised fastText model" if by == "fasttext" else "is no KenLM model"),
    ):
        assert main([*call, *words]) == 2
        assert message in capsys.readouterr().err
    if by == "fasttext":
        assert main([*call[:-2], "--model-file", str(model)]) == 2
        assert "needs the label" in capsys.readouterr().err


def test_without_the_tokenizer_there_is_no_text(
    tmp_path: Path, write_jsonl: WriteJsonl, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("kenlm")
    copy = Path(shutil.copytree(tokenizer_folder, tmp_path / "copy"))
    prefix, model = prepared(tmp_path, write_jsonl, copy), tmp_path / "model.arpa"
    model.write_text(ARPA)
    copy.rename(tmp_path / "elsewhere")
    assert main(["score", prefix, "--by", "kenlm", "--quiet", "--model-file", str(model)]) == 2
    assert "the tokenizer of the dataset is unknown or no longer where it was" in capsys.readouterr().err
