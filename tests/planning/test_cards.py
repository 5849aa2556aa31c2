"""The table of GPUs: device names of CUDA find their card, and a user's file replaces it."""

from pathlib import Path

import pytest

from megatron_cpt.config.errors import BadInput
from megatron_cpt.planning.cards import CARDS, card_of, card_of_device


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe-80GB"),
        ("NVIDIA H100 NVL", "H100-NVL-94GB"),
        ("NVIDIA H200", "H200-141GB"),
        ("NVIDIA H200 NVL", "H200-NVL-141GB"),
        ("NVIDIA H20", "H20-96GB"),
        ("NVIDIA GH200 480GB", "H200-141GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA B200", "B200-180GB"),
        ("NVIDIA GB200", "GB200-186GB"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_device_finds_its_card(device: str, card: str) -> None:
    assert card_of_device(device) is CARDS[card]


def test_a_device_that_is_not_known_has_none() -> None:
    assert card_of_device("NVIDIA GeForce RTX 2080 Ti") is None


def test_a_file_describes_another_card(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text("{flops: 1.0e+15, memory: 100, bandwidth: 4.0e+12, link: 1.0e+11}")
    assert (card_of(str(path)).memory, card_of(str(path)).per_machine) == (100, 8)
    path.write_text("{flops: 1.0e+15, memory: 100, bandwidth: 4.0e+12, link: 1.0e+11, vram: 3}")
    with pytest.raises(BadInput, match="vram"):
        card_of(str(path))


def test_a_name_that_is_not_known_is_told_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean H100-80GB"):
        card_of("h100-80")
