"""`torchrun ... -m megatron_cpt.train RUN.yaml [section.key=value ...]`.

A guard, for processes that are started with this as their main module. Signals are listened for before
torch is imported; libraries that would look for something on the network, CUDA and its allocator read the environment.
"""

if __name__ == "__main__":
    import os
    import sys

    from megatron_cpt.runs.processes import OFFLINE, gpu_settings
    from megatron_cpt.train.stop import StopRequest

    os.environ |= OFFLINE | gpu_settings(os.environ) | os.environ
    with StopRequest() as stop:
        from megatron_cpt.train.program import main

        sys.exit(main(sys.argv[1:], stop))
