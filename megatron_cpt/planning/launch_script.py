"""The arguments of pretrain_gpt.py in a shell script, read without running it.

Variables, arrays, functions, conditions on texts and numbers, loops over words, `eval`, and what `bash -c` is told are
followed as bash does (shell_syntax.py, shell_words.py, shell_tests.py). No program is started and no file is looked at.
Where the way depends on these, one way is taken and a note names the line and what was assumed. A value that depends on
them is unknown, and whoever reads the arguments is told so.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from megatron_cpt.config.errors import BadInput, Fault, refuse
from megatron_cpt.planning.shell_flow import Call, Script
from megatron_cpt.planning.shell_nodes import CALL, PROGRAM

_REMEDY = (
    "Give the argument list itself: `megatron-cpt import-args -- --num-layers ...`. A copy of the script with `echo` "
    "in place of the launcher (torchrun, python, srun) prints it."
)


@dataclass(frozen=True)
class Launch:
    """The call of the training program in a script."""

    launcher: tuple[str, ...]
    """Words before the program: torchrun and its arguments."""
    arguments: tuple[str, ...]
    """Words after it."""
    unread: tuple[str, ...]
    """What was left out of the script or assumed, a sentence each."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Of the arguments those whose text is not known, such as `$(date)`, and why."""

    @property
    def ranks(self) -> int | None:
        """Ranks that torchrun is told to start; None where it says nothing."""
        words = [part for word in self.launcher for part in word.split("=", 1)]
        sizes = {}
        for name, value in pairwise(words):
            flag = name.lstrip("-").replace("_", "-")
            if name.startswith("-") and flag in ("nproc-per-node", "nnodes") and value.isdecimal():
                sizes[flag] = int(value)
        return sizes["nproc-per-node"] * sizes.get("nnodes", 1) if "nproc-per-node" in sizes else None


def read_script(text: str, name: str, parameters: Sequence[str] = ()) -> Launch:
    """The call of pretrain_gpt.py in a script, or an argument list that a file holds.

    Args:
        parameters: what the script is called with: `$1`, `$2`, ...
    Raises:
        BadInput: there is no call or there are several, or the script needs parameters that were not given.
    """
    if name.endswith(".py"):
        rule = "is a Python program, and nothing is executed."
        remedy = "Give the configuration that it makes, as YAML, or the arguments of its run after `--`."
        raise BadInput(Fault(name, rule, remedy))
    if text.lstrip().startswith("--"):
        return _listed(text, name)
    script = Script(name, parameters)
    script.follow(re.sub("[\x00-\x08]", "", text))
    calls = script.calls or list(_calls_in_texts(script, name))
    if len(calls) != 1:
        remedy = _REMEDY
        if script.ended and not calls and not parameters:
            remedy = f"If it lacks its parameters, give them: `megatron-cpt import-args SCRIPT A B`. {_REMEDY}"
        raise BadInput(Fault(name, _rule_of_calls(script, calls), remedy))
    return _launch(script, calls[0], name)


def unknown_words(words: Sequence[str], why: str) -> Mapping[str, str]:
    """Words of an argument list that a shell would have to expand, and why they are not known."""
    return {word: why for word in words if "$" in word or "`" in word}


def _listed(text: str, name: str) -> Launch:
    """The arguments that a file holds."""
    try:
        words = tuple(shlex.split(text, comments=True))
    except ValueError as error:
        raise BadInput(Fault(name, f"cannot be read: {str(error).lower()}.", "Mend the quotes.")) from error
    return Launch((), words, (), unknown_words(words, "the file is a list of arguments, and no script"))


def _calls_in_texts(script: Script, name: str) -> Iterator[Call]:
    """Calls that are kept in a variable, for whoever reads it elsewhere."""
    for text in dict.fromkeys(script.variables.texts.values()):
        if CALL.search(text):
            inner = Script(name, ())
            inner.words = script.words
            try:
                inner.follow(text)
            except BadInput:
                continue
            yield from inner.calls


def _rule_of_calls(script: Script, calls: Sequence[Call]) -> str:
    """What is wrong where there is no call, or several."""
    if calls:
        lines = ", ".join(str(call.line) for call in calls)
        return f"{len(calls)} calls of pretrain_gpt.py can be read in it (lines {lines})."
    rule = "no call of pretrain_gpt.py can be read in it"
    if script.ended:
        return f"{rule}: {script.ended}."
    return f"{rule}; it starts {', '.join(script.others)}." if script.others else f"{rule}."


def _launch(script: Script, call: Call, name: str) -> Launch:
    """The arguments of a call. Raises BadInput where parameters of the script are missing."""
    refuse(list(_missing(call, name)))
    place = next(place for place, word in enumerate(call.words) if PROGRAM.fullmatch(word))
    arguments, unknown = [], {}
    for word in call.words[place + 1 :]:
        text = script.words.shown(word)
        if text[:1] in ("'", '"') or text[-1:] in ("'", '"'):
            text = text.strip("'\"")  # Quotes in a variable, of a script that was written for `eval`.
        if gaps := script.words.unknown(word):
            unknown[text] = "; ".join(dict.fromkeys(f"line {gap.line}: `{gap.text}` {gap.why}" for gap in gaps))
        elif "$" in text or "`" in text:
            unknown[text] = f"line {call.line}: `{text}` stands in quotes that keep it as it is"
        arguments.append(text)
    launcher = tuple(script.words.shown(word) for word in call.words[:place])
    return Launch(launcher, tuple(arguments), (*script.notes, *_empty(script, call)), unknown)


def _missing(call: Call, name: str) -> Iterator[Fault]:
    """Parameters and variables that a call cannot do without."""
    missing = sorted({gap for gap in call.gaps if gap.kind == "parameter"}, key=lambda gap: (gap.line, gap.text))
    numbers = [gap for gap in missing if gap.text.isdecimal()]
    if numbers:
        told = ", ".join(sorted({f"${gap.text}" for gap in numbers}))
        lines = ", ".join(dict.fromkeys(str(gap.line) for gap in numbers))
        said = "".join(f" It says: {why}." for why in dict.fromkeys(gap.why.rstrip(".") for gap in numbers) if why)
        at = "lines" if "," in lines else "line"
        rule = f"needs its own parameters {told} ({at} {lines}).{said}"
        yield Fault(name, rule, "Give them after its name: `megatron-cpt import-args SCRIPT A B`.")
    for gap in missing:
        if gap not in numbers:
            rule = f"needs ${gap.text} and does not set it{f': {gap.why}' if gap.why else ''}."
            yield Fault(f"line {gap.line} of {name}", rule, f"Set it in a copy of the script: {gap.text}=VALUE.")


def _empty(script: Script, call: Call) -> Iterator[str]:
    """Notes on variables that were taken as empty."""
    gaps = sorted(call.gaps | script.empty, key=lambda gap: (gap.line, gap.text))
    for kind, words in (
        ("unset", "not set in the script, and taken as empty"),
        ("hidden", "set and not exported, and so empty for the shell that the script starts"),
    ):
        lines: dict[str, list[str]] = {}
        for gap in gaps:
            if gap.kind == kind:
                lines.setdefault(gap.text, []).append(str(gap.line))
        told = (f"${variable} (line {', '.join(dict.fromkeys(at))})" for variable, at in lines.items())
        if lines:
            yield f"{words}: {', '.join(told)}"
