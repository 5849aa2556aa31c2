"""Continual pretraining on Megatron-Core."""

from megatron_cpt.parallel.cpu import install

# Before the first megatron import, and here because formatters sort third-party imports first.
install()
