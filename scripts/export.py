"""Export a finished run as a plain checkpoint: its adapter is merged, so that transformers alone can load it.

python scripts/export.py outputs/lora
python scripts/export.py outputs/lora --output_dir models/reviews --dtype bf16
python scripts/export.py outputs/lora --output_dir models/reviews --push_to_hub    # and on the Hub, as me/reviews
python scripts/export.py outputs/lora --adapter --push_to_hub    # the adapter as it is, as me/lora

pipeline("text-classification", model="models/reviews")
"""

from pathlib import Path

from peftlib import cli
from peftlib.arguments import parse_export_arguments


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    place, args, hub = parse_export_arguments()
    # Imported after the arguments are parsed, so that --help and flag errors are answered before torch is loaded.
    with cli.importing_torch():
        import torch

        from peftlib.console import Console
        from peftlib.evaluation.finished import Finished
        from peftlib.strategies.adapter import merged
        from peftlib.tracking.folder import writable_folder
        from peftlib.training.publishing import find_repository, push_adapter, push_checkpoint
        from peftlib.training.saving import save_checkpoint

    # ── Run ──────────────────────────────────────────────────────────────────────────────────────────────────
    run, console = Finished.read(Path(place)), Console()
    folder, repository = Path(args.output_dir) if args.output_dir else run.folder / "model", None
    if not args.adapter:
        run.refuse_what_cannot_be_merged()
    if hub.push_to_hub:
        repository = find_repository(hub.hub_model_id, args.name_for(run.folder), hub.hub_private_repo)
        if args.adapter:
            console.note(f"{place} pushed to {push_adapter(run.folder, run.record, repository)}")
            return
    writable_folder(folder, empty=True)

    # ── Model ────────────────────────────────────────────────────────────────────────────────────────────────
    tokenizer = run.tokenizer()
    model = merged(run.load(args.model_name_or_path, args.trust_remote_code))
    model = model.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype])

    # ── Save ─────────────────────────────────────────────────────────────────────────────────────────────────
    save_checkpoint(folder, model, tokenizer, run.record, repository.id if repository else str(folder))
    console.note(f"{place} as a plain checkpoint in {args.dtype}: {folder}")
    if repository is not None:
        console.note(f"pushed to {push_checkpoint(folder, repository)}")


if __name__ == "__main__":
    cli.run(main)
