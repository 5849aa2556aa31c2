"""The recipes of examples/recipes on 8, 64 and 512 GPUs: what `megatron-cpt plan` prints, as tables of their READMEs.

`python -m tests.examples.recipes` writes the tables. Data and weights are not needed: sizes are those of the models'
published config.json, and tokens are assumed as a user would with `--assume`.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_cpt.config.load import load_config
from megatron_cpt.config.schema import RunConfig
from megatron_cpt.config.units import parse_count
from megatron_cpt.planning.cost import cost_estimate
from megatron_cpt.planning.plan import RunPlan, make_plan
from megatron_cpt.planning.text_tables import size
from megatron_cpt.runs.records import short_time
from tests.planning.megatron_lm_lists import CONFIGS
from tests.planning.small_run import write_model

FOLDER = Path(__file__).parents[2] / "examples/recipes"
GPU, MFU = "H100-80GB", 0.4
_LLAMA_2_7B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "Meta-Llama-3-8B": CONFIGS["llama-3-8b"],
    "Meta-Llama-3-8B-Instruct": CONFIGS["llama-3-8b"],
    "Llama-3-8B-medical": CONFIGS["llama-3-8b"],
    "Mixtral-8x7B-v0.1": CONFIGS["mixtral-8x7b"],
    "Llama-2-7b-hf": _LLAMA_2_7B,
    "Llama-2-7b-japanese": _LLAMA_2_7B | {"vocab_size": 43176},
    "open_llama_3b_v2": _LLAMA_2_7B
    | {
        "num_hidden_layers": 26,
        "hidden_size": 3200,
        "intermediate_size": 8640,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
    },
    "TinyLlama-1.1B-intermediate-step-1431k-3T": _LLAMA_2_7B
    | {
        "num_hidden_layers": 22,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    "Llama-3.2-1B": CONFIGS["llama-3-8b"]
    | {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "pythia-410m": {
        "model_type": "gpt_neox",
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "OLMo-2-1124-7B-stage1": _LLAMA_2_7B
    | {"model_type": "olmo2", "vocab_size": 100352, "rope_theta": 500000.0, "rms_norm_eps": 1e-6},
    "Qwen3-30B-A3B-Base": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
    },
}
"""Sizes by the name of the folder in models/."""

# Tokens of data/NAME, as a user would assume them; those of a selection stand in its name. The parts of RedPajama and
# the Pile are rounded as their cards round them.
TOKENS = {
    "github": "59B", "wikipedia": "24B", "books": "26B", "arxiv": "28B", "stackexchange": "20B", "refinedweb": "600B",
    "refinedweb-2021-2022": "100B", "slimpajama": "600B", "pile": "300B", "pile_of_law": "60B", "c4": "150B",
    "general": "600B", "quality": "200B", "questions": "10B", "new": "10B", "web": "600B", "japanese": "100B",
    "english": "600B", "domain": "5B", "repositories": "10B", "short": "100B",
    "airoboros": "50M",
}  # fmt: skip
_SELECTED = re.compile(r"-([0-9]+[KMB])\.selection\.json$")


def assumed(config: RunConfig) -> dict[str, str]:
    """Tokens of the sources of a run."""
    found = {}
    for name, source in config.data.sources.items():
        (path,) = source.paths
        chosen = _SELECTED.search(path)
        found[name] = chosen[1] if chosen else TOKENS[path.removeprefix("data/")]
    return found


def plan_of(config: RunConfig, gpus: int) -> RunPlan:
    """The plan of a run on so many GPUs, in a folder of `world`."""
    return make_plan(config, gpus, {name: parse_count(tokens) for name, tokens in assumed(config).items()})


@dataclass(frozen=True)
class Recipe:
    """One run of a recipe."""

    path: str
    """Its YAML, below `FOLDER`."""
    settings: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Settings besides, by the number of GPUs."""
    cards: Mapping[int, str] = field(default_factory=dict)
    """Other GPUs than `GPU`, by their number."""

    def config(self, gpus: int) -> RunConfig:
        """Its configuration on so many GPUs."""
        return load_config(FOLDER / self.path, self.settings.get(gpus, ()))

    def card(self, gpus: int) -> str:
        """The kind of so many GPUs."""
        return self.cards.get(gpus, GPU)


_MANY_SEQUENCES = ("training.global_batch_size=1024", "training.micro_batch_size=2")
_THREE_A_RANK = ("parallel.tensor=2", "training.micro_batch_size=3")
RECIPES = (
    Recipe("medical/llama3_8b.yaml", {512: ("parallel.tensor=8",)}),
    Recipe("medical/open_llama_3b.yaml", {512: _THREE_A_RANK}),
    Recipe("medical/tinyllama_1.1b.yaml", {512: _THREE_A_RANK}),
    Recipe("rewarm_replay/pythia_410m.yaml", {64: ("training.global_batch_size=1152",), 512: _MANY_SEQUENCES}),
    Recipe("general/pythia_410m.yaml", {512: _MANY_SEQUENCES}),
    Recipe("learning_dynamics/llama3.2_1b.yaml"),
    Recipe("annealed_start/llama2_7b.yaml"),
    Recipe("decay_branch/olmo2_7b.yaml"),
    Recipe("new_language/llama2_7b.yaml"),
    Recipe("moe/mixtral_8x7b.yaml", cards={8: "H200-141GB"}),
    Recipe("moe/qwen3_30b_a3b.yaml", cards={8: "H200-141GB"}),
    Recipe("long_context/llama3_8b.yaml"),
    Recipe("medical_instruct/llama3_8b.yaml", {512: ("parallel.tensor=8", "parallel.pipeline=2")}),
    Recipe("medical_instruct/llama3_8b_instruct.yaml", {512: ("parallel.tensor=8",)}),
)
WORLDS = (8, 64, 512)


@contextmanager
def world() -> Iterator[None]:
    """A folder to plan in: the models without weights, and no data."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for name, config in MODELS.items():
            model = write_model(Path("models") / name)
            (model / "config.json").write_text(json.dumps(config))
        yield


def table(folder: str) -> str:
    """What a folder's recipes take, as Markdown."""
    lines = ["| recipe | GPUs | settings besides | memory of a GPU | time | GPU-hours |", "|---|---|---|---|---|---|"]
    for recipe in RECIPES:
        if not recipe.path.startswith(f"{folder}/"):
            continue
        for gpus in WORLDS:
            plan = plan_of(recipe.config(gpus), gpus)
            cost = cost_estimate(plan, recipe.card(gpus), MFU)
            words = ", ".join(f"`{word}`" for word in recipe.settings.get(gpus, ())) or "none"
            cells = [f"`{Path(recipe.path).name}`", f"{gpus} x {recipe.card(gpus)}", words]
            cells += [size(plan.model.memory.total), short_time(cost.hours * 3600), f"{cost.gpu_hours:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    first = next(recipe for recipe in RECIPES if recipe.path.startswith(f"{folder}/"))
    tokens = " ".join(f"{name}={count}" for name, count in assumed(first.config(8)).items())
    command = f"megatron-cpt plan examples/recipes/{first.path} --nproc 8 --gpu {first.card(8)} --assume {tokens}"
    return "\n".join([f"```bash\n{command}\n```\n", *lines])


_BETWEEN = re.compile(r"(<!-- plan -->\n).*(\n<!-- end of plan -->)", re.DOTALL)


def with_table(readme: Path) -> str:
    """A README with its table as the plans are now."""
    return _BETWEEN.sub(lambda found: f"{found[1]}{table(readme.parent.name)}{found[2]}", readme.read_text())


def main() -> None:
    """Writes the tables into the READMEs."""
    readmes = dict.fromkeys(sorted(FOLDER.glob("*/README.md")), "")
    with world():
        for path in readmes:
            readmes[path] = with_table(path)
    for path, text in readmes.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
