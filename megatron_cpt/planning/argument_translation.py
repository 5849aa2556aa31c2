"""An argument list of Megatron-LM on its way to a run.yaml: values by flag, entries, what became of each argument."""

from collections.abc import Sequence
from typing import Any

from megatron_cpt.planning.megatron_lm_arguments import Given, by_flag, typed
from megatron_cpt.planning.outcomes import Outcome, Result, short
from megatron_cpt.planning.run_file import Entry


class ArgumentTranslation:
    """What a list gives, and what was made of it so far."""

    def __init__(self, given: Sequence[Given]) -> None:
        self.given = {each.argument.flag: each for each in given if each.argument}
        self.unknown = [each for each in given if each.argument is None]
        self.entries: list[Entry] = []
        self.outcomes: list[Outcome] = []
        self._noted: set[str] = set()

    def has(self, flag: str) -> bool:
        """Whether the list has it."""
        return flag in self.given

    def value(self, flag: str) -> Any:
        """Its value by its type, or Megatron-LM's default; None where there is none. A switch is true or false."""
        argument = by_flag()[flag]
        if argument.values == "-":
            return self.has(flag)
        words = self.given[flag].values if self.has(flag) else tuple(filter(None, [argument.default]))
        values = [typed(argument, word) for word in words]
        return values if argument.values != "1" else values[0] if values else None

    def take(self, flag: str, key: str, value: Any, remark: str = "", comment: str | None = None) -> None:
        """A key gets the value of an argument, or of its default."""
        self.entries.append(Entry(key, value, comment))
        self.note(flag, "taken", f"{key}: {short(value)}{f' ({remark})' if remark else ''}")

    def write(self, key: str, value: Any, comment: str | None = None) -> None:
        """A key gets a value that no argument alone decides."""
        self.entries.append(Entry(key, value, comment))

    def note(self, flag: str, result: Result, words: str) -> None:
        """What became of an argument that is in the list, or of a default that matters."""
        if flag in self._noted:
            return
        self._noted.add(flag)
        argument = by_flag()[flag]
        text = self.given[flag].text if self.has(flag) else f"{flag} {argument.default} (default)".replace("  ", " ")
        self.outcomes.append(Outcome(text, result, words))

    def equal(self, flag: str, words: str) -> None:
        """An argument of the list that changes nothing."""
        if self.has(flag):
            self.note(flag, "equal", words)

    def refuse(self, flag: str, words: str) -> None:
        """An argument of the list, or a default, that the run.yaml does not have."""
        self.note(flag, "refused", words)
