"""`megatron-cpt prepare` against the way Megatron-LM's preprocess_data.py works, same text, workers and bytes.

The baseline is that script's way: a pool of worker processes that parse and tokenize document by document
with transformers' fast tokenizer, and one parent that writes through Megatron-Core's IndexedDatasetBuilder.
Each contender is a process of its own; its time runs from the end of its imports to its files on disk, and
ours includes comparing the two tokenizer libraries, hashing, and everything else that prepare does.

Text: shared/data where it is beside the repository, else prose and code of Python's standard library.
The last line of standard output is one JSON object.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import zstandard

import megatron_cpt  # noqa: F401  (gives Megatron-Core a CPU platform)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"
REAL_CORPORA = (
    "med_pubmedqa_abstracts",
    "general_openstax_world_history",
    "med_medquad",
    "general_classic_books",
    "med_evidence_inference",
)
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Measured:
    """One contender's figures."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    """Processor time of it and its workers: what a loaded machine does not change."""
    peak_bytes: int
    """Peak resident memory of the process, and of its largest worker times the workers."""
    data_sha256: str
    """Of the .bin."""
    index_sha256: str
    """Of the .idx."""


class Clock:
    """Wall and processor seconds, of this process and the workers that it has waited for, from now on."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), self._processor())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._start[0], self._processor() - self._start[1]

    @staticmethod
    def _processor() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


def ours(corpus: Path, folder: Path, output: Path, workers: int, fast: bool) -> tuple[float, float]:
    """`megatron-cpt prepare` in input order; wall and processor seconds."""
    from megatron_cpt.corpus.job import PrepareSettings  # noqa: PLC0415
    from megatron_cpt.corpus.prepare import prepare  # noqa: PLC0415

    settings = PrepareSettings(order="as_read", keep_duplicates=True)
    clock = Clock()
    prepare([str(corpus)], folder, output, settings, workers=workers, fast=fast)
    return clock.read()


def megatron(corpus: Path, folder: Path, output: Path, workers: int) -> tuple[float, float]:
    """Megatron-LM's way; wall and processor seconds."""
    import torch  # noqa: PLC0415
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder  # noqa: PLC0415

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    vocabulary = len(_worker_tokenizer(folder))
    clock = Clock()
    output.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{output}.bin", dtype=DType.optimal_dtype(vocabulary))
    with corpus.open(encoding="utf-8") as lines, multiprocessing.Pool(workers, _start_worker, (folder,)) as pool:
        for ids in pool.imap(_encode, lines, 32):
            builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
        builder.finalize(f"{output}.idx")
        pool.close()
        pool.join()
    return clock.read()


def _worker_tokenizer(folder: Path):  # type: ignore[no-untyped-def]
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END_OF_TEXT)


def _start_worker(folder: Path) -> None:
    global _tokenizer, _eod
    _tokenizer = _worker_tokenizer(folder)
    _eod = _tokenizer.eos_token_id


def _encode(line: str) -> list[int]:
    ids: list[int] = _tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids
    ids.append(_eod)
    return ids


def libraries_alone(corpus: Path, folder: Path, workers: int) -> float:
    """JSON parsing and gigatoken, nothing written: the limit; wall seconds. NaN where it is not installed."""
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    try:
        import gigatoken  # noqa: PLC0415
    except ImportError:
        return float("nan")
    start = time.perf_counter()
    backend = gigatoken.Tokenizer(str(folder / "tokenizer.json"))
    batch: list[str] = []
    size = 0
    with corpus.open("rb") as lines:
        for line in lines:
            batch.append(orjson.loads(line)["text"])
            size += len(line)
            if size > 4_000_000:
                backend.encode_batch(batch)
                batch, size = [], 0
    backend.encode_batch(batch)
    return time.perf_counter() - start


def text(megabytes: float) -> Iterator[str]:
    """Documents of every corpus in turn, up to a size."""
    left = int(megabytes * 1e6)
    sources = [_real(name) for name in REAL_CORPORA] if SHARED.is_dir() else [_library_text()]
    while sources and left > 0:
        for source in list(sources):
            document = next(source, None)
            if document is None:
                sources.remove(source)
            elif END_OF_TEXT not in document:
                # transformers would read the control token out of the text; ours does not.
                left -= len(document.encode())
                yield document


def _real(name: str) -> Iterator[str]:
    with zstandard.open(SHARED / name / f"{name}.jsonl.zst", "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield orjson.loads(line)["text"]


def _library_text() -> Iterator[str]:
    from examples.quickstart.corpora import domain_documents, general_documents, standard_library  # noqa: PLC0415

    for documents in (general_documents, domain_documents):
        for document in documents(standard_library()):
            yield document.text


def tokenizer_folder(folder: Path, corpus: Path) -> str:
    """A Hugging Face folder: GPT-2's where it is, else one trained on the text; returns what it is."""
    real = SHARED / "tokenizers/gpt2_tokenizer.json.zst"
    if not real.is_file():
        from examples.quickstart.tokenizer import write_base_folder  # noqa: PLC0415

        write_base_folder([corpus], folder)
        return "a byte-level BPE of 4,096 entries, trained on the text"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(zstandard.ZstdDecompressor().stream_reader(real.read_bytes()).read())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    return "GPT-2's"


def contend(words: argparse.Namespace) -> None:
    """Runs one contender in this process and prints its figures."""
    corpus, folder, output = Path(words.corpus), Path(words.tokenizer), Path(words.output)
    if words.contender == "megatron":
        seconds, processor = megatron(corpus, folder, output, words.workers)
    elif words.contender == "limit":
        print(json.dumps(libraries_alone(corpus, folder, words.workers)))
        return
    else:
        seconds, processor = ours(corpus, folder, output, words.workers, fast=words.contender == "ours")
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = Measured(
        seconds=seconds,
        cpu_seconds=processor,
        peak_bytes=1024 * (own.ru_maxrss + words.workers * children.ru_maxrss),
        data_sha256=hashlib.sha256(Path(f"{output}.bin").read_bytes()).hexdigest(),
        index_sha256=hashlib.sha256(Path(f"{output}.idx").read_bytes()).hexdigest(),
    )
    print(json.dumps(asdict(measured)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=50, help="of text (default 50)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: the cores")
    for hidden in ("contender", "corpus", "tokenizer", "output"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.contender:
        contend(words)
        return 0
    with tempfile.TemporaryDirectory() as place:
        return compare(Path(place), words.megabytes, words.workers)


def compare(place: Path, megabytes: float, workers: int) -> int:
    """Runs every contender on one corpus and prints the table; 1 where their bytes differ."""
    documents = list(text(megabytes))
    corpus = place / "corpus.jsonl"
    corpus.write_bytes(b"".join(orjson.dumps({"text": d}, option=orjson.OPT_APPEND_NEWLINE) for d in documents))
    size = sum(len(document.encode()) for document in documents)
    kind = tokenizer_folder(place / "tokenizer", corpus)
    results: dict[str, Measured] = {}
    for name in ("ours", "ours, tokenizers library", "megatron"):
        results[name] = Measured(**json.loads(run(name, place, workers)))
    limit = json.loads(run("limit", place, workers))
    tokens = Path(place / "ours.bin").stat().st_size // 2  # uint16: both vocabularies are small
    print(f"{platform.machine()}, {workers} workers of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{len(documents):,} documents, {size / 1e6:.1f} MB of text, {tokens:,} tokens, tokenizer {kind}")
    print(f"{'':<26}{'s':>8}{'CPU s':>8}{'MB/s':>8}{'tokens/s':>13}{'peak MB':>9}")
    for name, result in results.items():
        print(
            f"{name:<26}{result.seconds:>8.2f}{result.cpu_seconds:>8.2f}{size / 1e6 / result.seconds:>8.2f}"
            f"{tokens / result.seconds:>13,.0f}{result.peak_bytes / 1e6:>9.0f}"
        )
    print(f"{'JSON and gigatoken alone':<26}{limit:>8.2f}")
    equal = len({(result.data_sha256, result.index_sha256) for result in results.values()}) == 1
    print(f"identical .bin and .idx: {equal}")
    base, best = results["megatron"], results["ours"]
    details = {
        "ratio_tokenizers_library": base.seconds / results["ours, tokenizers library"].seconds,
        "ratio_cpu": base.cpu_seconds / best.cpu_seconds,
        "over_libraries_alone": best.seconds / limit,
        "identical_bytes": equal,
        "megabytes": size / 1e6,
        "tokens": tokens,
        "tokenizer": kind,
        "workers": workers,
        "results": {name: asdict(result) for name, result in results.items()},
    }
    summary = {
        "benchmark": "prepare",
        "ratio": base.seconds / best.seconds,
        "baseline": "pool of workers, transformers tokenizer per document, IndexedDatasetBuilder",
        "details": details,
    }
    print(json.dumps(summary))
    return 0 if equal else 1


def run(name: str, place: Path, workers: int) -> str:
    """The last line that a contender prints, in a process of its own."""
    words = ["--contender", name, "--workers", str(workers), "--corpus", str(place / "corpus.jsonl")]
    words += ["--tokenizer", str(place / "tokenizer"), "--output", str(place / name.replace(", ", "-"))]
    command = [sys.executable, "-m", "benchmarks.prepare", *words]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


if __name__ == "__main__":
    # As `python benchmarks/prepare.py` the examples are found from the repository's root.
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
