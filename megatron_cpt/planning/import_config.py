"""From the configuration file of any known program to a run.yaml."""

from collections.abc import Sequence
from pathlib import Path

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.planning.config_file import ConfigFile, read_config_file
from megatron_cpt.planning.import_nemo import import_nemo
from megatron_cpt.planning.import_olmo_core import import_olmo_core
from megatron_cpt.planning.import_trainer import import_trainer
from megatron_cpt.planning.megatron_lm_arguments import read_words
from megatron_cpt.planning.outcomes import Imported, ImportOptions

_OF_MEGATRON = ("megatron-bridge", "nemo")


def import_config(
    path: Path, words: Sequence[str], options: ImportOptions, program: str | None = None
) -> tuple[ConfigFile, Imported, int | None]:
    """The configuration, the run.yaml that it becomes, and the ranks it is for, where they are known.

    Args:
        words: what holds over the file: `KEY=VALUE` of its program; for those of Megatron's kind also arguments.
        program: name of the program. None: it is recognised.
    Raises:
        BadInput: it cannot be read, or no run could be made of it.
    """
    place = next((number for number, word in enumerate(words) if "=" not in word), len(words))
    config = read_config_file(path, words[:place], program)
    if config.program.name in _OF_MEGATRON:
        imported, ranks = import_nemo(config, options, read_words(words[place:]))
        return config, imported, ranks
    if words[place:]:
        rule = f"is no change of a configuration of {config.program.title}."
        raise BadInput(Fault(words[place], rule, "Write KEY=VALUE, with a key of it."))
    importer = import_olmo_core if config.program.name == "olmo-core" else import_trainer
    return config, importer(config, options), options.ranks
