"""The package below all that import megatron: it brings the CPU platform, before the first of these imports."""

from megatron_cpt.parallel.cpu_platform import install

install()
