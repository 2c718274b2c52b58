"""Run the comparison that this project began with, then report on it; the same command resumes it if it was stopped.

    python scripts/reproduce.py
    python scripts/reproduce.py --data_dir glue --max_train_samples 8000
    python scripts/reproduce.py --data_dir glue --dry_run    # which runs that would be
    python scripts/reproduce.py --data_dir glue --model_name_or_path bert-base-uncased --seeds 1,2,3,4,5

It first says which data are available; without the Hub or a GLUE folder the same grid runs on packaged data.
"""

import shlex
import sys
from pathlib import Path

from peftlib import cli
from peftlib.arguments import check_train_arguments, parse_reproduce_arguments, parse_train_arguments, train_parser


def main() -> None:
    # ── What can be reached ──────────────────────────────────────────────────────────────────────────────────
    args = parse_reproduce_arguments()
    from peftlib.console import Console
    from peftlib.reporting.folder import check_folder
    from peftlib.sweeps.command import prepared
    from peftlib.sweeps.config import load_sweep
    from peftlib.sweeps.preview import preview
    from peftlib.sweeps.reproduction import sweep_words, tasks_at_hand

    check_folder(Path(args.output_dir))
    tasks, notice = tasks_at_hand(args.data_dir)
    words, folder = sweep_words(args.model_name_or_path, tasks, args.data_dir, args.seeds, args.max_train_samples)
    file = Path(__file__).parent / "sweeps" / "reproduce.yaml"
    known, changes = train_parser().flags(), [*words, *args.set]
    sweep = prepared(load_sweep(file, known, parse_train_arguments, changes, check_train_arguments), file)
    if notice is not None:
        Console().note(notice)

    # ── Preview ──────────────────────────────────────────────────────────────────────────────────────────────
    if args.dry_run:
        preview(sweep)
        return

    # ── The runs ─────────────────────────────────────────────────────────────────────────────────────────────
    # Imported after the checks, so that wrong arguments are reported before Optuna and W&B are loaded.
    with cli.importing():
        from peftlib.sweeps.console import SweepConsole
        from peftlib.sweeps.loop import run_sweep
        from peftlib.sweeps.search import Search

    search = Search(sweep, Path(args.sweep_dir) if args.sweep_dir else folder, retry_failed=args.retry_failed)
    run_sweep(search, SweepConsole(), args.workers)

    # ── The report ───────────────────────────────────────────────────────────────────────────────────────────
    with cli.importing():
        from peftlib.reporting.console import publish
        from peftlib.reporting.runs import find_runs

    publish(find_runs([str(search.folder)]), Path(args.output_dir), command=shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    cli.run(main)
