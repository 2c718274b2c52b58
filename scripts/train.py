"""Fine-tune one encoder on one text-classification task with one method. The run reads top to bottom.

accelerate launch scripts/train.py --method bitfit
accelerate launch scripts/train.py --method lora --lora_r 8 --task_name mrpc --data_dir glue
accelerate launch --config_file accelerate_configs/single_gpu.yaml scripts/train.py --report_to wandb
accelerate launch scripts/train.py --config run.yaml    # flags from a file; --help lists them
"""

from peftlib import cli


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    # Imports below: a signal to the launcher counts from the first line on, and a wrong flag is answered without torch.
    from peftlib.arguments import parse_train_arguments

    args = parse_train_arguments().checked()
    which, data, how, out, hub, name = args.model, args.data, args.training, args.output, args.hub, args.task_name
    with cli.importing():
        from functools import partial

        from accelerate.utils import set_seed

        from peftlib.acceleration import accelerate_model
        from peftlib.data.loading import build_loaders, load_splits, longest_inputs
        from peftlib.data.sources import find_task
        from peftlib.distributed import everywhere, on_main
        from peftlib.evaluation.evaluator import evaluate
        from peftlib.modeling import Fingerprint, find_model, load_classifier, load_tokenizer
        from peftlib.strategies.parameters import ParameterCount, freeze_unread, size
        from peftlib.tracking.folder import choose_folder
        from peftlib.tracking.record import describe_run
        from peftlib.tracking.reporter import Reporter
        from peftlib.tracking.trackers import choose_trackers
        from peftlib.training.checkpointing import CheckpointKeeper, restore
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

    with everywhere(alike=args.of_all_nodes()):  # what one of several nodes cannot read ends all of them
        task, trackers = find_task(name, data.own, how.metric_for_best_model), choose_trackers(out.report_to)
    folder, resume = on_main(lambda: choose_folder(task.name, how.method, *out.place))

    # ── Accelerator, seed ────────────────────────────────────────────────────────────────────────────────────
    accelerator, precision = build_accelerator(
        how.mixed_precision, how.gradient_accumulation_steps, trackers, folder, how.num_cpu_threads
    )
    reporter = Reporter(accelerator, folder, args.flat(), trackers)
    reporter.notes(args.ignored)
    repository = choose_repository(hub.push_to_hub, hub.hub_model_id, hub.hub_private_repo, reporter)
    set_seed(how.seed)

    # ── Data ─────────────────────────────────────────────────────────────────────────────────────────────────
    with everywhere(in_turn=True):  # a node's first process tokenises, its others find the cache
        source = find_model(which.model_name_or_path, which.model_revision, which.trust_remote_code)
        tokenizer = load_tokenizer(source)
        splits = load_splits(task, tokenizer, data.data_dir, data.max_length, *data.limits)
    train_loader, eval_loader, batches = build_loaders(
        splits, tokenizer, how.batch_sizes, how.gradient_accumulation_steps, accelerator.num_processes, seed=how.seed,
        group_by_length=data.group_by_length, pad_to=data.pad_to, num_workers=data.dataloader_num_workers,
    )  # fmt: skip

    # ── Model, strategy ──────────────────────────────────────────────────────────────────────────────────────
    with everywhere():
        base, head = load_classifier(source, task.labels, args.dropout, splits.extent(data.pad_to), task.problem_type)
    base_size, fingerprint, rate = size(base), Fingerprint.of(base, head), args.learning_rate
    adapted = freeze_unread(args.strategy.apply(base, head), longest_inputs(train_loader), reporter.warn)
    parameters = ParameterCount.of(base_size, adapted)
    facts = describe_run(source, fingerprint, task, splits.facts(), parameters, precision, rate, batches.window_size)
    checkpoint, identity = choose_checkpoint(resume, reporter), identity_of(args.flat(), facts, accelerator)
    manifest = matching_manifest(checkpoint, identity, extend=out.extend_training, folder=folder)
    accelerate_model(adapted, accelerator.device, precision.name, how.frozen_dtype, args.reads_frozen, train_loader)

    # ── Optimizer, schedule ──────────────────────────────────────────────────────────────────────────────────
    plan = Plan.of(
        batches.windows_per_epoch, args.num_train_epochs, how.max_train_steps, eval_steps=how.eval_steps,
        logging_steps=out.logging_steps, max_grad_norm=how.max_grad_norm, patience=how.early_stopping_patience,
        best_metric=task.best_metric(how.metric_for_best_model),
    )  # fmt: skip
    optimizer = build_optimizer(adapted, rate, how.weight_decay, accelerator.device)
    scheduler = build_scheduler(optimizer, how.lr_scheduler_type, plan.steps, how.num_warmup_steps, how.warmup_ratio)

    # ── Prepare ──────────────────────────────────────────────────────────────────────────────────────────────
    model, optimizer, train_loader, eval_loader = accelerator.prepare(adapted, optimizer, train_loader, eval_loader)
    score = partial(evaluate, accelerator, model, eval_loader, splits.validation.labels, task.metrics)
    run = Training(accelerator, model, optimizer, scheduler, train_loader, eval_loader, batches, score, reporter, plan)
    run.cuda_graphs = how.cuda_graphs
    run.keeper = CheckpointKeeper(folder, out.checkpointing_steps, out.checkpoints_total_limit, identity, reporter)

    with Interruption(accelerator) as run.interruption, reporter.watching(plan.steps, facts, manifest):
        # ── Train ────────────────────────────────────────────────────────────────────────────────────────────
        set_seed(how.seed, device_specific=True)  # dropout differs between processes; the head's start did not
        if checkpoint is not None:
            restore(run, checkpoint)
        if how.auto_find_batch_size:
            fit_batches(run, resumed=checkpoint is not None)
        if out.dry_run:
            preview(run, head, reporter, args.flat())
            return
        progress = train(run)

        # ── Evaluate, save, push ─────────────────────────────────────────────────────────────────────────────
        evaluation = score_best(run)
        if accelerator.is_main_process:
            trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            saved = save_result(folder, args.strategy, trained, head, tokenizer, reporter.facts, evaluation)
            reporter.finish(flat_results(progress, evaluation, parameters, saved))
    push_result(repository, reporter)


if __name__ == "__main__":
    cli.run(main)
