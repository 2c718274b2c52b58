"""Make a plain checkpoint of a finished run: its adapter in the weights, loaded by transformers alone.

python scripts/export.py outputs/lora
python scripts/export.py outputs/lora --output_dir models/reviews --dtype bf16

pipeline("text-classification", model="models/reviews")
"""

from pathlib import Path

from peftlib import cli
from peftlib.arguments import parse_export_arguments


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    place, args = parse_export_arguments()
    # Imported below the arguments, so that --help and a wrong flag are answered before torch is loaded.
    with cli.importing():
        import torch

        from peftlib.console import Console
        from peftlib.evaluation.finished import Finished
        from peftlib.strategies.adapter import merged
        from peftlib.tracking.folder import writable_folder
        from peftlib.training.saving import save_checkpoint

    # ── Run ──────────────────────────────────────────────────────────────────────────────────────────────────
    run = Finished.read(Path(place))
    folder = writable_folder(Path(args.output_dir) if args.output_dir else run.folder / "model", empty=True)

    # ── Model ────────────────────────────────────────────────────────────────────────────────────────────────
    tokenizer = run.tokenizer()
    model = merged(run.load(args.model_name_or_path, args.trust_remote_code))
    model = model.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype])

    # ── Save ─────────────────────────────────────────────────────────────────────────────────────────────────
    save_checkpoint(folder, model, tokenizer, run.record)
    Console().note(f"{place} as a plain checkpoint in {args.dtype}: {folder}")


if __name__ == "__main__":
    cli.run(main)
