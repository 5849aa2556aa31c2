"""Continual pretraining on Megatron-Core."""

from megatron_cpt.parallel.cpu_platform import install

# Before the first megatron import, and here because formatters sort third-party imports first.
install()
