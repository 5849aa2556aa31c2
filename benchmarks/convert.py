"""Hugging Face to Megatron-Core and back, beside reading, hashing and writing the same files twice.

A Llama of 518M random parameters in bf16 (1.04 GB in files of 256 MiB) goes through `convert from-hf` and `convert
to-hf`; the baseline reads each file, takes its SHA-256 and writes a copy that is synced to disk, and the copies once
more. Both begin when the interpreter has imported what it needs: start-up is given apart. Files come from the page
cache where the machine has one that holds them. `ratio` is our time over the baseline's. Peak memory is what the
process held of its own, every 5 ms, above what it had after start-up; pages of files that it has mapped are not its
own (the kernel takes them back when it needs them). What comes back is compared bit by bit with what went in.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from machine import machine, print_result
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_cpt.checkpoint.convert import checkpoint_from_hf, hf_from_checkpoint
from megatron_cpt.checkpoint.hf_folder import INDEX
from megatron_cpt.checkpoint.hf_weights import hf_sizes
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.shape import read_shape
from megatron_cpt.parallel import groups

SHARD_BYTES = 256 * 1024**2
BLOCK = 8 * 1024**2
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 1280,
    "intermediate_size": 3456, "num_hidden_layers": 24, "num_attention_heads": 20, "num_key_value_heads": 10,
    "max_position_embeddings": 2048, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


def main() -> None:
    """Makes the model, runs both sides in processes of their own, prints a table and the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = make_model(folder / "hf")
        baseline = measure("copy", folder)
        ours = measure("convert", folder)
        compare(folder / "hf", folder / "out")
    ratio = ours["seconds"] / baseline["seconds"]
    print(machine())
    print(f"model: {total / 1e9:.2f} GB in files of {SHARD_BYTES / 1e6:.0f} MB")
    print("side                                  seconds  (first, second)  start-up  peak memory above start-up")
    for title, found in (("read, hash, write; twice", baseline), ("from-hf, to-hf", ours)):
        peak = f"{found['peak_bytes'] / 1e9:.2f} GB"
        halves = f"({found['first']:.2f}, {found['second']:.2f})"
        print(f"{title:36}  {found['seconds']:7.2f}  {halves:>15}  {found['startup']:8.2f}  {peak}")
    details = {"bytes": total, "baseline": baseline, "ours": ours, "largest_file_bytes": SHARD_BYTES}
    print_result("convert", ratio, "read, hash and write, twice", details)


def make_model(folder: Path) -> int:
    """Writes the random model; returns its bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    places: dict[str, str] = {}
    pending: dict[str, torch.Tensor] = {}
    total = number = 0
    sizes = hf_sizes(read_shape(folder))
    for name, size in sizes.items():
        pending[name] = torch.randn(size, dtype=torch.float32).mul_(0.02).bfloat16()
        total += pending[name].nbytes
        if sum(tensor.nbytes for tensor in pending.values()) >= SHARD_BYTES or len(places) + len(pending) == len(sizes):
            file = f"model-{number:05}.safetensors"
            save_file(pending, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(pending, file)
            pending, number = {}, number + 1
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    return total


def measure(side: str, folder: Path) -> dict[str, float]:
    """Runs one side in a fresh process and returns what it measured."""
    started = time.time()
    command = [sys.executable, __file__, side, str(folder), str(started)]
    found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def work(side: str, folder: Path, started: float) -> None:
    """One side, in the process that `measure` started."""
    if side == "convert":
        groups.init_process_group()
        groups.init_model_parallel(ParallelSettings())
    startup = time.time() - started
    with PeakMemory() as memory:
        begun = time.perf_counter()
        if side == "convert":
            checkpoint_from_hf(folder / "hf", folder / "checkpoint")
            half = time.perf_counter()
            hf_from_checkpoint(folder / "checkpoint", folder / "out", shard_bytes=SHARD_BYTES)
        else:
            copy_hashed(folder / "hf", folder / "first")
            half = time.perf_counter()
            copy_hashed(folder / "first", folder / "second")
        ended = time.perf_counter()
    found = {"seconds": ended - begun, "first": half - begun, "second": ended - half, "startup": startup}
    print(json.dumps(found | {"peak_bytes": memory.peak}))
    if side == "convert":
        groups.destroy()


class PeakMemory:
    """Watches the memory of this process from a thread while a block runs."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._before, self._done = 0, own_bytes(), threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, own_bytes() - self._before)


def own_bytes() -> int:
    """Bytes in memory that belong to this process alone (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon:")))


def copy_hashed(source: Path, target: Path) -> None:
    """Reads, hashes and writes every file of a folder, each synced to disk."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        digest = hashlib.sha256()
        with path.open("rb") as read, (target / path.name).open("wb") as written:
            while block := read.read(BLOCK):
                digest.update(block)
                written.write(block)
            written.flush()
            os.fsync(written.fileno())


def compare(before: Path, after: Path) -> None:
    """Fails unless all tensors came back bit for bit."""
    seen = {}
    for path in before.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            seen |= {name: (path, hashlib.sha256(bits(file.get_tensor(name))).digest()) for name in file.keys()}  # noqa: SIM118
    for path in after.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                assert seen.pop(name)[1] == hashlib.sha256(bits(file.get_tensor(name))).digest(), name
    assert not seen, f"did not come back: {sorted(seen)}"


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
    else:
        main()
