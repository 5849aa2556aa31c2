"""`megatron-cpt prepare` against Megatron-LM's two ways (preparers.py): same text, workers and bytes.

Each contender is a process of its own; those of a few seconds run three times, in turns, and the median counts. Time
runs from the end of the imports to files on disk, and ours includes comparing the two tokenizer libraries, hashing,
and everything else that prepare does.

Text: shared/data where it is beside the repository, else prose and code of Python's standard library; when that is used
up, the sources of the installed packages. What is done once whatever the size (opening the tokenizer, comparing) weighs
the more the less text there is: --megabytes.
The last line of standard output is one JSON object.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

# As `python benchmarks/prepare.py` the other files are found from the repository's root.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import orjson  # noqa: E402
import zstandard  # noqa: E402

from benchmarks.machine import machine, print_result  # noqa: E402
from benchmarks.preparers import END_OF_TEXT, Measured  # noqa: E402
from megatron_cpt.quickstart.base_folder import write_base_folder  # noqa: E402
from megatron_cpt.quickstart.corpora import domain_documents, general_documents, standard_library  # noqa: E402

SHARED = ROOT.parent / "shared/data"
REAL_CORPORA = (
    "med_pubmedqa_abstracts",
    "general_openstax_world_history",
    "med_medquad",
    "general_classic_books",
    "med_evidence_inference",
)
SHOWN = {
    "ours": "ours",
    "ours-tokenizers": "ours, tokenizers library alone",
    "pool": "Megatron-LM's preprocess_data.py",
    "fast": "Megatron-LM's preprocess_data_fast.py",
    "limit": "JSON and gigatoken alone",
}
GIGATOKEN = ("fast", "limit")
"""Contenders that need it."""
QUICK = ("ours", "fast", "limit")
"""Contenders that take so little time that one run says little."""


def text(megabytes: float) -> Iterator[str]:
    """Documents of every corpus in turn, then of the installed packages, up to a size."""
    left = int(megabytes * 1e6)
    corpora = [_real(name) for name in REAL_CORPORA] if SHARED.is_dir() else [_library_text()]
    for document in chain(_in_turn(corpora), _installed_sources()):
        # transformers would read the control token out of the text; ours does not.
        if END_OF_TEXT not in document:
            yield document
            left -= len(document.encode())
        if left <= 0:
            return


def _in_turn(sources: list[Iterator[str]]) -> Iterator[str]:
    while sources:
        for source in list(sources):
            document = next(source, None)
            if document is None:
                sources.remove(source)
            else:
                yield document


def _real(name: str) -> Iterator[str]:
    with zstandard.open(SHARED / name / f"{name}.jsonl.zst", "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield orjson.loads(line)["text"]


def _library_text() -> Iterator[str]:
    for documents in (general_documents, domain_documents):
        for document in documents(standard_library()):
            yield document.text


def _installed_sources() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text.strip():
            yield text


def tokenizer_folder(folder: Path, corpus: Path) -> str:
    """A Hugging Face folder: GPT-2's where it is, else one trained on the text; returns what it is."""
    real = SHARED / "tokenizers/gpt2_tokenizer.json.zst"
    if not real.is_file():
        write_base_folder([corpus], folder)
        return "a byte-level BPE of 4,096 entries, trained on the text"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(zstandard.ZstdDecompressor().stream_reader(real.read_bytes()).read())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
    return "GPT-2's"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=220, help="of text (default 220)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: the cores")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        return compare(Path(place), words.megabytes, words.workers)


def compare(place: Path, megabytes: float, workers: int) -> int:
    """Runs every contender on one corpus and prints the table; 1 where their bytes differ."""
    corpus = place / "corpus.jsonl"
    documents = size = 0
    # One at a time: Linux counts the memory of this process to those that it starts.
    with corpus.open("wb") as file:
        for document in text(megabytes):
            file.write(orjson.dumps({"text": document}, option=orjson.OPT_APPEND_NEWLINE))
            documents, size = documents + 1, size + len(document.encode())
    kind = tokenizer_folder(place / "tokenizer", corpus)
    here = importlib.util.find_spec("gigatoken") is not None
    turns: dict[str, list[Measured]] = {name: [] for name in SHOWN if here or name not in GIGATOKEN}
    for turn in range(3):
        for name in (name for name in turns if turn == 0 or name in QUICK):
            turns[name].append(run(name, place, workers))
    results = {name: sorted(runs, key=lambda run: run.seconds)[len(runs) // 2] for name, runs in turns.items()}
    tokens = Path(place / "ours.bin").stat().st_size // 2  # uint16: both vocabularies are small
    print(f"{machine()}, {workers} workers, load {os.getloadavg()[0]:.1f}")
    print(f"{documents:,} documents, {size / 1e6:.1f} MB of text, {tokens:,} tokens, tokenizer {kind}")
    print(f"{'':<40}{'s':>8}{'CPU s':>8}{'MB/s':>8}{'tokens/s':>13}{'peak MB':>9}")
    for name, result in results.items():
        print(
            f"{SHOWN[name]:<40}{result.seconds:>8.2f}{result.cpu_seconds:>8.2f}{size / 1e6 / result.seconds:>8.2f}"
            f"{tokens / result.seconds:>13,.0f}{result.peak_bytes / 1e6:>9.0f}"
        )
    written = {(result.data_sha256, result.index_sha256) for name, result in results.items() if name != "limit"}
    print(f"identical .bin and .idx: {len(written) == 1}")
    ours = results["ours"].seconds
    ratios = {name: result.seconds / ours for name, result in results.items()}
    details = {
        "ratio_tokenizers_library": results["pool"].seconds / results["ours-tokenizers"].seconds,
        "ratio_cpu": results["pool"].cpu_seconds / results["ours"].cpu_seconds,
        "ratio_fast_script": ratios.get("fast"),
        "over_limit": 1 / ratios["limit"] if "limit" in ratios else None,
        "identical_bytes": len(written) == 1,
        "megabytes": size / 1e6,
        "tokens": tokens,
        "tokenizer": kind,
        "workers": workers,
        "results": {name: asdict(result) for name, result in results.items()},
    }
    baseline = "pool of workers, transformers tokenizer per document, IndexedDatasetBuilder"
    print_result("prepare", ratios["pool"], baseline, details)
    return 0 if len(written) == 1 else 1


def run(name: str, place: Path, workers: int) -> Measured:
    """A contender's figures, from a process of its own that finds nothing of an earlier one."""
    for path in place.glob(f"{name}.*"):
        path.unlink()
    words = [name, *(str(place / part) for part in ("corpus.jsonl", "tokenizer", name)), str(workers)]
    command = [sys.executable, "-m", "benchmarks.preparers", *words]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
