"""A model of several is what the method's formula gives, tensor by tensor, and a checkpoint like any other."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_cpt.checkpoint.average import Averaging, average, linear, ties, trim
from megatron_cpt.checkpoint.convert import hf_from_checkpoint
from megatron_cpt.checkpoint.hf_folder import SINGLE
from megatron_cpt.commands.evaluate import main as evaluate
from megatron_cpt.config.errors import BadInput, NumericsFault
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.parallel import groups
from tests.checkpoint.hf_models import all_tensors, assert_same_tensors, write_llama, write_model
from tests.families.folders import MODELS
from tests.ranks import Ranks
from tests.train.runs import train
from tests.workshop import Workshop

BASE = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
FIRST = BASE + torch.tensor([4.0, -3.0, 0.5, 1.0, 0.0])
SECOND = BASE + torch.tensor([2.0, 3.0, -5.0, 0.25, 0.125])


def made(method: Any, weights: Sequence[float], models: Sequence[Tensor] = (FIRST, SECOND), **others: Any) -> list[Any]:
    """What a method makes of models, and of the base where it has one."""
    base = [] if method == "linear" else [BASE]
    how = Averaging(method=method, weights=weights, base=Path("base") if base else None, **others)
    assert [*how.faults(len(models))] == []
    found: list[Any] = how.combine(models, *base).tolist()
    return found


def test_a_linear_mean() -> None:
    assert made("linear", [3, 1]) == [4.5, -0.5, -0.125 + 0.25, 1.8125, 1.03125]


def test_sums_of_differences() -> None:
    assert made("task_arithmetic", [1, 1]) == [7, 1, -3.5, 2.25, 1.125]
    # Away from what the second model learned, and half as far.
    assert made("task_arithmetic", [0.5, -1], scale=0.5) == [1.0, -1.25, 3.625, 1.125, 0.9375]


def test_ties_by_hand() -> None:
    """Of five differences three stay: 4, -3, 1 and 2, 3, -5. At the second place no sign is elected."""
    assert made("ties", [1, 1], density=0.6) == [4, 1, -4, 2, 1]
    # The second weighs thrice: (4 + 3 * 2) / 4, and its own 3 where the first has -3.
    assert made("ties", [1, 3], density=0.6) == [3.5, 4, -4, 2, 1]
    assert made("ties", [1, 3], density=0.6, scale=2) == [6, 7, -9, 3, 1]


def test_ties_keeps_a_fifth_of_each_tensor_unless_told_otherwise() -> None:
    assert made("ties", [1, 1]) == [5, 1, -4, 1, 1]


def test_shares_of_any_size() -> None:
    assert made("linear", [3e300, 1e300]) == pytest.approx(made("linear", [3, 1]))
    for size in (1e-300, 1e300):
        assert made("ties", [size, 3 * size], density=0.6) == pytest.approx([3.5, 4, -4, 2, 1])


def test_trimming() -> None:
    assert trim(torch.tensor([[1.0, -4.0], [3.0, 2.0]]), 0.5).tolist() == [[0, -4], [3, 0]]
    # As large as the smallest that stays, and one at least.
    assert trim(torch.tensor([1.0, -1.0, 0.5, 2.0]), 0.5).tolist() == [1, -1, 0, 2]
    assert trim(torch.tensor([0.5, -0.25]), 0.01).tolist() == [0.5, 0]


numbers = st.integers(-64, 64).map(lambda number: number / 64)


@st.composite
def tensors(draw: st.DrawFn, least: int = 1) -> list[Tensor]:
    """Some tensors of one size, of numbers whose sums are exact."""
    size, count = draw(st.integers(1, 12)), draw(st.integers(least, 4))
    return [torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size))) for _ in range(count)]


@given(tensors(least=2))
def test_ties_of_one_whole_model_is_that_model(models: list[Tensor]) -> None:
    base, model = models[:2]
    for weight in (1.0, 0.5):
        how = Averaging(method="ties", weights=[weight], base=Path("base"), density=1.0)
        assert torch.equal(how.combine([model], base), model)
    assert torch.equal(linear([model], [0.5]), model)


@given(st.data(), tensors(least=2), st.sampled_from(["linear", "task_arithmetic", "ties"]), st.sampled_from([0.3, 1.0]))
def test_the_order_of_the_models_does_not_matter(
    data: st.DataObject, models: list[Tensor], method: Any, density: float
) -> None:
    base, *models = models
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(models), max_size=len(models)))
    order = data.draw(st.permutations(range(len(models))))
    others: dict[str, Any] = {} if method == "linear" else {"base": Path("base")}
    others |= {"density": density} if method == "ties" else {}
    bases = [] if method == "linear" else [base]

    def found(places: Sequence[int]) -> Tensor:
        how = Averaging(method=method, weights=[weights[place] for place in places], **others)
        return how.combine([models[place] for place in places], *bases)

    torch.testing.assert_close(found(order), found(range(len(models))), rtol=0, atol=1e-6)


@given(tensors(least=2))
def test_ties_lies_between_the_differences_of_the_elected_sign(models: list[Tensor]) -> None:
    """And is 0 where they cancel out; a linear mean knows no signs."""
    found, total = ties(models, [1.0] * len(models)), torch.stack(models).sum(dim=0)
    for place, value in enumerate(found.tolist()):
        sign = math.copysign(1, total[place]) if total[place] else 0
        same = [float(model[place]) for model in models if float(model[place]) * sign > 0]
        assert (min(same) <= value <= max(same)) if same else value == 0
    torch.testing.assert_close(linear(models, [1.0] * len(models)), total / len(models))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": [1]}, "is no list of 2 shares"),
        ({"weights": [1, -1]}, "is no list of 2 shares"),
        ({"weights": [0, 0], "method": "ties", "base": Path("base")}, "is no list of 2 shares"),
        ({"weights": [1, math.nan], "method": "task_arithmetic", "base": Path("base")}, "is no list of 2 numbers"),
        ({"method": "ties"}, "--base"),
        ({"base": Path("base")}, "base base: a linear mean has none"),
        ({"scale": 0.5}, "scale 0.5: a linear mean has none"),
        ({"density": 0.5}, "density 0.5: linear trims nothing"),
        ({"density": 0.0, "method": "ties", "base": Path("base")}, "density 0.0: must be more than 0"),
        ({"scale": math.inf, "method": "ties", "base": Path("base")}, "scale inf: must be a number"),
        (
            {"scale": 1e39, "method": "task_arithmetic", "base": Path("base")},
            "scale 1e+39: must be a number of float32",
        ),
        (
            {"weights": [1, 1e300], "method": "task_arithmetic", "base": Path("base")},
            "is no list of 2 numbers of float32",
        ),
        ({"weights": [1e308, 1e308]}, "is no list of 2 shares"),
    ],
)
def test_settings_that_make_no_model(settings: dict[str, Any], said: str) -> None:
    assert said in " ".join(str(fault) for fault in Averaging(**({"weights": [1, 1]} | settings)).faults(2))


def averaged(sources: list[Path], settings: dict[str, Any], output: Path) -> str:
    """Job: averages. Returns the dtype."""
    groups.init_model_parallel(ParallelSettings())
    return average(sources, Averaging(**settings), output)


def exported(checkpoint: Path, output: Path) -> None:
    """Job: a checkpoint to a folder."""
    groups.init_model_parallel(ParallelSettings())
    hf_from_checkpoint(checkpoint, output)


def evaluated(source: Path, questions: Path, output: Path) -> dict[str, Any]:
    """Job: `megatron-cpt evaluate`."""
    assert evaluate([str(source), "--tasks", str(questions), "--output", str(output)]) == 0
    tasks: dict[str, Any] = orjson.loads(output.read_bytes())["tasks"]
    return tasks


def refusal(sources: list[Path], settings: dict[str, Any], output: Path) -> str:
    """Job: what a model that cannot be made says."""
    with pytest.raises(BadInput) as error:
        averaged(sources, settings, output)
    return str(error.value)


@pytest.mark.ci
def test_a_step_back_towards_the_base(one_rank: Ranks, workshop: Workshop, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("training.tokens=4 steps", "checkpoint.export_hf.end=true", "validation.sets={}")
    one_rank.call(train, path=workshop.write_config(run), overrides=settings)
    checkpoint = run / "checkpoints" / "step-00000004"
    sources, output = [checkpoint, workshop.hf], tmp_path / "mean"
    assert one_rank.call(averaged, sources=sources, settings={"weights": [3.0, 1.0]}, output=output) == ["float32"]
    one_rank.call(exported, checkpoint=tmp_path / "mean", output=tmp_path / "exported")
    trained, base, mean = (
        load_file(folder / "model.safetensors") for folder in (run / "hf", workshop.hf, tmp_path / "exported")
    )
    assert mean.keys() == trained.keys()
    for name, value in mean.items():
        torch.testing.assert_close(value, 0.75 * trained[name] + 0.25 * base[name], rtol=0, atol=1e-7)
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    # Its history is that of neither.
    assert (checkpoint / "hf/lineage.json").exists() and not [*tmp_path.glob("[me]*/**/lineage.json")]
    card = (tmp_path / "exported/README.md").read_text()
    assert "Weighted mean of models" in card and "| run/step-00000004 | 3 |" in card and "| hf | 1 |" in card
    assert str(tmp_path) not in card
    # It is evaluated, and started from, as any checkpoint is: the same numbers as from its export.
    questions = workshop.folder / "questions.jsonl"
    of_mean, of_exported, of_base = (
        one_rank.call(evaluated, source=source, questions=questions, output=tmp_path / f"{source.name}.json")[0]
        for source in (tmp_path / "mean", tmp_path / "exported", workshop.hf)
    )
    assert of_mean == of_exported != of_base
    path = workshop.write_config(tmp_path / "further")
    one_rank.call(train, path=path, overrides=(f"init_from.checkpoint={tmp_path / 'mean'}", "training.tokens=4 steps"))
    said = one_rank.call(refusal, sources=sources, settings={"weights": [1.0]}, output=tmp_path / "other")[0]
    assert "is no list of 2 shares" in said


def write_changed(folder: Path, parent: Path, seed: int) -> Path:
    """A model whose weights are some way from another's."""
    folder.mkdir()
    for path in parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(seed)
    changed = {name: value + 0.1 * torch.randn_like(value) for name, value in all_tensors(parent).items()}
    save_file(changed, folder / SINGLE, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["llama_tied", "gpt_neox", "qwen3_moe_mixed"])
def test_ties_of_folders_is_that_of_each_of_their_tensors(one_rank: Ranks, tmp_path: Path, kind: str) -> None:
    base = write_model(tmp_path / "base", MODELS[kind])
    models = [write_changed(tmp_path / f"model{seed}", base, seed) for seed in (1, 2)]
    settings = {"method": "ties", "weights": [1.0, 2.0], "base": base, "density": 0.4, "scale": 0.9}
    one_rank.call(averaged, sources=models, settings=settings, output=tmp_path / "ties")
    one_rank.call(exported, checkpoint=tmp_path / "ties", output=tmp_path / "exported")
    start, first, second = map(all_tensors, (base, *models))
    for name, value in all_tensors(tmp_path / "exported").items():
        expected = Averaging(**settings).combine([first[name], second[name]], start[name])  # type: ignore[arg-type]
        assert torch.equal(value, expected), name
        assert 0.4 <= float((value != start[name]).float().mean()) < 0.9, name
    card = (tmp_path / "exported/README.md").read_text()
    assert "TIES" in card and "Base model: `base`." in card and "Density: 0.4." in card and "| model2 | 2 |" in card


def test_what_is_no_parameter_stays(one_rank: Ranks, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", MODELS["apertus"], torch.bfloat16)
    one_rank.call(averaged, sources=[base, base], settings={"weights": [1.0, 3.0]}, output=tmp_path / "mean")
    one_rank.call(exported, checkpoint=tmp_path / "mean", output=tmp_path / "exported")
    assert_same_tensors(tmp_path / "exported", base)


def test_a_checkpoint_is_the_model_that_it_was_made_from(one_rank: Ranks, tmp_path: Path) -> None:
    """Of the average itself, read back: task arithmetic of one difference with weight 1."""
    base = write_llama(tmp_path / "base")
    model = write_changed(tmp_path / "model", base, 1)
    one_rank.call(averaged, sources=[model, base], settings={"weights": [1.0, 0.0]}, output=tmp_path / "alone")
    settings = {"method": "task_arithmetic", "weights": [-1.0], "base": base}
    one_rank.call(averaged, sources=[tmp_path / "alone"], settings=settings, output=tmp_path / "away")
    one_rank.call(exported, checkpoint=tmp_path / "away", output=tmp_path / "exported")
    start, there = all_tensors(base), all_tensors(model)
    for name, value in all_tensors(tmp_path / "exported").items():
        torch.testing.assert_close(value, 2 * start[name] - there[name], rtol=0, atol=1e-6)


def test_bfloat16_stays_bfloat16(one_rank: Ranks, tmp_path: Path) -> None:
    narrow, wide = write_llama(tmp_path / "narrow", torch.bfloat16), write_llama(tmp_path / "wide")
    for sources, dtype in (([narrow, wide], "bfloat16"), ([wide, narrow], "float32")):
        output = tmp_path / dtype
        assert one_rank.call(averaged, sources=sources, settings={"weights": [1, 1]}, output=output) == [dtype]


def overflow(sources: list[Path], settings: dict[str, Any], output: Path) -> str:
    """Job: what a model with a weight that is not finite says."""
    with pytest.raises(NumericsFault) as error:
        averaged(sources, settings, output)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_refused(one_rank: Ranks, tmp_path: Path, dtype: torch.dtype) -> None:
    base = write_llama(tmp_path / "base", dtype)
    model = write_changed(tmp_path / "model", base, 1)
    word = str(dtype).removeprefix("torch.")
    far = {name: 100 * value for name, value in all_tensors(model).items()}
    save_file(far, model / SINGLE, metadata={"format": "pt"})
    for change in ({"method": "task_arithmetic", "scale": 3e38, "weights": [64]}, {"method": "ties", "scale": 3.4e38}):
        settings = {"weights": [1], "base": base} | change
        [said] = one_rank.call(overflow, sources=[model], settings=settings, output=tmp_path / "out")
        assert f"a weight of the result is not finite in {word}, and nothing was written" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_models_that_are_not_of_one_kind_are_refused(one_rank: Ranks, tmp_path: Path) -> None:
    model = write_llama(tmp_path / "model")
    tied = write_llama(tmp_path / "tied", tie_word_embeddings=True)
    incomplete, more = (write_changed(tmp_path / name, model, 1) for name in ("incomplete", "more"))
    kept = all_tensors(incomplete)
    del kept["model.layers.1.mlp.up_proj.weight"]
    save_file(kept, incomplete / SINGLE)
    save_file(all_tensors(more) | {"model.layers.1.mlp.up_proj.bias": torch.zeros(44)}, more / SINGLE)
    for other, named in (
        (tied, f"{tied}: is of another model than {model}: tied_embeddings is True and False"),
        (incomplete, "model.layers.1.mlp.up_proj.weight"),
        (more, "model.layers.1.mlp.up_proj.bias"),
    ):
        for method, base in (("linear", None), ("ties", other)):
            sources = [model, other] if base is None else [model, model]
            settings = {"weights": [1, 1], "method": method, "base": base}
            [said] = one_rank.call(refusal, sources=sources, settings=settings, output=tmp_path / "out")
            assert named in said
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
