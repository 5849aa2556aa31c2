import megatron_cpt.parallel  # noqa: F401  (the CPU platform, before the first import of megatron)
