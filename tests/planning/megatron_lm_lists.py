"""Argument lists as people type them for Megatron-LM, and the Hugging Face configs of the models that they mean.

Sizes are those of the models' published config.json.
"""

import json
from pathlib import Path
from typing import Any

_DENSE = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "hidden_act": "silu"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3-8b": _DENSE
    | {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.02,
        "tie_word_embeddings": False,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
}
_COMMON = (
    "--use-mcore-models --disable-bias-linear --swiglu --normalization RMSNorm --position-embedding-type rope "
    "--no-masked-softmax-fusion --attention-dropout 0.0 --hidden-dropout 0.0 --untie-embeddings-and-output-weights "
    "--group-query-attention --bf16 --clip-grad 1.0 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 "
    "--init-method-std 0.02 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
    "--ckpt-format torch_dist --log-interval 10 --save-interval 500 --no-load-optim --no-load-rng "
)
LISTS = {
    "llama-3-8b": _COMMON
    + (
        "--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 --num-query-groups 8 "
        "--seq-length 8192 --max-position-embeddings 8192 --rotary-base 500000 --rotary-percent 1.0 "
        "--micro-batch-size 1 --global-batch-size 192 --train-iters 3000 --lr 3e-5 --min-lr 3e-6 "
        "--lr-decay-style cosine --lr-warmup-fraction 0.01 --tensor-model-parallel-size 4 --sequence-parallel "
        "--tokenizer-type HuggingFaceTokenizer --tokenizer-model Llama-3-8B --split 99,1,0 --eval-iters 10 "
        "--eval-interval 100 --load llama-mcore --save runs/llama --tensorboard-dir tb --recompute-activations "
        "--data-path 0.7 medicine_text_document 0.3 general_text_document"
    ),
    "mixtral-8x7b": _COMMON
    + (
        "--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 --num-query-groups 8 "
        "--seq-length 4096 --max-position-embeddings 32768 --rotary-base 1000000 --num-experts 8 --moe-router-topk 2 "
        "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 --moe-grouped-gemm "
        "--moe-token-dispatcher-type alltoall --expert-model-parallel-size 8 --pipeline-model-parallel-size 4 "
        "--num-layers-per-virtual-pipeline-stage 4 --micro-batch-size 1 --global-batch-size 256 "
        "--train-samples 1280000 --lr-decay-samples 1280000 --lr-warmup-samples 12800 --lr 1e-4 --min-lr 1e-5 "
        "--lr-decay-style cosine --split 100,0,0 --data-path medicine_text_document"
    ),
    "qwen2.5-7b": _COMMON
    + (
        "--num-layers 28 --hidden-size 3584 --ffn-hidden-size 18944 --num-attention-heads 28 --num-query-groups 4 "
        "--add-qkv-bias --norm-epsilon 1e-6 --seq-length 4096 --max-position-embeddings 131072 "
        "--rotary-base 1000000 --micro-batch-size 2 --global-batch-size 128 --train-iters 1000 --lr 2e-5 "
        "--min-lr 2e-6 --lr-decay-style WSD --lr-wsd-decay-style minus_sqrt --lr-wsd-decay-iters 100 "
        "--lr-warmup-iters 20 --tensor-model-parallel-size 4 --reset-attention-mask --reset-position-ids "
        "--eod-mask-loss --exit-duration-in-mins 230 --exit-signal-handler --eval-iters 8 --eval-interval 50 "
        "--train-data-path medicine_text_document general_text_document "
        "--valid-data-path medicine-held-out general-held-out"
    ),
}


def write_config(folder: Path, name: str, **changes: Any) -> str:
    """A model folder with its config.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name] | changes))
    return str(folder)
