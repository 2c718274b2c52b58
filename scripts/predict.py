"""Score a finished run on another split or file, or let it answer texts without classes.

    accelerate launch scripts/predict.py outputs/lora                              # the task's test split
    accelerate launch scripts/predict.py outputs/lora --split validation           # again what the run was scored on
    accelerate launch scripts/predict.py outputs/lora --test_file mails/new.csv
    accelerate launch scripts/predict.py outputs/mnli --split ax                   # GLUE's diagnostics, AX.tsv

Scores and answers go to predictions/<split or file> in the run's folder.
"""

from pathlib import Path

from peftlib import cli


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    # Imports below: a signal to the launcher counts from the first line on, and a wrong flag is answered without torch.
    from peftlib.arguments import parse_predict_arguments

    place, args = parse_predict_arguments()
    with cli.importing():
        from peftlib.acceleration import accelerate_model
        from peftlib.console import Console
        from peftlib.data.encoding import encode
        from peftlib.data.loading import build_eval_loader
        from peftlib.data.own_data import plain_name
        from peftlib.evaluation.evaluator import evaluate
        from peftlib.evaluation.finished import Finished
        from peftlib.evaluation.predictions import place_of, refuse_other_answers, write_answers
        from peftlib.tracking.folder import writable_folder
        from peftlib.training.devices import build_accelerator

    # ── Run, data ────────────────────────────────────────────────────────────────────────────────────────────
    run = Finished.read(Path(place))
    task = run.task
    examples = run.examples(args.split, args.data_dir, args.test_file, args.text_column_names, args.label_column_name)
    name = plain_name(Path(args.test_file).stem) if args.test_file else args.split
    folder = Path(args.output_dir) if args.output_dir else run.folder / "predictions" / name
    refuse_other_answers(folder, examples.source, examples.fingerprint())
    writable_folder(folder)

    # ── Accelerator ──────────────────────────────────────────────────────────────────────────────────────────
    asked = args.mixed_precision or run.record["precision"]["name"]
    accelerator, precision = build_accelerator(asked, 1, [], folder, args.num_cpu_threads)

    # ── Model ────────────────────────────────────────────────────────────────────────────────────────────────
    tokenizer = run.tokenizer()
    with accelerator.local_main_process_first():  # it tokenises, the others find its cache
        split = encode(examples, tokenizer, run.arguments["max_length"])
    model = run.load(args.model_name_or_path, args.trust_remote_code, split.extent).requires_grad_(False)
    frozen = run.arguments.get("frozen_dtype", "auto")
    accelerate_model(model, accelerator.device, precision.name, frozen, run.strategy.reads_frozen_weights)
    size = args.per_device_eval_batch_size or run.eval_batch_size
    loader = build_eval_loader(split, tokenizer, size, accelerator.num_processes, **run.layout)
    model, loader = accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(loader)

    # ── Evaluate ─────────────────────────────────────────────────────────────────────────────────────────────
    evaluation = evaluate(accelerator, model, loader, split.labels, task.metrics)

    # ── Save ─────────────────────────────────────────────────────────────────────────────────────────────────
    if accelerator.is_main_process:
        about: dict[str, object] = {"run": place, "run_ended": run.record.get("ended"), "split": name}
        about |= {"source": split.source, "place": place_of(split.source), "fingerprint": split.fingerprint}
        about |= {"precision": precision.name, "global_step": run.record["results"].get("best_eval_step")}
        glue = None if args.test_file else task.glue_answers(args.split)
        scores = write_answers(folder, task, glue, evaluation, about)
        shown = {score.removeprefix("eval_").replace("_", " "): f"{value:.4f}" for score, value in scores.items()}
        lines = {"run": place, "examples": f"{len(split):,} ({split.source})", **shown, "answers": str(folder)}
        Console().facts("evaluation", lines, panel=True)


if __name__ == "__main__":
    cli.run(main)
