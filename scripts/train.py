"""Fine-tune one encoder on one text-classification task with one method. The run reads top to bottom.

accelerate launch scripts/train.py --method bitfit
accelerate launch scripts/train.py --method lora --lora_r 8 --task_name mrpc --data_dir glue
accelerate launch --config_file accelerate_configs/single_gpu.yaml scripts/train.py --report_to wandb
accelerate launch scripts/train.py --config run.yaml    # flags from a file; --help lists them
"""

from peftlib import cli


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    # Imports come later: first tie this process to its launcher, and report wrong flags without loading torch.
    from peftlib.arguments import parse_train_arguments

    args = parse_train_arguments().checked()
    model_args, data_args, train_args, output_args, hub_args = args.groups
    with cli.importing_torch():
        from functools import partial

        from accelerate.utils import set_seed

        from peftlib.acceleration import accelerate_model
        from peftlib.data.loading import build_loaders, load_splits, longest_inputs
        from peftlib.data.sources import find_task
        from peftlib.distributed import everywhere, on_main, refuse_differences
        from peftlib.evaluation.evaluator import evaluate
        from peftlib.fingerprint import Fingerprint
        from peftlib.modeling import find_model, load_classifier, load_tokenizer
        from peftlib.strategies.parameters import ParameterCount, freeze_unread, size
        from peftlib.tracking.folder import choose_folder
        from peftlib.tracking.record import describe_run
        from peftlib.tracking.reporter import Reporter
        from peftlib.tracking.trackers import choose_trackers
        from peftlib.training.checkpointing import CheckpointKeeper, restore
        from peftlib.training.data_parallel import prepare
        from peftlib.training.devices import build_accelerator
        from peftlib.training.interruption import Interruption
        from peftlib.training.loop import train
        from peftlib.training.manifest import choose_checkpoint, identity_of, matching_manifest
        from peftlib.training.memory import fit_batches
        from peftlib.training.milestones import score_best
        from peftlib.training.optimization import build_optimizer, build_scheduler
        from peftlib.training.preview import preview
        from peftlib.training.publishing import choose_repository, push_result
        from peftlib.training.saving import flat_results, save_result
        from peftlib.training.state import Plan, Training

    with everywhere():  # an error on one node ends all nodes
        task = find_task(args.task_name, data_args.own)
        train_args.refuse_misfits(task)
        trackers = choose_trackers(output_args.report_to)
    refuse_differences(args.of_all_nodes())
    folder, resume = on_main(lambda: choose_folder(task.name, train_args.method, *output_args.place))

    # ── Accelerator, seed ────────────────────────────────────────────────────────────────────────────────────
    accelerator, precision = build_accelerator(
        train_args.mixed_precision, train_args.gradient_accumulation_steps, trackers, folder,
        train_args.num_cpu_threads, accelerated=train_args.accelerates,
    )  # fmt: skip
    reporter = Reporter(accelerator, folder, args.flat(), trackers)
    reporter.notes(args.ignored)
    repository = choose_repository(hub_args.push_to_hub, hub_args.hub_model_id, hub_args.hub_private_repo, reporter)
    set_seed(train_args.seed)

    # ── Data ─────────────────────────────────────────────────────────────────────────────────────────────────
    with everywhere(in_turn=True):  # a node's first process tokenises, the others read the cache
        source = find_model(model_args.model_name_or_path, model_args.model_revision, model_args.trust_remote_code)
        tokenizer = load_tokenizer(source)
        splits = load_splits(
            task, tokenizer, data_args.data_dir, data_args.max_length, *data_args.limits, train_args.class_weights
        )
    train_loader, eval_loader, batches = build_loaders(
        splits, tokenizer, train_args.batch_sizes, train_args.gradient_accumulation_steps, accelerator.num_processes,
        seed=train_args.seed, group_by_length=data_args.group_by_length, pad_to=data_args.pad_to,
        num_workers=data_args.dataloader_num_workers,
    )  # fmt: skip

    # ── Model, strategy ──────────────────────────────────────────────────────────────────────────────────────
    with everywhere():
        base, head, new = load_classifier(
            source, task.labels, args.dropout, splits.extent(data_args.pad_to), task.problem_type,
            virtual_tokens=args.strategy.virtual_tokens, pads_alike=bool(data_args.pad_to), warn=reporter.warn,
        )  # fmt: skip
    base_size, fingerprint, rate = size(base), Fingerprint.of(base, new), args.learning_rate
    adapted = freeze_unread(args.strategy.apply(base, head), longest_inputs(train_loader), reporter.warn)
    parameters = ParameterCount.of(base_size, adapted)
    facts = describe_run(source, fingerprint, task, splits.facts(), parameters, precision, rate, batches.window_size)
    checkpoint, identity = choose_checkpoint(resume, reporter), identity_of(args.flat(), facts, accelerator)
    manifest = matching_manifest(checkpoint, identity, extend=output_args.extend_training, folder=folder)
    accelerate_model(
        adapted, accelerator.device, precision.name, train_args.frozen_dtype,
        reads_frozen=args.strategy.reads_frozen_weights, loader=train_loader, enabled=train_args.accelerates,
        recompute=train_args.gradient_checkpointing,
    )  # fmt: skip

    # ── Optimizer, schedule ──────────────────────────────────────────────────────────────────────────────────
    plan = Plan.of(
        batches.windows_per_epoch, args.num_train_epochs, train_args.max_train_steps, eval_steps=train_args.eval_steps,
        logging_steps=output_args.logging_steps, max_grad_norm=train_args.max_grad_norm,
        patience=train_args.early_stopping_patience, best_metric=task.best_metric(train_args.metric_for_best_model),
        label_smoothing=train_args.label_smoothing_factor,
    )  # fmt: skip
    optimizer = build_optimizer(adapted, rate, train_args.weight_decay, accelerator.device)
    scheduler = build_scheduler(optimizer, train_args.lr_scheduler_type, plan.steps, *train_args.warmup)

    # ── Prepare ──────────────────────────────────────────────────────────────────────────────────────────────
    model, optimizer, train_loader, eval_loader = prepare(accelerator, adapted, optimizer, train_loader, eval_loader)
    score = partial(evaluate, accelerator, model, eval_loader, splits.validation.labels, task.metrics)
    interruption = Interruption(accelerator)
    run = Training(
        accelerator, model, optimizer, scheduler, train_loader, eval_loader, batches, score, reporter, plan,
        keeper=CheckpointKeeper(folder, *output_args.checkpointing, identity, reporter),
        cuda_graphs=args.records_graphs, hook=args.strategy.step_hook(adapted, plan.steps), interruption=interruption,
    )  # fmt: skip

    with interruption, reporter.watching(plan.steps, facts, manifest):
        # ── Train ────────────────────────────────────────────────────────────────────────────────────────────
        set_seed(train_args.seed, device_specific=True)  # for dropout; the head's initial weights must agree
        exact = checkpoint is not None and restore(run, checkpoint)
        if train_args.auto_find_batch_size:
            fit_batches(run, keep_micro_batch=exact)
        if output_args.dry_run:
            preview(run, head, reporter, args.flat())
            return
        progress = train(run)
        reporter.update(steps=progress.step)  # fewer than planned if it has stopped early

        # ── Evaluate, save, push ─────────────────────────────────────────────────────────────────────────────
        evaluation = score_best(run)
        if accelerator.is_main_process:
            trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            saved = save_result(folder, args.strategy, trained, head, tokenizer, reporter.facts, evaluation)
            reporter.finish(flat_results(progress, evaluation, parameters, saved))
    push_result(repository, reporter)


if __name__ == "__main__":
    cli.run(main)
