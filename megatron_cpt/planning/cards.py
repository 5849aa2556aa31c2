"""What GPUs can do, from their makers' data sheets: one table, for the MFU of a run and for estimates of its time.

FLOP/s are those of dense bf16 products; data sheets also print twice as much, for matrices of which half is zero. Links
are one way. A user's own card is a YAML file with the fields of `Card`.
"""

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.config.schema import ParallelSettings


@dataclass(frozen=True, kw_only=True)
class Card:
    """One kind of GPU and the machine that it usually is in."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    flops: float
    """Peak of dense bf16 products, FLOP/s."""
    memory: float
    """Memory, GiB, as torch reports it."""
    bandwidth: float
    """Memory bandwidth, bytes/s."""
    link: float
    """To the other GPUs of the machine, bytes/s each way (NVLink, else PCIe)."""
    network: float = 50e9
    """To other machines, bytes/s each way and GPU: 50e9 is 400 Gbit/s."""
    per_machine: int = 8
    """GPUs of a machine, or of what NVLink connects."""
    product_share: float = 0.75
    """Of the peak, what products of large matrices reach: an assumption."""
    bandwidth_share: float = 0.8
    """Of each bandwidth, what is reached: an assumption."""
    kernel_start: float = 6e-6
    """Seconds that the host takes to start a kernel: an assumption."""

    @property
    def usable_memory(self) -> float:
        """Bytes that an estimate in closed form may fill (families/memory.py)."""
        return USED_MEMORY * self.memory * 2**30


USED_MEMORY = 0.9
"""Share of a card's memory that an estimate may fill; CUDA, NCCL and fragmentation need the rest."""


CARDS: dict[str, Card] = {
    "A100-40GB": Card(flops=312e12, memory=39.4, bandwidth=1.555e12, link=300e9, network=25e9),
    "A100-80GB": Card(flops=312e12, memory=79.1, bandwidth=2.039e12, link=300e9, network=25e9),
    "A100-PCIe-80GB": Card(flops=312e12, memory=79.1, bandwidth=1.935e12, link=32e9, network=25e9),
    "A800-80GB": Card(flops=312e12, memory=79.1, bandwidth=2.039e12, link=200e9, network=25e9),
    "L40S": Card(flops=362e12, memory=44.4, bandwidth=0.864e12, link=32e9, network=25e9),
    "H100-80GB": Card(flops=989e12, memory=79.1, bandwidth=3.35e12, link=450e9),
    "H100-PCIe-80GB": Card(flops=756e12, memory=79.1, bandwidth=2.0e12, link=64e9),
    "H100-NVL-94GB": Card(flops=835e12, memory=93.0, bandwidth=3.9e12, link=300e9, per_machine=2),
    "H800-80GB": Card(flops=989e12, memory=79.1, bandwidth=3.35e12, link=200e9),
    "H20-96GB": Card(flops=148e12, memory=95.0, bandwidth=4.0e12, link=450e9),
    "H200-141GB": Card(flops=989e12, memory=139.8, bandwidth=4.8e12, link=450e9),
    "H200-NVL-141GB": Card(flops=835e12, memory=139.8, bandwidth=4.8e12, link=450e9, per_machine=4),
    "B200-180GB": Card(flops=2250e12, memory=178.0, bandwidth=7.7e12, link=900e9),
    "GB200-186GB": Card(flops=2500e12, memory=184.0, bandwidth=8.0e12, link=900e9, per_machine=72),
    "B300-270GB": Card(flops=2250e12, memory=267.0, bandwidth=8.0e12, link=900e9, network=100e9),
    "GB300-279GB": Card(flops=2500e12, memory=276.0, bandwidth=8.0e12, link=900e9, network=100e9, per_machine=72),
}
"""The cards by name; SXM modules where the name does not say PCIe or NVL."""


def card_of(name: str) -> Card:
    """A card of the table, or of a YAML file with its fields. Raises BadInput."""
    if name in CARDS:
        return CARDS[name]
    if not name.endswith((".yaml", ".yml")):
        near = get_close_matches(name.upper(), CARDS, 1, 0.3)
        remedy = f"Did you mean {near[0]}? " if near else ""
        remedy += f"Known: {', '.join(CARDS)}. Another: a YAML file with {', '.join(f.name for f in fields(Card))}."
        raise BadInput(Fault(f"--gpu {name}", "is no card of the table.", remedy))
    try:
        card: Card = TypeAdapter(Card).validate_python(yaml.safe_load(Path(name).read_bytes()))
    except (OSError, yaml.YAMLError) as error:
        raise _no_card(name, " ".join(str(error).split())) from None
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg'].lower()}" for each in error.errors())
        raise _no_card(name, "; ".join(wrong)) from None
    bad = [f.name for f in fields(Card) if not 0 < getattr(card, f.name) < math.inf]
    bad += [share for share in ("product_share", "bandwidth_share") if getattr(card, share) > 1 and share not in bad]
    if bad:
        raise _no_card(name, f"{', '.join(bad)}: a number above 0 is needed, and of a share one up to 1")
    return card


def _no_card(name: str, reason: str) -> BadInput:
    remedy = f"Write a number for each of {', '.join(f.name for f in fields(Card))}; the last six may be left out."
    return BadInput(Fault(f"--gpu {name}", f"describes no card ({reason}).", remedy))


# What torch.cuda.get_device_name() holds of a card, each word of it; the first that fits. A name without PCIe or NVL is
# that of the module.
_DEVICE_WORDS: tuple[tuple[str, str], ...] = (
    ("H100 PCIe", "H100-PCIe-80GB"),
    ("H100 NVL", "H100-NVL-94GB"),
    ("H200 NVL", "H200-NVL-141GB"),
    ("A100 PCIe 80GB", "A100-PCIe-80GB"),
    ("A100 80GB", "A100-80GB"),
    ("GB300", "GB300-279GB"),
    ("GB200", "GB200-186GB"),
    ("B300", "B300-270GB"),
    ("B200", "B200-180GB"),
    ("H200", "H200-141GB"),
    ("H100", "H100-80GB"),
    ("H800", "H800-80GB"),
    ("H20", "H20-96GB"),
    ("A800", "A800-80GB"),
    ("A100", "A100-40GB"),
    ("L40S", "L40S"),
)


def card_of_device(device: str) -> Card | None:
    """The card of a device name of CUDA, such as `NVIDIA H100 80GB HBM3`; None where it is not known."""
    for words, name in _DEVICE_WORDS:
        if all(word in device for word in words.split()):
            return CARDS[name]
    return None


def gpu_layout(has_replicas: bool, tensor: int, **sizes: int) -> ParallelSettings:
    """Sizes of a layout, with what belongs to them on GPUs: sequence parallelism, a distributed optimizer, overlaps."""
    return ParallelSettings(
        tensor=tensor,
        sequence=tensor > 1,
        distributed_optimizer=has_replicas,
        overlap_grad_reduce=has_replicas,
        overlap_param_gather=has_replicas,
        **sizes,
    )
