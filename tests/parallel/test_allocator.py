"""What a process frees stays with it, so that the next array of the same size meets no new page."""

import subprocess
import sys

import pytest

COUNTED = """
import ctypes, resource, sys
import numpy
from megatron_cpt.parallel.groups import keep_freed_memory
if sys.argv[1] == "kept":
    if not keep_freed_memory():
        print("no glibc")
        sys.exit()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
numpy.ones(16 << 20)
before = faults()
numpy.ones(16 << 20)
print(faults() - before)
"""


def faults_of(mode: str) -> int:
    """Pages that an array of 128 MiB, the second of its size, has the system clear."""
    done = subprocess.run([sys.executable, "-c", COUNTED, mode], check=True, stdout=subprocess.PIPE, text=True)
    if "no glibc" in done.stdout:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


@pytest.mark.ci
def test_the_second_array_meets_no_new_page() -> None:
    assert faults_of("kept") < 10 < faults_of("as it is")
