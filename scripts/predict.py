"""Evaluate a finished run on another split or file, or predict the classes of new texts.

    accelerate launch scripts/predict.py outputs/lora                              # the task's test split
    accelerate launch scripts/predict.py outputs/lora --split validation           # repeat the run's own evaluation
    accelerate launch scripts/predict.py outputs/lora --test_file mails/new.csv
    accelerate launch scripts/predict.py outputs/lora --text "a charming film"
    accelerate launch scripts/predict.py outputs/mnli --split ax                   # GLUE's diagnostics, AX.tsv

Scores and predictions are written to predictions/<split or file> in the run's folder.
"""

from pathlib import Path

from peftlib import cli


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    # Imports come later: first tie this process to its launcher, and report wrong flags without loading torch.
    from peftlib.arguments import parse_predict_arguments

    place, args = parse_predict_arguments()
    with cli.importing_torch():
        from peftlib.acceleration import accelerate_model
        from peftlib.console import Console
        from peftlib.data.encoding import encode
        from peftlib.data.loading import build_eval_loader
        from peftlib.distributed import everywhere, on_main
        from peftlib.evaluation.by_class import lines_of, worst
        from peftlib.evaluation.evaluator import evaluate
        from peftlib.evaluation.finished import Finished
        from peftlib.evaluation.predictions import in_words, refuse_other_answers, write_answers
        from peftlib.files import plain_name
        from peftlib.tracking.folder import writable_folder
        from peftlib.training.devices import build_accelerator

    # ── Run, data ────────────────────────────────────────────────────────────────────────────────────────────
    with everywhere():  # every node reads the run and the data
        run = Finished.read(Path(place))
        task, source = run.task, (args.data_dir, args.test_file, *args.columns)
        examples = run.typed(args.texts) if args.texts else run.examples(args.split, *source)
    name = plain_name(Path(args.test_file).stem, otherwise="files") if args.test_file else args.split
    folder = Path(args.output_dir) if args.output_dir else run.folder / "predictions" / name
    if not args.texts:
        texts = (examples.source, examples.fingerprint())
        on_main(lambda: refuse_other_answers(folder, run.folder, run.record.get("ended"), *texts))
        on_main(lambda: writable_folder(folder))

    # ── Accelerator ──────────────────────────────────────────────────────────────────────────────────────────
    asked = args.mixed_precision or run.record["precision"]["name"]
    accelerated = run.acceleration["enabled"]
    accelerator, precision = build_accelerator(asked, 1, [], folder, args.num_cpu_threads, accelerated=accelerated)

    # ── Model ────────────────────────────────────────────────────────────────────────────────────────────────
    with everywhere(in_turn=True):  # a node's first process tokenises, the others read the cache
        tokenizer = run.tokenizer()
        most = run.arguments["max_length"]
        split = encode(examples, tokenizer, most)
    with everywhere():
        model = run.load(args.model_name_or_path, args.trust_remote_code, split.extent).requires_grad_(False)
    accelerate_model(model, accelerator.device, precision.name, **run.acceleration)
    size = args.per_device_eval_batch_size or run.eval_batch_size
    loader = build_eval_loader(split, tokenizer, size, accelerator.num_processes, **run.layout)
    model, loader = accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(loader)

    # ── Evaluate ─────────────────────────────────────────────────────────────────────────────────────────────
    evaluation = evaluate(accelerator, model, loader, split.labels, task.metrics)

    # ── Show or save ─────────────────────────────────────────────────────────────────────────────────────────
    if args.texts:
        if accelerator.is_main_process:
            cut = {"cut": f"to the first {most} tokens"} if split.truncated else {}
            Console(is_result=True).facts("prediction", {**in_words(evaluation, task), **cut}, panel=True)
    elif accelerator.is_main_process:
        about = {"split": name, "precision": precision.name, **run.of_answers(split.source, split.fingerprint)}
        glue = None if args.test_file else task.glue_answers(args.split)
        scores, classes = write_answers(folder, task, examples.texts, glue, evaluation, about)
        shown = {score.removeprefix("eval_").replace("_", " "): f"{value:.4f}" for score, value in scores.items()}
        cut = {"cut": f"{split.truncated:,}, longer than {most} tokens"} if split.truncated else {}
        lines = {"run": place, "examples": f"{len(split):,} ({split.source})", **cut, **shown, "answers": str(folder)}
        console = Console()
        console.facts("evaluation", lines, panel=True)
        if classes:
            header, rows = lines_of(worst(classes, most=30))
            console.table(header, rows, numbers=len(header) - 1)
            if len(rows) < len(classes):
                console.note(f"of {len(classes):,} classes the {len(rows)} with the lowest F1; all are in classes.csv")


if __name__ == "__main__":
    cli.run(main)
