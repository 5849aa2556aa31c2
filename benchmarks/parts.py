"""The last pass of `megatron-cpt prepare` in parts: whether the bytes are those of one dataset, and its memory.

    python benchmarks/parts.py --documents 2000000

The first table prepares a small corpus for 1, 2 and 7 parts by each engine, and compares every file with those of one
machine. Ray is left out where it is not installed. The second table joins many tiny documents: the peak memory of the
process that decides and joins part 1, and of one that joins another part (proportional set size, which counts shared
pages once, sampled). The last line of standard output is one JSON object.
"""

import argparse
import hashlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

# As `python benchmarks/parts.py` the other files are found from the repository's root.
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import orjson  # noqa: E402
import psutil  # noqa: E402

from benchmarks.machine import machine, print_result  # noqa: E402
from megatron_cpt.corpus.indexed import bin_path  # noqa: E402
from megatron_cpt.corpus.stream import expand_paths  # noqa: E402
from megatron_cpt.preparation.job import PrepareSettings  # noqa: E402
from megatron_cpt.preparation.prepare import Shard, merge, prepare, prepare_shard  # noqa: E402
from megatron_cpt.preparation.ray_engine import prepare_on_ray  # noqa: E402
from megatron_cpt.quickstart.base_folder import write_base_folder  # noqa: E402
from megatron_cpt.quickstart.corpora import general_documents, standard_library  # noqa: E402

PARTS = (1, 2, 7)
SHARDS = 3
SETTINGS = PrepareSettings(holdout=0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2_000_000, help="tiny ones (default 2,000,000)")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tokenizer, corpus = place / "tokenizer", place / "corpus"
        write_corpus(corpus)
        write_base_folder(sorted(corpus.iterdir()), tokenizer)
        print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
        equal = compare(place, corpus, tokenizer)
        peaks = measure(place, tokenizer, words.documents)
    details = {"equal": equal, "documents": words.documents, "peak_bytes": peaks}
    print_result("parts", peaks[max(PARTS)] / peaks[1], "peak memory of a process that joins everything", details)
    return 0 if all(equal.values()) else 1


def write_corpus(folder: Path) -> None:
    """Prose of Python's standard library in 8 files, some of its documents twice."""
    folder.mkdir()
    texts = [document.text for document in general_documents(standard_library())]
    for number in range(8):
        lines = [orjson.dumps({"text": text}) for text in [*texts[number::8], *texts[:20]]]
        (folder / f"{number}.jsonl").write_bytes(b"\n".join(lines))


def compare(place: Path, corpus: Path, tokenizer: Path) -> dict[str, bool]:
    """Prints which ways give the bytes of one dataset on one machine, by parts and engine."""
    engines = ["local", "shards", *(["ray"] if importlib.util.find_spec("ray") else [])]
    equal = {}
    if "ray" in engines:
        importlib.import_module("ray").init(log_to_driver=False)  # one cluster for all calls
    print(f"{'parts':<8}" + "".join(f"{name:>10}" for name in engines))
    for parts in PARTS:
        for engine in engines:
            output = place / f"{engine}-{parts}" / "x"
            run(engine, corpus, tokenizer, output, parts)
            # Laid end to end they are one dataset; each file is that of the same part on one machine.
            whole = joined(output) == joined(place / "local-1" / "x")
            equal[f"{engine} {parts}"] = whole and digests(output) == digests(place / f"local-{parts}" / "x")
        print(f"{parts:<8}" + "".join(f"{'equal' if equal[f'{name} {parts}'] else 'OTHER':>10}" for name in engines))
    return equal


def run(engine: str, corpus: Path, tokenizer: Path, output: Path, parts: int) -> None:
    """Prepares the corpus in so many parts."""
    settings = replace(SETTINGS, parts=parts)
    if engine == "local":
        prepare([str(corpus)], tokenizer, output, settings)
    elif engine == "ray":
        prepare_on_ray([str(corpus)], tokenizer, output, settings)
    else:
        for number in range(1, SHARDS + 1):
            prepare_shard([str(corpus)], tokenizer, output, settings, Shard(number, SHARDS))
        for number in range(1, parts + 1):
            merge(output, parts=parts, part=number)


def joined(output: Path) -> list[str]:
    """Hashes of the tokens of all parts, laid end to end: of the training documents, and of the held-out ones."""
    hashes = []
    for name in (output, f"{output}.validation"):
        digest = hashlib.sha256()
        for prefix in expand_paths([str(name)]):
            digest.update(bin_path(prefix).read_bytes())
        hashes.append(digest.hexdigest())
    return hashes


def digests(output: Path) -> dict[str, str]:
    """Hash of every file that was written."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.parent.iterdir()}


def measure(place: Path, tokenizer: Path, documents: int) -> dict[int, int]:
    """Prints the memory of joining one part of many tiny documents, and returns it by the number of parts."""
    corpus = place / "tiny.jsonl"
    with corpus.open("wb") as file:
        for first in range(0, documents, 10_000):
            lines = [b'{"text": "No. %d"}\n' % number for number in range(first, min(first + 10_000, documents))]
            file.write(b"".join(lines))
    output = place / "tiny" / "x"
    prepare_shard([str(corpus)], tokenizer, output, SETTINGS, Shard(1, 1))
    peaks = {}
    print(f"{documents:,} documents\n{'parts':<8}{'first MB':>12}{'another MB':>12}{'bytes a document':>18}")
    for parts in PARTS:
        copy = shutil.copytree(output.parent, place / f"tiny-{parts}") / "x"
        command = [sys.executable, "-m", "megatron_cpt.commands.dispatch", "merge", str(copy), "--parts", str(parts)]
        first, other = (
            peak(subprocess.Popen([*command, "--part", str(part)], cwd=ROOT, stdout=subprocess.DEVNULL))
            if part <= parts
            else 0
            for part in (1, 2)
        )
        peaks[parts] = max(first, other)
        print(f"{parts:<8}{first / 1e6:>12.0f}{other / 1e6:>12.0f}{peaks[parts] / documents:>18.0f}", flush=True)
        shutil.rmtree(copy.parent)
    return peaks


def peak(process: "subprocess.Popen[bytes]") -> int:
    """Most bytes that a process had to itself, shared pages in proportion, until it ended."""
    most = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            most = max(most, watched.memory_full_info().pss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(process.returncode)
    return most


if __name__ == "__main__":
    sys.exit(main())
