"""Tests mirror the package. Importing it here, first, puts the CPU platform under every megatron import of a test."""

import megatron_cpt  # noqa: F401
