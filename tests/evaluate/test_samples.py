"""Greedy text of a run's models: that of transformers' own logits, the same at every call, and what is refused."""

from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_cpt.commands.report import main
from megatron_cpt.config.errors import BadInput, IntegrityFault
from megatron_cpt.evaluate.samples import LENGTH, PROMPTS, continued
from megatron_cpt.runs.folder import RunFolder, read_status, write_status
from megatron_cpt.runs.samples import Samples, read_samples
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop


def by_hand(hf_folder: Path, prompt: str) -> str:
    """The most likely token of transformers' logits, one after another."""
    tokenizer, model = AutoTokenizer.from_pretrained(hf_folder), AutoModelForCausalLM.from_pretrained(hf_folder)
    ids = prompted = tokenizer(prompt, return_tensors="pt").input_ids
    for _ in range(min(LENGTH, model.config.max_position_embeddings - ids.shape[1])):
        following = model(ids).logits[0, -1].argmax().view(1, 1)
        if following.item() == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, following], dim=1)
    return tokenizer.decode(ids[0, prompted.shape[1] :], skip_special_tokens=True)


@pytest.mark.ci
def test_samples_are_made_read_and_shown(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run, prompts = RunFolder(tmp_path / "run"), tmp_path / "prompts.txt"
    words = ("training.tokens=4 steps", "checkpoint.export_hf.end=true", "validation.sets={}")
    one_rank.call(train, path=workshop.write_config(run.path), overrides=words)
    # Settings of a folder that would draw at random, were they heard.
    (run.hf / "generation_config.json").write_text('{"do_sample": true, "temperature": 9.0, "repetition_penalty": 5.0}')
    prompts.write_text("the river ran\n\nthe gradient\\nof a <b>loss\n")
    for _ in range(2):
        assert main([str(run.path), "--samples", str(prompts)]) == 0
        made = run.samples.read_bytes()
        samples = read_samples(run.samples)
        assert isinstance(samples, Samples)
        assert samples.prompts == ("the river ran", "the gradient\nof a <b>loss")
        before, after = samples.models
        assert (before.folder, before.step, before.tokens) == (str(workshop.hf), 0, 0)
        assert (after.folder, after.step, after.tokens) == (str(run.hf), 4, 4 * 8 * 32)
        assert before.texts != after.texts
    assert run.samples.read_bytes() == made
    for model in (before, after):
        assert model.texts == tuple(by_hand(Path(model.folder), prompt) for prompt in samples.prompts)
    page = run.report.read_text()
    assert ">Samples</h2>" in page and "step 4, 1.02K tokens" in page and "before the first step" in page
    assert "of a &lt;b&gt;loss" in page and "<b>loss" not in page
    assert main([str(run.path)]) == 0  # without torch, from what was made
    assert ">Samples</h2>" in run.report.read_text()
    run.samples.write_bytes(made.replace(b"river", b"liver"))
    with pytest.raises(IntegrityFault, match="is not what was written"):
        main([str(run.path)])


def test_what_cannot_be_sampled_is_refused(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    words = ("training.tokens=2 steps", "validation.sets={}", "schedule.warmup=null", "checkpoint.export_hf=null")
    one_rank.call(train, path=workshop.write_config(run.path), overrides=words)
    with pytest.raises(BadInput, match=r"export_hf\.end=true"):
        main([str(run.path), "--samples"])
    status = read_status(run.status)
    assert status is not None
    write_status(run.status, type(status)("running", step=status.step, tokens=status.tokens))
    with pytest.raises(BadInput, match="is not at its end"):
        main([str(run.path), "--samples"])
    with pytest.raises(BadInput, match="leave --watch out"):
        main([str(run.path), "--samples", "--watch"])
    for content, said in ((b"", "holds no prompt"), (b"\xff\xfe", "cannot be read as text")):
        (tmp_path / "prompts.txt").write_bytes(content)
        with pytest.raises(BadInput, match=said):
            main([str(run.path), "--samples", str(tmp_path / "prompts.txt")])
    with pytest.raises(BadInput, match="tokens: 1 to 63 leave room"):
        continued(workshop.hf, ["the river ran " * 400])
    assert not run.samples.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"length": 4, "prompts": ["a"], "models": [{"folder": "x", "step": 1, "tokens": 2, "texts": []}]},
        {"length": 4, "prompts": "a", "models": []},
        {"length": 4, "prompts": ["a"]},
        {"length": 4, "prompts": [1], "models": []},
    ],
)
def test_a_file_that_holds_anything_else_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "samples.json"
    path.write_bytes(orjson.dumps(content))
    with pytest.raises(IntegrityFault):
        read_samples(path)


def test_the_prompts_are_all_different() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) == 8
