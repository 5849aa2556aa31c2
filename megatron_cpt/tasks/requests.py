"""Questions and texts as token ids of which some are scored: what the model is asked.

The rules are lm-evaluation-harness's, so that scores are comparable with published ones: prompt and choice are
encoded together; examples stand before a prompt, each with its right answer; a long text is cut into windows in
which every token is predicted once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_cpt.config.errors import BadInput, Fault
from megatron_cpt.tasks.questions import Question

EXAMPLE_DELIMITER = "\n\n"
"""What stands between an example and the next, and between the last and the question."""


class Encoder(Protocol):
    """What is needed of a tokenizer (tokenizer/tokenize.py)."""

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The ids of each text alone."""
        ...


@dataclass(frozen=True)
class Continuation:
    """Token ids whose end is scored, given what stands before it."""

    ids: tuple[int, ...]
    """What stands before, and what is scored."""
    scored: int
    """How many of the last ids are scored."""
    truncated: bool
    """Whether the beginning was cut off, to fit into the model."""


def with_examples(question: Question, examples: Sequence[Question], delimiter: str) -> Question:
    """A question whose prompt begins with solved examples."""
    solved = [f"{example.prompt}{delimiter}{example.choices[example.answer]}" for example in examples]
    prompt = EXAMPLE_DELIMITER.join([*solved, question.prompt])
    return Question(question.id, prompt, question.choices, question.answer)


def continuations(
    question: Question, tokenizer: Encoder, delimiter: str, longest: int, bos: int | None
) -> list[Continuation]:
    """Each choice of a question as ids, with what stands before it.

    Prompt and choice are encoded together, and the ids beyond as many as the prompt alone has are the
    choice's; blanks at the prompt's end count to the choice.

    Args:
        delimiter: what stands between prompt and choice.
        longest: ids of one sequence at most; what is longer loses its beginning.
        bos: the id that opens each text, where the model was trained with one.
    Raises:
        BadInput: a choice alone is too long, or has no token of its own.
    """
    prompt = (question.prompt + delimiter).rstrip(" ")
    blanks = (question.prompt + delimiter)[len(prompt) :]
    whole = tokenizer.encode_batch([prompt, *(prompt + blanks + choice for choice in question.choices)])
    opening = [] if bos is None else [bos]
    found = []
    for choice, ids in zip(question.choices, whole[1:], strict=True):
        scored = len(ids) - len(whole[0])
        # A label needs an input before it, so at least one id must stand before the choice.
        if not 0 < scored < longest or not (opening or len(whole[0])):
            rule = f"has {scored} tokens after its prompt of {len(whole[0])}; the model takes {longest} in all."
            raise BadInput(Fault(f"{question.id}: choice {choice[:40]!r}", rule, "Take the question out."))
        both = [*opening, *ids.tolist()]
        found.append(Continuation(tuple(both[-longest:]), scored, len(both) > longest))
    return found


def windows(ids: Sequence[int], longest: int, opening: int) -> list[Continuation]:
    """A text as windows in which each of its ids is predicted once, with as much before it as the model takes.

    As in lm-evaluation-harness's rolling log-likelihood: the first window has nothing but `opening` before it;
    in the others the last token of the window before stands before it, and the last window is full, so that its
    tokens have more before them.

    Args:
        longest: ids of one sequence at most, the label of the last input among them.
        opening: the id that stands before the text.
    """
    inputs = longest - 1
    text = [opening, *ids]
    found = []
    for start in range(0, len(ids), inputs):
        end = min(start + inputs, len(ids))
        first = max(0, end - inputs) if start else 0
        found.append(Continuation(tuple(text[first : end + 1]), end - start, False))
    return found
