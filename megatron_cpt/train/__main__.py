"""`torchrun ... -m megatron_cpt.train RUN.yaml [section.key=value ...]`.

A guard, for processes that are started with this as their main module. Signals are listened for before
torch is imported.
"""

if __name__ == "__main__":
    import sys

    from megatron_cpt.train.stop import StopRequest

    with StopRequest() as stop:
        from megatron_cpt.train.program import main

        sys.exit(main(sys.argv[1:], stop))
