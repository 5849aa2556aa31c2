"""The layer with attention and MLP in parallel; its numbers are held to transformers' in tests/checkpoint."""

from typing import Any

import pytest
import torch
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_cpt.config.errors import BadInput
from megatron_cpt.config.schema import ParallelSettings
from megatron_cpt.families.family import ModelShape
from megatron_cpt.model.layers import ParallelResidualLayer, layer_spec
from megatron_cpt.parallel import groups
from megatron_cpt.parallel.groups import seed_everything
from tests.ranks import Ranks


def layer_of(parallel: bool, **changes: Any) -> TransformerLayer:
    """A layer as the spec of such a shape builds it."""
    shape = ModelShape(
        family="gpt_neox",
        layers=1,
        hidden=16,
        ffn_hidden=20,
        heads=2,
        query_groups=2,
        head_dim=8,
        vocabulary=8,
        max_positions=8,
        norm_epsilon=1e-5,
        rope_base=1e4,
        normalization="LayerNorm",
        gated_mlp=False,
        parallel_residual=parallel,
    )
    config = TransformerConfig(num_layers=1, hidden_size=16, ffn_hidden_size=20, num_attention_heads=2, **changes)
    layer: TransformerLayer = build_module(layer_spec(shape), config=config, layer_number=1)
    return layer


def paths() -> dict[str, Any]:
    """A job: the output of both kinds of layer, with the same weights, beside sums of their parts."""
    groups.init_model_parallel(ParallelSettings())
    seed_everything(0)
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "use_cpu_initialization": True}
    parallel, serial = layer_of(True, **quiet), layer_of(False, **quiet)
    for parameter in parallel.parameters():
        parameter.data.normal_(std=0.3)
    serial.load_state_dict(parallel.state_dict())
    entering = torch.randn(5, 3, 16)
    before = entering.clone()
    with torch.no_grad():
        attended = sum(parallel.self_attention(parallel.input_layernorm(entering), None))
        transformed = sum(parallel.mlp(parallel.pre_mlp_layernorm(entering)))
        training = parallel(hidden_states=entering)[0]
        inference = parallel.eval()(hidden_states=entering)[0]
        one_after_the_other = serial(hidden_states=entering)[0].detach()
    return {
        "kinds": (type(parallel) is ParallelResidualLayer, type(serial) is TransformerLayer),
        "expected": entering + attended + transformed,
        "training": training,
        "inference": inference,
        "serial": one_after_the_other,
        "untouched": torch.equal(entering, before),
    }


def test_attention_and_mlp_read_the_same_input(one_rank: Ranks) -> None:
    [found] = one_rank.call(paths)
    assert found["kinds"] == (True, True)
    torch.testing.assert_close(found["training"], found["expected"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["inference"], found["expected"], rtol=0, atol=1e-5)
    assert (found["serial"] - found["expected"]).abs().max() > 0.1
    assert found["untouched"]


def refusals() -> tuple[str, str]:
    groups.init_model_parallel(ParallelSettings())
    with pytest.raises(BadInput) as recomputation:
        layer_of(True, recompute_granularity="selective", recompute_modules=["core_attn", "mlp"])
    with pytest.raises(ValueError) as context:
        layer_of(True, use_cpu_initialization=True)(hidden_states=torch.zeros(2, 1, 16), context=torch.zeros(2, 1, 16))
    return str(recomputation.value), str(context.value)


def test_what_it_would_leave_out_is_refused(one_rank: Ranks) -> None:
    recomputation, context = one_rank.call(refusals)[0]
    assert "recompute_modules = ['core_attn', 'mlp']" in recomputation
    assert "takes no context" in context
