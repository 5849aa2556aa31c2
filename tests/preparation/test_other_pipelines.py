"""What datatrove's own writers write is read as it is, and files of the form of dolma's and NeMo Curator's."""

import gzip
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_cpt.preparation.job import PrepareSettings
from megatron_cpt.preparation.prepare import prepare
from tests.preparation.test_prepare import decoded

WHERE = "metadata.score >= 2 and metadata.language == 'en'"


def records(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Documents with what such tools know of them; two of three have the score that is asked for."""
    for number, text in enumerate(texts):
        metadata = {"language": "en", "score": 1.0 + number % 3, "url": f"https://example.org/a/{number}?b=ü"}
        yield {"id": f"<doc/{number}>", "text": f"{text} “{number}” ü </p>", "metadata": metadata}


def assert_read(folder: Path, output: Path, tokenizer: Path, texts: list[str], where: str = WHERE) -> None:
    """All documents that meet the condition are there, each with its text and its id."""
    settings = PrepareSettings(order="as_read", id_key="id", where=where)
    manifest = prepare([str(folder)], tokenizer, output, settings, workers=1).training
    wanted = [record for record in records(texts) if record["metadata"]["score"] >= 2]
    assert 0 < len(wanted) < len(texts) and manifest.rejected == 0 and manifest.not_read == []
    assert manifest.filtered == len(texts) - len(wanted)
    assert decoded(output, tokenizer) == [record["text"] for record in wanted]
    ids = Path(f"{output}.ids.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in ids] == [record["id"] for record in wanted]


@pytest.mark.parametrize("writer", ["JsonlWriter", "ParquetWriter"])
def test_what_datatrove_writes(tmp_path: Path, tokenizer_folder: Path, texts: list[str], writer: str) -> None:
    """Its writers, run as the step of a pipeline, on two ranks."""
    reason = "datatrove is not installed: pip install 'megatron-cpt[filters]'"
    writers = pytest.importorskip("datatrove.pipeline.writers", reason=reason)
    document = importlib.import_module("datatrove.data").Document
    found = [document(**record) for record in records(texts)]
    for rank, part in enumerate((found[:40], found[40:])):
        step = getattr(writers, writer)(output_folder=str(tmp_path / "corpus"))
        assert len(list(step.run(iter(part), rank=rank, world_size=2))) == len(part)
    assert len(list((tmp_path / "corpus").iterdir())) == 2
    assert_read(tmp_path / "corpus", tmp_path / "x", tokenizer_folder, texts)


def test_documents_of_dolma(tmp_path: Path, tokenizer_folder: Path, texts: list[str]) -> None:
    """By allenai/dolma, docs/data-format.md: documents/**/*.jsonl.gz, with `added`, `created` and `source`."""
    for number, part in enumerate((range(40), range(40, len(texts)))):
        path = tmp_path / "documents" / f"2019-0{number}" / "0933_uk_all.jsonl.gz"
        path.parent.mkdir(parents=True)
        lines = [record for place, record in enumerate(records(texts)) if place in part]
        more = {"source": "common-crawl", "version": "v0", "added": "2023-02-01T00:00:00Z", "created": "2019-02-01"}
        path.write_bytes(gzip.compress("\n".join(json.dumps(line | more) for line in lines).encode()))
    assert_read(tmp_path / "documents", tmp_path / "x", tokenizer_folder, texts)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_documents_of_nemo_curator(tmp_path: Path, tokenizer_folder: Path, texts: list[str], form: str) -> None:
    """By its JsonlWriter and ParquetWriter: pandas writes a batch, whose fields are columns; slashes are escaped."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install 'megatron-cpt[eval]'")
    rows = [{"id": one["id"], "text": one["text"], **one["metadata"]} for one in records(texts)]
    (tmp_path / "corpus").mkdir()
    for number, part in enumerate((rows[:40], rows[40:])):
        path = tmp_path / "corpus" / f"{number:012x}.{form}"
        batch = pandas.DataFrame(part)
        if form == "jsonl":
            batch.to_json(path, lines=True, orient="records")
            assert "\\/" in path.read_text()
        else:
            batch.to_parquet(path, index=False)
    where = "score >= 2 and language == 'en'"
    assert_read(tmp_path / "corpus", tmp_path / "x", tokenizer_folder, texts, where)
