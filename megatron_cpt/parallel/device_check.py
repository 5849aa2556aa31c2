"""Whether the devices of a machine compute right and alike.

A run on many machines is as fast as its slowest device and as right as its worst: one that returns other bits for the
same product corrupts every gradient in silence.
"""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from megatron_cpt.config.errors import Fault

_GPU_SIZE, _CPU_SIZE = 8192, 1024
"""Rows and columns of the matrices that are multiplied."""
_TIMES = 50
_SLOW = 0.8
"""Of the median of the devices of a kind."""


@dataclass(frozen=True)
class DeviceResult:
    """What one device made of a product of two matrices."""

    device: str
    """`cuda:3`."""
    name: str
    """Of its kind: NVIDIA H100 80GB HBM3."""
    checksum: str
    """SHA-256 of the product."""
    is_steady: bool
    """Whether it was the same each time."""
    flops: float
    """FLOP/s."""


def measure(device: torch.device) -> DeviceResult:
    """Multiplies the same two matrices many times: in bf16 on a GPU, in fp32 on a CPU."""
    is_gpu = device.type == "cuda"
    size = _GPU_SIZE if is_gpu else _CPU_SIZE
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(size, size, generator=generator).to(device, torch.bfloat16 if is_gpu else torch.float32)
        for _ in range(2)
    )
    first = left @ right
    is_steady = all(torch.equal(left @ right, first) for _ in range(_TIMES))
    started = time.perf_counter()
    for _ in range(_TIMES):
        last = left @ right
    # To the host, so that all of it has been computed.
    is_steady = is_steady and torch.equal(last, first)
    seconds = time.perf_counter() - started
    checksum = hashlib.sha256(first.cpu().view(torch.uint8).numpy().tobytes()).hexdigest()
    name = torch.cuda.get_device_name(device) if is_gpu else "CPU"
    return DeviceResult(str(device), name, checksum, is_steady, _TIMES * 2 * size**3 / seconds)


def device_faults(results: Sequence[DeviceResult], gpus: int, host: str) -> list[Fault]:
    """What is wrong with the devices of a machine that is to have so many GPUs.

    Args:
        results: of each GPU that is there, or of the CPU.
    """
    out = f"Leave the machine out (sbatch --exclude={host}) until it is mended."
    there = sum(result.device.startswith("cuda") for result in results)
    if there < gpus:
        return [Fault(host, f"has {there} GPUs, and {gpus} are wanted.", f"See nvidia-smi. {out}")]
    faults = [
        Fault(f"{host}, {result.device}", f"({result.name}) gives different results for one product.", out)
        for result in results
        if not result.is_steady
    ]
    kinds: dict[str, list[DeviceResult]] = defaultdict(list)
    for result in results:
        kinds[result.name].append(result)
    for name, alike in kinds.items():
        [(usual, count)] = Counter(result.checksum for result in alike if result.is_steady).most_common(1) or [("", 0)]
        others = sum(result.is_steady for result in alike) - count
        speed = median(result.flops for result in alike)
        for result in alike:
            where = f"{host}, {result.device}"
            # Of two that differ neither is known to be right.
            if result.is_steady and (result.checksum != usual or others >= count):
                rule = f"gives another product than others of its kind ({name})."
                faults.append(Fault(where, rule, out))
            if result.flops < _SLOW * speed:
                speeds = f"{result.flops / 1e12:.3g} TFLOP/s, and the median of its kind ({name}) {speed / 1e12:.3g}"
                rule = f"does {speeds}."
                faults.append(Fault(where, rule, f"See its clocks and its cooling (nvidia-smi -q). {out}"))
    return faults
