"""Warnings of Megatron-Core and torch: once into the log, and an error where they speak of damage."""

import logging
import warnings
from collections.abc import Iterator

import pytest

from megatron_cpt.config.errors import IntegrityFault
from megatron_cpt.runs import library_warnings
from megatron_cpt.runs.library_warnings import take_warnings


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lines that were handed on."""
    lines: list[str] = []
    loggers = [logging.getLogger(name) for name in library_warnings.LOGGERS]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        take_warnings(lines.append, lambda line: "only elsewhere" not in line)
        yield lines
    for logger, (handlers, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate


def warn_from(package: str, text: str) -> None:
    """Warns as a file of a package would."""
    warnings.warn_explicit(text, UserWarning, f"/site-packages/{package}/nn.py", 1)


def test_each_warning_is_handed_on_once(taken: list[str]) -> None:
    for _ in range(3):
        logging.getLogger("megatron.core.optimizer").warning("a setting\n of %d is old", 7)
        logging.getLogger("torch.distributed.checkpoint").warning("a planner is old")
        warn_from("torch", "a call is old")
        warn_from("torch", "said only elsewhere")
    logging.getLogger("megatron.core.optimizer").info("nothing")
    assert taken == [
        "megatron.core.optimizer warns: a setting of 7 is old",
        "torch.distributed.checkpoint warns: a planner is old",
        "torch warns: UserWarning: a call is old",
    ]


def test_a_warning_of_damage_is_an_error(taken: list[str]) -> None:
    said = "param range exceeds unpadded buffer by 64 elements. It will be padded with zeros which can lead to data"
    with pytest.raises(IntegrityFault, match=r"megatron\.core\.optimizer warns: param range exceeds"):
        logging.getLogger("megatron.core.optimizer").warning("%s corruption.", said)
    with pytest.raises(IntegrityFault, match="size mismatch"):
        warn_from("megatron", "size mismatch")
    logging.getLogger("megatron.core").warning("Overwriting old incomplete / corrupted checkpoint...")
    assert taken == ["megatron.core warns: Overwriting old incomplete / corrupted checkpoint..."]


def test_warnings_of_others_go_where_they_went(taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(library_warnings, "PRINT_WARNING", lambda message, *where: printed.append(str(message)))
    warn_from("transformers", "some weights mismatch")
    assert (taken, printed) == ([], ["some weights mismatch"])
