"""Devices that are wrong, slow or missing are named; those of another kind are not held against each other."""

from dataclasses import replace

import pytest
import torch

from megatron_cpt.parallel.device_check import DeviceResult, device_faults, measure

GOOD = [DeviceResult(f"cuda:{index}", "H100", "a" * 64, is_steady=True, flops=6e14) for index in range(4)]


def test_good_devices_have_no_faults() -> None:
    assert device_faults(GOOD, 4, "n1") == []


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        (replace(GOOD[2], is_steady=False), "(H100) gives different results for one product."),
        (replace(GOOD[2], checksum="b" * 64), "gives another product than others of its kind (H100)."),
        (replace(GOOD[2], flops=4e14), "does 400 TFLOP/s, and the median of its kind (H100) 600."),
    ],
)
def test_the_device_that_differs_is_named(bad: DeviceResult, rule: str) -> None:
    [fault] = device_faults([*GOOD[:2], bad, *GOOD[3:]], 4, "n1")
    assert (fault.value, fault.rule) == ("n1, cuda:2", rule)


def test_of_two_that_differ_both_are_named() -> None:
    faults = device_faults([GOOD[0], replace(GOOD[1], checksum="b" * 64)], 2, "n1")
    assert [fault.value for fault in faults] == ["n1, cuda:0", "n1, cuda:1"]


def test_devices_of_another_kind_may_differ() -> None:
    other = replace(GOOD[2], name="A100", checksum="b" * 64, flops=2e14)
    assert device_faults([*GOOD[:2], other], 3, "n1") == []


def test_missing_devices_are_counted() -> None:
    [fault] = device_faults(GOOD[:3], 4, "n1")
    assert (fault.value, fault.rule) == ("n1", "has 3 GPUs, and 4 are wanted.")


@pytest.mark.ci
def test_a_processor_is_measured() -> None:
    one, again = (measure(torch.device("cpu")) for _ in range(2))
    assert one.is_steady and one.checksum == again.checksum and one.flops > 1e9
    assert device_faults([one], 0, "n1") == []


@pytest.mark.gpu
def test_a_gpu_is_measured() -> None:
    results = [measure(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    assert device_faults(results, len(results), "n1") == []
