"""Tests mirror the package. The import of `parallel` here, first, puts the CPU platform under their megatron imports.

Processes of tests share few cores, and look for nothing on the network: libraries read both at their import.
"""

import os

import megatron_cpt.parallel  # noqa: F401
from megatron_cpt.runs.processes import OFFLINE

os.environ |= {"OMP_NUM_THREADS": "1"} | OFFLINE | os.environ
