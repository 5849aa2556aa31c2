"""What is known of published tasks: which accuracy lm-evaluation-harness reports, and what papers average.

A task is known by its name or by how its name begins (`mmlu_anatomy`), in lower case.
"""

from typing import Literal

Metric = Literal["accuracy", "normalized_accuracy"]

# The harness reports both accuracies of the others; the plain one alone of these (its task files, 0.4.13).
PLAIN_ACCURACY = ("mmlu", "pubmedqa", "boolq", "winogrande", "copa", "race")

GROUPS: dict[str, tuple[str, ...]] = {
    # The curves of arXiv:2406.14833 (section 2): four medical tasks, ten of common sense and reading.
    "s1_medical": ("mmlu_medical_genetics", "medqa", "pubmedqa", "medmcqa"),
    "s1_general": (
        "arc_challenge", "arc_easy", "boolq", "copa", "hellaswag", "openbookqa", "piqa", "race", "sciq", "winogrande",
    ),
}  # fmt: skip
"""Groups of tasks that papers average, by name: a plain mean over the tasks."""


def usual_metric(task: str) -> Metric:
    """The accuracy that is reported of a task: per character of the choice, unless the task is known for the plain."""
    return "accuracy" if task.lower().startswith(PLAIN_ACCURACY) else "normalized_accuracy"
