"""`torchrun ... -m megatron_cpt.train RUN.yaml [section.key=value ...]`.

Saving a checkpoint starts a process that imports this module again, under another name: hence the guards. It
is to die with the rank that started it, however that rank ends. Signals are listened for before torch is
imported.
"""

if __name__ == "__mp_main__":
    from megatron_cpt.runs.lifeline import die_with_parent

    die_with_parent()

if __name__ == "__main__":
    import sys

    from megatron_cpt.train.stop import StopRequest

    with StopRequest() as stop:
        from megatron_cpt.train.program import main

        sys.exit(main(sys.argv[1:], stop))
