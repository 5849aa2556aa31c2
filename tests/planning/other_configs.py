"""Configurations of other programs as people write them, for small models and datasets."""

LLAMA_FACTORY = """
### model
model_name_or_path: base
trust_remote_code: true

### method
stage: pt
do_train: true
finetuning_type: full
deepspeed: examples/deepspeed/ds_z3_config.json

### dataset
dataset: medicine,general
dataset_dir: data
cutoff_len: 64
mix_strategy: interleave_under
interleave_probs: 0.7,0.3
preprocessing_num_workers: 16
val_size: 0.005

### output
output_dir: saves/llama/pt
logging_steps: 10
save_steps: 500
save_total_limit: 3
plot_loss: true
overwrite_output_dir: true
report_to: wandb

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-5
num_train_epochs: 2.0
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr: 1.0e-6
warmup_ratio: 0.03
weight_decay: 0.1
adam_beta2: 0.95
bf16: true
ddp_timeout: 180000000
eval_strategy: steps
eval_steps: 0.1
"""

TRAINER = {
    "output_dir": "out",
    "do_train": False,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 3e-05,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-08,
    "max_grad_norm": 1.0,
    "num_train_epochs": 3.0,
    "max_steps": 400,
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 40, "min_lr_ratio": 0.1, "decay_type": "1-sqrt"},
    "warmup_steps": 20,
    "bf16": True,
    "seed": 7,
    "data_seed": None,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 0.25,
    "logging_steps": 5,
    "optim": "adamw_torch_fused",
    "deepspeed": None,
    "fsdp": [],
    "fsdp_config": {"min_num_params": 0, "xla": False},
    "report_to": [],
    "gradient_checkpointing": True,
    "hub_token": "<HUB_TOKEN>",
    "_n_gpu": 1,
}

AXOLOTL = """
base_model: base
datasets:
  - path: data/books.jsonl
    type: completion
  - path: org/wiki
    type: completion
val_set_size: 0.02
output_dir: ./outputs/out
sequence_len: 64
sample_packing: true
pad_to_sequence_len: true
wandb_project: cpt
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_torch_fused
lr_scheduler: cosine
cosine_min_lr_ratio: 0.1
learning_rate: 2e-5
bf16: auto
tf32: false
gradient_checkpointing: true
flash_attention: true
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: <|end_of_text|>
"""

BRIDGE = """
_target_: megatron.bridge.training.config.ConfigContainer
train:
  _target_: megatron.bridge.training.config.TrainingConfig
  micro_batch_size: 1
  global_batch_size: 32
  train_iters: 500
  train_samples: null
  rampup_batch_size: null
model:
  _target_: megatron.bridge.models.llama.llama_provider.Llama3ModelProvider
  num_layers: 2
  hidden_size: 16
  num_query_groups: 2
  tensor_model_parallel_size: 2
  sequence_parallel: true
  virtual_pipeline_model_parallel_size: null
  gated_linear_unit: true
  share_embeddings_and_output_weights: false
  add_bias_linear: false
  seq_length: 64
  bf16: true
  params_dtype: {_target_: torch.bfloat16, _call_: false}
optimizer:
  optimizer: adam
  lr: 3.0e-05
  min_lr: 3.0e-06
  weight_decay: 0.1
  adam_beta2: 0.95
  use_distributed_optimizer: true
  exp_avg_dtype: {_target_: torch.float32, _call_: false}
scheduler:
  lr_decay_style: cosine
  lr_decay_iters: 500
  lr_warmup_iters: 50
  start_weight_decay: 0.1
  end_weight_decay: 0.1
dataset:
  _target_: megatron.bridge.training.config.GPTDatasetConfig
  seq_length: 64
  blend:
  - [data/medicine, data/general]
  - [0.7, 0.3]
  split: 99,1,0
  eod_mask_loss: false
validation: {eval_iters: 32, eval_interval: 100, eval_micro_batch_size: 2}
ddp: {overlap_grad_reduce: true, grad_reduce_in_fp32: true, average_in_collective: true}
checkpoint: {save: results/ckpt, save_interval: 100, pretrained_checkpoint: ckpts/llama, async_save: true}
logger: {log_interval: 10, tensorboard_dir: results/tb}
tokenizer: {tokenizer_type: HuggingFaceTokenizer, tokenizer_model: meta-llama/Llama-3-8B}
rng: {seed: 5}
mixed_precision: bf16_mixed
peft: null
"""

NEMO = """
name: megatron_llama
restore_from_path: llama.nemo
trainer:
  devices: 8
  num_nodes: 2
  precision: bf16-mixed
  max_steps: 1000
  log_every_n_steps: 10
  val_check_interval: 100
  limit_val_batches: 50
  gradient_clip_val: 0.5
  max_time: "00:03:50:00"
exp_manager:
  exp_dir: results/exp
  create_wandb_logger: true
  wandb_logger_kwargs: {project: cpt, name: x}
  checkpoint_callback_params: {save_top_k: 5, every_n_train_steps: 200}
model:
  mcore_gpt: true
  micro_batch_size: 1
  global_batch_size: 64
  tensor_model_parallel_size: 2
  encoder_seq_length: 64
  max_position_embeddings: ${.encoder_seq_length}
  num_layers: 2
  hidden_size: 16
  normalization: rmsnorm
  activation: fast-swiglu
  bias: false
  activations_checkpoint_granularity: selective
  seed: 77
  data:
    data_prefix: [0.7, data/medicine, 0.3, data/general]
    splits_string: 100,0,0
    seq_length: ${model.encoder_seq_length}
  optim:
    name: distributed_fused_adam
    lr: 2e-5
    weight_decay: 0.1
    betas: [0.9, 0.98]
    sched: {name: CosineAnnealing, warmup_steps: 50, constant_steps: 100, min_lr: 2e-6}
"""

NEMO_2 = """
_target_: nemo.collections.llm.api.pretrain
data: {_target_: nemo.collections.llm.gpt.data.pre_training.PreTrainingDataModule, paths: [data/medicine],
       seq_length: 64, global_batch_size: 16, micro_batch_size: 1, split: "1,0,0"}
trainer:
  max_steps: 100
  devices: 4
  num_nodes: 1
  strategy: {tensor_model_parallel_size: 2, sequence_parallel: true}
  plugins: {precision: bf16-mixed}
optim:
  config: {optimizer: adam, lr: 1e-4, adam_beta2: 0.95, clip_grad: 1.0, use_distributed_optimizer: true}
  lr_scheduler:
    _target_: nemo.lightning.pytorch.optim.lr_scheduler.CosineAnnealingScheduler
    warmup_steps: 10
    constant_steps: 0
    min_lr: 1e-5
log: {log_dir: results/nemo2, ckpt: {save_top_k: 1}}
"""

OLMO_CORE = {
    "_CLASS_": "__main__.ExperimentConfig",
    "init_seed": 12536,
    "load_path": "gs://checkpoints/step1",
    "model": {
        "_CLASS_": "olmo_core.nn.transformer.config.TransformerConfig",
        "d_model": 16,
        "n_layers": 4,
        "block": {"attention": {"n_heads": 4, "n_kv_heads": 2}},
    },
    "dataset": {
        "_CLASS_": "olmo_core.data.numpy_dataset.NumpyFSLDatasetConfig",
        "sequence_length": 64,
        "generate_doc_lengths": True,
        "tokenizer": {"vocab_size": 100278, "eos_token_id": 1},
        "source_mixture_config": {
            "requested_tokens": 1_000_000,
            "source_list": {
                "sources": [
                    {"source_name": "math", "target_ratio": 0.3, "paths": ["a/*.npy"], "max_repetition_ratio": 2.0},
                    {"source_name": "web", "target_ratio": 0.7, "paths": ["b/*.npy"]},
                ]
            },
        },
    },
    "data_loader": {"global_batch_size": 2048, "seed": 34521, "num_workers": 4},
    "train_module": {
        "rank_microbatch_size": 128,
        "max_sequence_length": 64,
        "max_grad_norm": 1.0,
        "z_loss_multiplier": 1e-5,
        "optim": {
            "_CLASS_": "olmo_core.optim.adamw.SkipStepAdamWConfig",
            "lr": 2e-4,
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
            "group_overrides": [{"params": ["embeddings.weight"], "opts": {"weight_decay": 0.0}}],
        },
        "scheduler": {
            "_CLASS_": "olmo_core.optim.scheduler.CosWithWarmup",
            "units": "steps",
            "warmup": 20,
            "alpha_f": 0.1,
        },
        "dp_config": {"name": "hsdp", "param_dtype": "bfloat16", "reduce_dtype": "float32"},
        "ac_config": {"mode": "selected_modules", "modules": ["blocks.*.feed_forward"]},
    },
    "trainer": {
        "save_folder": "gs://runs/math",
        "max_duration": {"value": 1_000_000, "unit": "tokens"},
        "callbacks": {
            "checkpointer": {"save_interval": 200, "ephemeral_save_interval": 50, "save_async": True},
            "wandb": {"enabled": False, "project": "p"},
            "lm_evaluator": {"eval_dataset": {"mix": "v3-small-ppl-validation"}, "eval_interval": 100},
            "downstream_evaluator": {"tasks": ["arc_easy"]},
        },
    },
}
