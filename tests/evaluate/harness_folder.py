"""A folder of harness tasks for tests, over one file of questions."""

from pathlib import Path

import orjson

from tests.workshop import GENERAL

SETTINGS = {
    "choices": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: choices\n"
    "doc_to_target: answer\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "goes_on": "output_type: loglikelihood\ndoc_to_text: '{{question}}'\ndoc_to_target: ' {{choices[0]}}'\n"
    "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    "whole": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
}


def write_harness_tasks(folder: Path) -> None:
    """Three tasks over eight questions; one is longer than the model's input of 64 tokens."""
    words = GENERAL.split()
    lines = [
        {"question": " ".join(words * (9 if number == 4 else 1))[: 40 + 800 * (number == 4) + 3 * number],
         "choices": [" ".join(words[n : n + 2 + number % 3]) for n in (0, 5, 9)], "answer": number % 3}
        for number in range(8)
    ]  # fmt: skip
    data = folder / "questions.jsonl"
    data.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    for name, settings in SETTINGS.items():
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{settings}")
