import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_cpt.commands.dispatch import main
from megatron_cpt.config.errors import BadInput
from megatron_cpt.corpus.columns import column_path
from megatron_cpt.corpus.manifest import load_manifest, write_manifest
from megatron_cpt.corpus.scores import read_record, read_score
from megatron_cpt.corpus.selection import SelectedDataset
from megatron_cpt.corpus.stream import DocumentChunk
from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from megatron_cpt.quality.engines import Engine, OneMachine
from megatron_cpt.quality.learned import Sides, classifier_method, hashed_ngrams, importance_method
from megatron_cpt.quality.ngram import ngram_method
from megatron_cpt.quality.score import Method, Scorer, open_datasets, open_references, score
from tests.corpus.datasets import write_dataset

WORDS = {
    "sea": "the ship sailed over waves with mast rope anchor gull storm harbour sail deck",
    "farm": "the cow ate hay near barn with plough seed wheat fence tractor mill field corn",
}


def sentences(kind: str, count: int, seed: int = 0) -> list[str]:
    draw = random.Random(f"{kind} {seed}")
    return [" ".join(draw.choices(WORDS[kind].split(), k=draw.randint(15, 40))) for _ in range(count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """`mixed`: 60 documents of the sea, then 60 of the farm. `sea.jsonl`, `farm.jsonl`: other documents of each."""
    folder = tmp_path_factory.mktemp("scores")
    for kind in WORDS:
        lines = [json.dumps({"text": text}) for text in sentences(kind, 80, seed=1)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines))
    lines = [
        json.dumps({"text": text, "quality": number / 8, "meta": "x"})
        for number, text in enumerate(sentences("sea", 60) + sentences("farm", 60))
    ]
    (folder / "mixed.jsonl").write_text("\n".join(lines))
    settings = PrepareSettings(order="as_read", bos="always")
    prepare([str(folder / "mixed.jsonl")], tokenizer_folder, folder / "mixed", settings)
    prepare([str(folder / "sea.jsonl")], tokenizer_folder, folder / "sea", settings)
    return folder


@pytest.fixture
def mixed(world: Path) -> list[SelectedDataset]:
    return open_datasets([str(world / "mixed")])


def test_perplexity_is_low_where_a_document_is_like_the_reference(world: Path, mixed: list[SelectedDataset]) -> None:
    manifest = mixed[0].manifest
    for number, reference in enumerate((world / "sea.jsonl", world / "sea")):
        references = open_references("--reference", [str(reference)], manifest)
        method = ngram_method(manifest, references, 3, "text")
        (done,) = score(mixed, f"ngram-{number}", method, OneMachine(threads=2))
        assert not done.reused
        scores = read_score(world / "mixed", f"ngram-{number}", manifest)
        assert scores[:60].max() < scores[60:].min()
    # The same text, as a file or as a dataset with BOS in another framing, is the same reference.
    assert (read_score(world / "mixed", "ngram-0", manifest) == scores).all()


def test_a_score_that_is_there_is_kept_and_other_settings_make_it_anew(
    world: Path, mixed: list[SelectedDataset]
) -> None:
    references = open_references("--reference", [str(world / "sea.jsonl")], mixed[0].manifest)
    learned = []

    def counted(method: Method) -> Method:
        def learn(folder: Path, engine: Engine) -> Scorer:
            learned.append(method.how["order"])
            return method.learn(folder, engine)

        return Method(method.how, learn)

    made = [
        score(mixed, "kept", counted(ngram_method(mixed[0].manifest, references, order, "text")), overwrite=order == 1)[
            0
        ].reused
        for order in (2, 2, 1)
    ]
    assert made == [False, True, False]
    assert learned == [2, 1]
    # Another score is not lost for it, nor one that was made elsewhere.
    with pytest.raises(BadInput, match=r"kept\.npy: is a score that was made in another way"):
        score(mixed, "kept", ngram_method(mixed[0].manifest, references, 2, "text"))
    np.save(column_path(world / "mixed", "foreign"), np.zeros(mixed[0].manifest.documents, np.float32))
    with pytest.raises(BadInput, match=r"foreign\.npy: is a score that was made elsewhere"):
        score(mixed, "foreign", ngram_method(mixed[0].manifest, references, 2, "text"))
    # Torn away between the array and its record: the array is not taken for another score's.
    np.save(column_path(world / "mixed", "kept"), np.zeros(120, np.float32))
    assert not score(mixed, "kept", ngram_method(mixed[0].manifest, references, 1, "text"))[0].reused


def test_importance_weights_and_probabilities_tell_the_kinds_apart(world: Path, mixed: list[SelectedDataset]) -> None:
    manifest = mixed[0].manifest
    sea, farm = (open_references("--reference", [str(world / f"{kind}.jsonl")], manifest) for kind in WORDS)
    score(mixed, "importance", importance_method(mixed, sea, 500, "text"))
    weights = read_score(world / "mixed", "importance", manifest)
    assert weights[:60].min() > 0 > weights[60:].max()
    score(mixed, "class", classifier_method(manifest, Sides(sea, farm), 1, "text"))
    probabilities = read_score(world / "mixed", "class", manifest)
    assert ((probabilities > 0.5) == (np.arange(120) < 60)).all()
    assert (probabilities >= 0).all() and (probabilities <= 1).all()


def test_the_number_of_threads_changes_nothing(world: Path, mixed: list[SelectedDataset]) -> None:
    references = open_references("--reference", [str(world / "sea.jsonl")], mixed[0].manifest)
    for workers in (1, 3):
        score(mixed, f"threads-{workers}", importance_method(mixed, references, 100, "text"), OneMachine(workers))
    contents = [column_path(world / "mixed", f"threads-{workers}").read_bytes() for workers in (1, 3)]
    assert contents[0] == contents[1]


def test_importance_weights_in_literal_numbers(tmp_path: Path) -> None:
    """Pool 0 1 and 1 0, reference 0 1 0 1: without collisions, every bucket has one count more than it was seen."""
    pool, target = write_dataset(tmp_path / "pool", [2, 2]), write_dataset(tmp_path / "target", [4])
    (tmp_path / "pool.bin").write_bytes(np.array([0, 1, 1, 0], "<i4").tobytes())
    (tmp_path / "target.bin").write_bytes(np.array([0, 1, 0, 1], "<i4").tobytes())
    for prefix in (pool, target):
        prefix.with_name(f"{prefix.name}.manifest.json").unlink(missing_ok=True)
    parts = open_datasets([str(pool)])
    references = open_references("--reference", [str(target)], parts[0].manifest)
    score(parts, "w", importance_method(parts, references, 1000, "text"))
    # Of the reference: 0 and 1 twice, 0-1 twice, 1-0 once. Of the pool: 0 and 1 twice, 0-1 and 1-0 once.
    shift = np.log(1006 / 1007)
    expected = [3 * shift + np.log(3 / 2), 3 * shift]
    assert read_score(pool, "w", parts[0].manifest) == pytest.approx(expected, abs=1e-5)


def test_ngrams_stay_inside_their_document() -> None:
    chunk = DocumentChunk(np.array([1, 2, 3, 1, 2]), np.array([2, 0, 1, 2]))
    features, documents = hashed_ngrams(chunk, 3, 1 << 40)
    assert documents.tolist() == [0, 0, 2, 3, 3, 0, 3]
    assert features[0] == features[3] and features[5] == features[6]
    assert len(set(features.tolist())) == 4


def test_a_field_is_found_whatever_the_order(world: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes((world / "mixed.jsonl").read_bytes())
    prepare([str(corpus)], tokenizer_folder, tmp_path / "out", PrepareSettings(holdout=0.2))
    words = ["score", str(tmp_path / "out"), str(tmp_path / "out.validation"), "--by", "field"]
    assert main([*words, "--field", "quality", "--name", "quality"]) == 0
    numbers = {text: line["quality"] for line in map(json.loads, corpus.open()) for text in [line["text"]]}
    seen = []
    for prefix in ("out", "out.validation"):
        (part,) = open_datasets([str(tmp_path / prefix)])
        scores = read_score(part.prefix, "quality", part.manifest)
        sizes = np.load(f"{part.prefix}.documents.npy")["bytes"]
        by_size: dict[int, set[float]] = {}
        for text, number in numbers.items():
            by_size.setdefault(len(text), set()).add(number)
        assert all(float(s) in by_size[int(size)] for s, size in zip(scores, sizes, strict=True))
        seen += scores.tolist()
    assert sorted(seen) == [number / 8 for number in range(120)]
    assert main([*words, "--field", "meta"]) == 2
    corpus.write_bytes(corpus.read_bytes() + b"\n")
    assert main([*words, "--field", "quality"]) == 2
    assert main([*words, "--field", "quality", "--input", str(corpus)]) == 0


def test_the_command_names_the_reference_in_the_record(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", str(world / "mixed"), "--by", "ngram", "--reference", str(world / "sea.jsonl"), "--quiet"]
    assert main(words) == 0
    assert "ngram of 120 documents" in capsys.readouterr().out
    record = read_record(world / "mixed", "ngram")
    assert record is not None
    assert record.how["order"] == 3 and record.how["reference"][0]["name"] == "sea.jsonl"
    assert main(words) == 0
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "ngram"], "--reference: is needed"),
        (["--by", "ngram", "--reference", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--by", "ngram", "--reference", "other"], "another tokenizer"),
        (["--by", "ngram", "--reference", "sea.jsonl", "--order", "0"], "from 1 to 8"),
        (["--by", "classifier", "--positive", "sea.jsonl"], "--negative"),
        (["--by", "ngram", "--reference", "sea.jsonl", "--name", "a b"], "no name"),
        *(
            (["--by", "ngram", "--reference", "sea.jsonl", "--name", name], "the name of something else")
            for name in ("documents", "selection", "tokens")
        ),
        (["--by", "field"], "needs a field"),
        (["--by", "ngram", "--field", "x"], "--field: is of --by field, not of ngram. Leave it out."),
        (["--by", "ngram", "--nproc", "2"], "--nproc: is of --by model, not of ngram. Leave it out."),
        (["--by", "ngram", "--engine", "ray", "--address", ""], "--address: is empty"),
    ],
)
def test_bad_input_is_refused(
    world: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    other = load_manifest(write_dataset(world / "other", [3, 3]))
    write_manifest(world / "other", replace(other, tokenizer="another"))
    assert main(["score", "mixed", "--quiet", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_dataset_that_is_named_twice_is_scored_once(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learned of all datasets would count it twice."""
    monkeypatch.chdir(world)
    names = ["mixed", str(world / "mixed"), "../" + world.name + "/mi*d"]
    assert [str(dataset.prefix.resolve()) for dataset in open_datasets(names)] == [str(world.resolve() / "mixed")]


def test_a_selection_is_no_dataset(world: Path) -> None:
    with pytest.raises(BadInput, match="datasets are scored whole"):
        open_datasets([str(world / "some.selection.json")])


def test_lowest_perplexity_picks_medical_text(
    unpack: Callable[[str], Path], tokenizer_folder: Path, tmp_path: Path
) -> None:
    """World history and an encyclopedia beside a textbook of anatomy, a model of consumer-health answers."""

    def texts(name: str, words: int | None, most: int) -> list[str]:
        path = unpack(f"{name}/{name}.jsonl.zst")
        whole = [json.loads(line)["text"].split(" ") for line in path.open()][:most]
        if words is None:
            return [" ".join(text) for text in whole]
        return [" ".join(t[i : i + words]) for t in whole for i in range(0, min(len(t), 8 * words) - words, words)]

    general = texts("general_openstax_world_history", 300, 30) + texts("general_wikitext2_test_raw", 300, 30)
    medical = texts("med_openstax_anatomy", 300, 40)
    for name, documents in (
        ("general", general),
        ("medical", medical),
        ("reference", texts("med_medquad", None, 700)),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        if name != "reference":
            prepare([str(path)], tokenizer_folder, tmp_path / name)
    datasets = [str(tmp_path / "general"), str(tmp_path / "medical")]
    assert main(["score", *datasets, "--by", "ngram", "--reference", str(tmp_path / "reference.jsonl"), "--quiet"]) == 0
    scores = [np.load(column_path(name, "ngram")) for name in datasets]
    is_medical = np.repeat([False, True], [len(part) for part in scores])
    share = is_medical[np.argsort(np.concatenate(scores))][: is_medical.sum()].mean()
    # As many are taken as there are medical ones: precision and recall are this one number.
    assert share > 0.9
