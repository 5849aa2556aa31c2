"""`torchrun ... -m megatron_cpt.train RUN.yaml [section.key=value ...]`.

Saving a checkpoint starts a process that imports this module again: hence the guard, and nothing else.
"""

if __name__ == "__main__":
    import sys

    from megatron_cpt.train.program import main

    sys.exit(main(sys.argv[1:]))
