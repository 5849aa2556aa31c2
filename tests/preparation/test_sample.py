import gzip
import json
from pathlib import Path

from megatron_cpt.preparation.inputs import input_files
from megatron_cpt.preparation.job import Job, PrepareSettings
from megatron_cpt.preparation.pieces import spans
from megatron_cpt.preparation.tokenize_pieces import SAMPLED_CHARACTERS, sample
from megatron_cpt.tokenizer.tokenizer import Tokenizer


def test_the_sample_comes_from_all_over_the_input(tmp_path: Path, tokenizer_folder: Path) -> None:
    for number in range(40):
        lines = "\n".join(json.dumps({"text": f"{number} " + "x" * 900}) for _ in range(100)).encode()
        name = tmp_path / f"{number:02d}.jsonl"
        if number % 2:
            name.write_bytes(lines)
        else:
            Path(f"{name}.gz").write_bytes(gzip.compress(lines))
    job = Job.describe(
        tmp_path / "out", PrepareSettings(), input_files([str(tmp_path)]), Tokenizer.load(tokenizer_folder)
    )
    found = spans(job.inputs, job.piece_size, "text")
    texts = sample(job, found, found[1].piece)
    assert 0.9 * SAMPLED_CHARACTERS < sum(map(len, texts)) <= SAMPLED_CHARACTERS
    assert len({text.split()[0] for text in texts if " " in text}) == 16
