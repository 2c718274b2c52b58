"""Hints for flags of transformers and of common training scripts that have another name here."""

from __future__ import annotations

import re
from collections.abc import Collection

from peftlib.errors import A_SLIP, nearest
from peftlib.strategies.peft_method import PEFT_TYPES

#: (hint, the others' names). A hint applies if the command has all flags that it mentions; the first that applies wins.
_CALLED: tuple[tuple[str, str], ...] = (
    ("use --mixed_precision fp16, or no to turn it off", "fp16 half fp16_opt_level half_precision_backend"),
    ("use --mixed_precision bf16, or no to turn it off", "bf16"),
    ("use --mixed_precision, which is auto by default", "amp use_amp precision fp16_full_eval bf16_full_eval"),
    ("use --dtype fp16", "fp16 half"),
    ("use --dtype bf16", "bf16"),
    ("use --dtype", "torch_dtype precision"),
    ("use --model_name_or_path", "model model_name model_id model_path model_dir base_model bert_model"),
    ("use --model_revision", "revision"),
    ("the model's own tokenizer is used, as it was saved", "tokenizer tokenizer_name use_fast_tokenizer do_lower_case"),
    ("use --method", "peft_method tuning_method finetuning_type adapter_type"),
    ("use --method lora", "use_lora use_peft lora"),
    ("use --method bitfit", "use_bitfit bitfit bias_only"),
    ("use --lora_r; of another method of PEFT's it goes into --peft_kwargs", "r rank lora_rank lora_dim"),
    ("use --lora_alpha; of another method of PEFT's it goes into --peft_kwargs", "alpha lora_scaling"),
    ("use --adalora_init_r, with --method adalora", "init_r"),
    ("use --adalora_target_r, with --method adalora", "target_r adalora_r"),
    ("use --adalora_tinit, with --method adalora", "tinit"),
    ("use --adalora_tfinal, with --method adalora", "tfinal"),
    ("use --adalora_deltaT, with --method adalora", "deltaT delta_t mask_interval"),
    ("use --adalora_orth_reg_weight, with --method adalora", "orth_reg_weight reg_orth_coef"),
    ("it goes into --peft_kwargs, with --method peft",
     "block_size vector_length oft_block_size num_virtual_tokens prefix_projection prompt_tuning_init "
     "prompt_tuning_init_text encoder_reparameterization_type encoder_hidden_size encoder_num_layers encoder_dropout"),
    ("it is num_virtual_tokens in --peft_kwargs, with --method peft",
     "pre_seq_len prompt_length prompt_len prefix_length prefix_len soft_prompt_length n_prompt_tokens"),
    ("use --target_modules", "lora_target_modules lora_target lora_modules lora_targets modules_to_target"),
    ("use --bias_terms, with --method bitfit", "bias lora_bias train_bias"),
    ("the head always trains; --train_head false leaves it out with --method bitfit", "modules_to_save freeze_head"),
    ("use --task_name", "task glue_task glue_task_name"),
    ("use --dataset_name", "dataset dataset_id dataset_path"),
    ("use --dataset_config_name", "dataset_config subset config_name"),
    ("use --train_split_name", "train_split dataset_train_split"),
    ("use --validation_split_name", "validation_split eval_split dev_split"),
    ("use --validation_split_percentage, such as 10",
     "validation_size val_size eval_size dev_size test_size validation_ratio val_ratio eval_ratio dev_ratio "
     "validation_split_ratio val_split train_test_split train_split_percentage holdout hold_out"),
    ("use --test_split_name", "test_split dataset_test_split"),
    ("use --train_file", "train_data train_path train_data_file training_file data_path"),
    ("use --validation_file", "validation_data valid_file val_file dev_file eval_file eval_data_file validation_path"),
    ("give it to scripts/predict.py, once the run is finished", "test_file predict_file"),
    ("use --text_column_names", "text_column text_column_name sentence_column input_column text_field"),
    ("use --label_column_name", "label_column label_names label_field target_column"),
    ("use --max_length", "max_seq_length max_seq_len max_len seq_length sequence_length model_max_length"),
    ("use --max_train_samples", "max_samples num_train_samples train_samples"),
    ("use --max_eval_samples", "max_val_samples max_validation_samples"),
    ("use --dataloader_num_workers", "num_workers preprocessing_num_workers workers"),
    ("use --learning_rate", "lr rate peak_lr"),
    ("use --per_device_train_batch_size",
     "batch_size bs train_batch_size per_gpu_train_batch_size per_device_batch_size micro_batch_size train_bs"),
    ("use --per_device_eval_batch_size",
     "eval_batch_size per_gpu_eval_batch_size val_batch_size test_batch_size predict_batch_size batch_size bs"),
    ("use --gradient_accumulation_steps", "gradient_accumulation grad_accum grad_accumulation_steps"),
    ("use --num_train_epochs", "epochs num_epochs n_epochs max_epochs num_epoch train_epochs epoch"),
    ("use --max_train_steps", "max_steps num_steps num_training_steps num_train_steps total_steps"),
    ("use --num_warmup_steps", "warmup_steps lr_warmup_steps"),
    ("use --num_warmup_steps, or --warmup_ratio for a share of all updates", "warmup"),
    ("use --warmup_ratio", "warmup_proportion"),
    ("use --lr_scheduler_type", "lr_scheduler scheduler scheduler_type lr_schedule"),
    ("use --weight_decay", "wd decay l2"),
    ("use --dropout", "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout hidden_dropout"),
    ("use --class_weights", "class_weight weights loss_weights label_weights weighted_loss pos_weight balanced"),
    ("use --class_weights balanced", "use_class_weights balance_classes auto_class_weights is_unbalance"),
    ("use --label_smoothing_factor", "label_smoothing smoothing label_smoothing_epsilon label_smooth"),
    ("use --max_grad_norm", "grad_clip clip_grad gradient_clip clip_grad_norm gradient_clip_val gradient_clipping"),
    ("AdamW is the only optimizer", "optim optimizer adafactor optim_args"),
    ("AdamW's betas are always 0.9 and 0.999", "adam_beta1 adam_beta2 beta1 beta2 betas"),
    ("AdamW's epsilon is always 1e-8", "adam_epsilon epsilon eps"),
    ("use --gradient_checkpointing", "activation_checkpointing use_gradient_checkpointing checkpoint_activations"),
    ("not needed, --gradient_checkpointing has no options", "gradient_checkpointing_kwargs"),
    ("use --group_by_length, which is on by default", "length_grouped train_sampling_strategy"),
    ("use --seed", "data_seed random_seed random_state"),
    ("use --num_cpu_threads", "num_threads threads"),
    ("it is the launcher's: accelerate launch --cpu", "no_cuda use_cpu use_cuda"),
    ("not needed, the launcher tells each process its rank", "local_rank rank_id node_rank"),
    ("what is trained is small, and each GPU holds the whole model", "deepspeed fsdp fsdp_config ds_config zero_stage"),
    ("it is the launcher's: accelerate launch --multi_gpu --num_processes N", "n_gpu num_gpus gpus ngpu"),
    ("use --eval_steps N; without it every epoch ends with an evaluation",
     "eval_strategy evaluation_strategy evaluate_during_training eval_every eval_interval"),
    ("use --early_stopping_patience", "patience early_stopping early_stop"),
    ("not needed, the loss is better when smaller, and every metric when larger", "greater_is_better"),
    ("use --metric_for_best_model", "metric best_metric monitor"),
    ("not needed, the best state is always the one that is saved", "load_best_model_at_end save_best save_best_model"),
    ("not needed, train.py always trains", "do_train train"),
    ("not needed, train.py always evaluates on the validation split", "do_eval evaluate eval"),
    ("scripts/predict.py does that, with a finished run", "do_predict do_test predict"),
    ("use --checkpointing_steps N, or epoch", "save_steps save_strategy save_every save_interval checkpoint_steps"),
    ("use --checkpoints_total_limit", "save_total_limit keep_checkpoints max_checkpoints"),
    ("use --resume_from_checkpoint auto", "resume resume_training continue_training restart"),
    ("use --resume_from_checkpoint", "checkpoint ckpt resume_from checkpoint_path ckpt_path"),
    ("use --output_dir", "output out out_dir output_path save_dir save_path outdir"),
    ("use --output_file", "output out output_path"),
    ("trackers write into --output_dir", "logging_dir log_dir tensorboard_dir"),
    ("use --overwrite_output_dir", "overwrite"),
    ("use --report_to", "with_tracking use_wandb wandb log_with"),
    ("use --project_name", "wandb_project project"),
    ("use --run_name", "name exp_name experiment_name wandb_run_name wandb_name"),
    ("use --logging_steps N", "logging_strategy log_steps log_every log_interval log_every_n_steps"),
    ("use --hub_private_repo", "private hub_private"),
    ("use --hub_model_id", "repo_id push_to_hub_model_id hub_repo_id"),
)  # fmt: skip
_LINES: dict[str, list[str]] = {}
for _line, _names in _CALLED:
    for _name in _names.split():
        _LINES.setdefault(_name, []).append(_line)


def instead_of(name: str, known: Collection[str]) -> str:
    """Return `'; use --learning_rate'` for `lr`, `'; did you mean --seed?'` for a typo, or an empty string.

    Args:
        name: the unknown flag without leading dashes, with underscores.
        known: the command's flags that may be suggested, such as `--seed`.
    """
    for line in _LINES.get(name, ()):
        if flags_in(line) <= set(known):
            return f"; {line}"
    return nearest(f"--{name}", known, cutoff=A_SLIP)


def value_instead_of(flag: str, value: str, known: Collection[str]) -> str:
    """Return a hint as `instead_of` does, for a value that is not among the flag's `known` ones."""
    kind = value.lower().replace("-", "_")
    if flag == "--method" and kind in PEFT_TYPES:
        return f"; use --method peft --peft_type {kind}"
    if value == "False" and (words := [f'"{word}"' for word in known if word in ("no", "off")]):
        return f"; YAML reads {words[0]} as False without the quotes"
    return nearest(value, known)


def flags_in(line: str) -> set[str]:
    """Return the flags that a hint mentions, without the launcher's."""
    return set(re.findall(r"--\w+", line.partition("accelerate launch")[0]))
