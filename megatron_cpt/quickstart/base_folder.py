"""The quickstart's Hugging Face folder: a byte-level BPE trained on its corpora, and a small Llama's config.json.

There are no weights in it: the base model is trained from random ones.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megatron_cpt.runs.folder import write_durably, write_json

END_OF_TEXT = "<|endoftext|>"
_END_OF_TEXT_ID = 0
VOCABULARY = 4096
_LONGEST_INPUT = 512
"""Tokens of the longest sequence that the model's positions and the tokenizer allow."""

SMALL_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": _LONGEST_INPUT,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "bos_token_id": None,
    "eos_token_id": _END_OF_TEXT_ID,
    "dtype": "float32",
}


def write_base_folder(corpora: Sequence[Path], folder: Path, model: dict[str, Any] = SMALL_LLAMA) -> Path:
    """Writes tokenizer files and config.json of the base model; returns the folder.

    config.json comes last: a folder that has it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "tokenizer.json", _train_tokenizer(corpora, model["vocab_size"]).to_str(pretty=True))
    write_json(folder / "special_tokens_map.json", {"eos_token": END_OF_TEXT})
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "model_max_length": _LONGEST_INPUT,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(folder / "config.json", model)
    return folder


def _train_tokenizer(corpora: Sequence[Path], vocabulary: int) -> Tokenizer:
    """A byte-level BPE over JSONL corpora. The same corpora give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(corpora), trainer)
    return tokenizer


def texts(corpora: Sequence[Path]) -> Iterator[str]:
    """The text of every document of JSONL corpora, in order."""
    for path in corpora:
        with path.open("rb") as lines:
            for line in lines:
                yield orjson.loads(line)["text"]
