"""From a configuration to the first global batch: ours and Megatron-Core's, on the same datasets.

The .bin files are sparse (zeros), so that no disk is measured; the .idx files are whole. Manifests are there, as
`prepare` writes them; a dataset made elsewhere is hashed once, at first use.

- ours: the configuration is read, every dataset is opened, its index hashed and compared with what was proved when it
  was described, the blend is planned, and rank 0 of 1 reads its batch;
- Megatron-Core: BlendedMegatronDatasetBuilder with GPTDataset, one building thread a core.
"""

import hashlib
import logging
import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import machine  # noqa: F401  (the CPU platform, before the first import of megatron)
import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_cpt.config.errors import Fault, refuse
from megatron_cpt.config.load import config_from_dict
from megatron_cpt.corpus.indexed import HEADER, LONGEST_SEQUENCE, MAGIC, bin_path, idx_path
from megatron_cpt.corpus.manifest import Manifest, write_manifest
from megatron_cpt.data.loader import Slots, TrainingData
from megatron_cpt.mixture.blend import plan_blend
from megatron_cpt.mixture.phases import blend_streams
from megatron_cpt.planning.inputs import open_sources

# The package comes before any module of Megatron-Core: it brings the CPU platform.
# isort: off


# isort: on


SEQUENCES = 10**7
LENGTH = 512
BATCH = 256
SPARE = 0.01
"""Sources hold this much more than the run reads, so that nobody needs a second epoch."""


def raise_descriptor_limit() -> int:
    """As many open files as this user may have: Megatron-Core keeps three for each dataset."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def write_sources(folder: Path, sources: int) -> None:
    """Datasets that hold SEQUENCES in all, a document a sequence."""
    write_sparse(folder, sources, np.full(round(SEQUENCES * (1 + SPARE)) // sources, LENGTH, np.int64))


def write_long_sources(folder: Path, sources: int) -> None:
    """Datasets of SEQUENCES each, in documents as long as the format allows."""
    tokens = round(SEQUENCES * (1 + SPARE)) * LENGTH
    whole, rest = divmod(tokens, LONGEST_SEQUENCE)
    write_sparse(folder, sources, np.array([LONGEST_SEQUENCE] * whole + [rest], np.int64))


def write_sparse(folder: Path, sources: int, lengths: np.ndarray) -> None:
    """Equal datasets of documents of these lengths, int64[documents], whose tokens are zeros that take no disk."""
    documents, tokens = len(lengths), int(lengths.sum())
    offsets = 2 * (np.cumsum(lengths) - lengths)
    bounds = np.arange(documents + 1, dtype=np.int64)
    head = HEADER.pack(MAGIC, 1, 8, documents, documents + 1)
    index = head + lengths.astype(np.int32).tobytes() + offsets.tobytes() + bounds.tobytes()
    for number in range(sources):
        prefix = folder / f"s{number:04}"
        idx_path(prefix).write_bytes(index)
        with bin_path(prefix).open("wb") as file:
            file.truncate(2 * tokens)
        # A hash of the tokens is not read here; it stands for the hash of 10 TB of zeros.
        known = {"data_sha256": hashlib.sha256(f"{number}".encode()).hexdigest(), "vocabulary_size": 32_000}
        counts = {"documents": documents, "tokens": tokens, "dtype": "uint16"}
        write_manifest(prefix, Manifest(**counts, **known, index_sha256=hashlib.sha256(index).hexdigest()))


def weights_of(prefixes: list[str]) -> list[float]:
    """Nearly equal weights, all different, that ask no source for more than it holds."""
    return [1 + SPARE / 2 * (number / len(prefixes) - 0.5) for number in range(len(prefixes))]


def measure_ours(prefixes: list[str]) -> dict[str, float]:
    """Configuration to tensors with our blend, of a run that reads everything once."""
    settings = run_settings(prefixes, SEQUENCES if Path(f"{prefixes[0]}.idx").stat().st_size > 200 else 10**10)
    clock = Clock()
    config = config_from_dict(settings)
    faults: list[Fault] = []
    before = time.perf_counter()
    sources, portions = open_sources(config, faults)
    opening = time.perf_counter() - before
    refuse(faults)
    streams = blend_streams(
        config.data,
        {name: stream.tokens for name, stream in sources.items()},
        {name: stream.identity for name, stream in sources.items()},
        portions,
    )
    blend = plan_blend(config.data, streams, config.total_steps * BATCH, config.run.seed, BATCH)
    data = TrainingData(
        order=blend.order,
        streams=[sources[name] for name in blend.sources],
        slots=Slots(BATCH, BATCH, 0, 1),
        sequence_length=LENGTH,
        seed=config.run.seed,
    )
    [batch] = data.global_batch(0, torch.device("cpu"))
    assert batch.tokens.shape == (BATCH, LENGTH)
    return clock.stop() | {"opening_seconds": round(opening, 4)}


def run_settings(prefixes: list[str], sequences: int) -> dict[str, Any]:
    """The sections of a run over these datasets."""
    weights = zip(prefixes, weights_of(prefixes), strict=True)
    sources = {Path(prefix).name: {"paths": [prefix], "weight": weight} for prefix, weight in weights}
    return {
        "run": {"folder": "unused"},
        "model": {"hf": "unused"},
        "data": {"sequence_length": LENGTH, "sources": sources},
        "training": {"tokens": sequences * LENGTH, "global_batch_size": BATCH, "micro_batch_size": BATCH},
        "schedule": {"peak_lr": 1e-4},
    }


def measure_megatron(prefixes: list[str]) -> dict[str, float]:
    """Configuration to tensors with Megatron-Core's builder; the cache lies beside the datasets."""
    raise_descriptor_limit()
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
    return clock.stop() | {"open_files": len(os.listdir("/proc/self/fd"))}


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
