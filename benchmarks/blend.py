#!/usr/bin/env python3
"""From a configuration to the first global batch: our blend against Megatron-Core's builder, on the same datasets.

Both blend 1, 100 and 1,000 sources that hold 10^7 sequences in all, for a run that reads them all once, and deliver
the first global batch as tensors. Each measurement is a process of its own; imports are done before its clock starts.

- ours: the configuration is read, every dataset is opened, its index checked and hashed, the blend is planned, and
  rank 0 of 1 reads its batch;
- Megatron-Core: BlendedMegatronDatasetBuilder with GPTDataset, no cache to begin with, one building thread a core;
  then the same again with the cache that the first left.

The .bin files are sparse (zeros), so that no disk is measured; the .idx files are whole, with a document for each
sequence. Manifests are there, as `prepare` writes them; a dataset made elsewhere is hashed once, at first use.
"""

import argparse
import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

# The package comes before any module of Megatron-Core: it brings the CPU platform.
# isort: off
import megatron_cpt  # noqa: F401
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
# isort: on

from megatron_cpt.config.load import config_from_dict
from megatron_cpt.corpus.indexed import HEADER, MAGIC, bin_path, idx_path
from megatron_cpt.corpus.manifest import Manifest, file_sha256, write_manifest
from megatron_cpt.corpus.stream import TokenStream
from megatron_cpt.data.sampler import Slots
from megatron_cpt.data.training_data import TrainingData
from megatron_cpt.mixture.plan import plan_blend
from megatron_cpt.mixture.streams import blend_streams

SEQUENCES = 10**7
LENGTH = 512
BATCH = 256
SPARE = 0.01
"""Sources hold this much more than the run reads, so that nobody needs a second epoch."""
SIZES = (1, 100, 1000)


def main() -> None:
    """Measures everything and prints the table, or (with --measure) one measurement as JSON."""
    parser = argparse.ArgumentParser(description="Blend of ours and of Megatron-Core: time to the first global batch.")
    parser.add_argument("--measure", choices=("ours", "megatron"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sources", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure = measure_ours if options.measure == "ours" else measure_megatron
        print(json.dumps(measure([str(options.folder / f"s{number:04}") for number in range(options.sources)])))
        return
    details = {}
    print(f"{machine()}\n{SEQUENCES:,} sequences of {LENGTH} tokens, global batches of {BATCH}\n")
    print(f"{'sources':>7}  {'':22}  {'seconds':>9}  {'memory, MiB':>11}", flush=True)
    for sources in SIZES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_sources(folder, sources)
            row = {
                "ours": in_process("ours", folder, sources),
                "megatron": in_process("megatron", folder, sources),
                "megatron_cached": in_process("megatron", folder, sources),
            }
        details[str(sources)] = row
        for label, figures in row.items():
            print(f"{sources:>7}  {label:22}  {figures['seconds']:>9.3f}  {figures['memory_mib']:>11.1f}", flush=True)
    most = details[str(SIZES[-1])]
    ratio = most["megatron"]["seconds"] / most["ours"]["seconds"]
    print(f"\nat {SIZES[-1]:,} sources Megatron-Core takes {ratio:.1f} times as long as ours\n")
    baseline = "BlendedMegatronDatasetBuilder without a cache, 1,000 sources"
    summary = {"benchmark": "blend", "ratio": round(ratio, 2), "baseline": baseline}
    print(json.dumps(summary | {"details": details | {"machine": machine()}}))


def in_process(who: str, folder: Path, sources: int) -> dict[str, float]:
    """One measurement in a new process."""
    words = [sys.executable, __file__, "--measure", who, "--folder", str(folder), "--sources", str(sources)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    output = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def write_sources(folder: Path, sources: int) -> None:
    """Datasets of one document a sequence: whole indices, sparse data, manifests."""
    documents = round(SEQUENCES * (1 + SPARE)) // sources
    tokens = documents * LENGTH
    lengths = np.full(documents, LENGTH, np.int32).tobytes()
    offsets = (np.arange(documents, dtype=np.int64) * (2 * LENGTH)).tobytes()
    bounds = np.arange(documents + 1, dtype=np.int64).tobytes()
    index = HEADER.pack(MAGIC, 1, 8, documents, documents + 1) + lengths + offsets + bounds
    index_sha256, data_sha256 = hashlib.sha256(index).hexdigest(), ""
    for number in range(sources):
        prefix = folder / f"s{number:04}"
        idx_path(prefix).write_bytes(index)
        with bin_path(prefix).open("wb") as file:
            file.truncate(2 * tokens)
        # All .bin files have the same bytes, so they are hashed once.
        data_sha256 = data_sha256 or file_sha256(bin_path(prefix))
        counts = {"documents": documents, "tokens": tokens, "dtype": "uint16", "vocabulary_size": 32_000}
        write_manifest(prefix, Manifest(**counts, data_sha256=data_sha256, index_sha256=index_sha256))


def weights_of(prefixes: list[str]) -> list[float]:
    """Nearly equal weights, all different, that ask no source for more than it holds."""
    return [1 + SPARE / 2 * (number / len(prefixes) - 0.5) for number in range(len(prefixes))]


def measure_ours(prefixes: list[str]) -> dict[str, float]:
    """Configuration to tensors with our blend."""
    settings = {
        "run": {"folder": "unused"},
        "model": {"hf": "unused"},
        "data": {
            "sequence_length": LENGTH,
            "sources": {
                Path(prefix).name: {"paths": [prefix], "weight": weight}
                for prefix, weight in zip(prefixes, weights_of(prefixes), strict=True)
            },
        },
        "training": {"tokens": SEQUENCES * LENGTH, "global_batch_size": BATCH, "micro_batch_size": BATCH},
        "schedule": {"peak": 1e-4},
    }
    clock = Clock()
    config = config_from_dict(settings)
    planned = {name: TokenStream(source.paths) for name, source in config.data.sources.items()}
    tokens = {name: stream.tokens for name, stream in planned.items()}
    identities = {name: stream.identity for name, stream in planned.items()}
    streams = blend_streams(config.data, tokens, identities)
    blend = plan_blend(config.data, streams, config.total_steps * BATCH, config.run.seed, BATCH)
    data = TrainingData(
        order=blend.order,
        streams=[planned[name] for name in blend.sources],
        slots=Slots(BATCH, BATCH, 0, 1),
        sequence_length=LENGTH,
        seed=config.run.seed,
    )
    [batch] = data.global_batch(0, torch.device("cpu"))
    assert batch.tokens.shape == (BATCH, LENGTH)
    return clock.stop()


def measure_megatron(prefixes: list[str]) -> dict[str, float]:
    """Configuration to tensors with Megatron-Core's builder; the cache lies beside the datasets."""
    logging.getLogger("megatron").setLevel(logging.ERROR)
    store = f"file://{prefixes[0]}.store.{os.getpid()}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    clock = Clock()
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=LENGTH,
        blend=(prefixes, weights_of(prefixes)),
        split="1,0,0",
        path_to_cache=f"{Path(prefixes[0]).parent}/cache",
        num_dataset_builder_threads=os.cpu_count() or 1,
        tokenizer=SimpleNamespace(vocab_size=32_000, eod=0, unique_identifiers={"class": "bench"}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    blended, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [SEQUENCES, 0, 0], lambda: True, config).build()
    samples = [blended[index] for index in range(BATCH)]
    batch = torch.stack([sample["tokens"] for sample in samples])
    assert batch.shape == (BATCH, LENGTH)
    return clock.stop()


class Clock:
    """Seconds, and the most resident memory above what there is now, of this process from here on."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (proc(5))
        self._memory = resident_kib("VmRSS")
        self._start = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """The figures of one measurement."""
        seconds = time.perf_counter() - self._start
        memory = resident_kib("VmHWM") - self._memory
        return {"seconds": round(seconds, 4), "memory_mib": round(memory / 1024, 1)}


def resident_kib(field: str) -> int:
    """A field of /proc/self/status, in KiB. Pages of mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def machine() -> str:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {versions}"


if __name__ == "__main__":
    main()
