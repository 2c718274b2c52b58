"""Run a W&B sweep's YAML on this machine, without an account.

    python scripts/sweep.py scripts/sweeps/quick.yaml
    python scripts/sweep.py scripts/sweeps/report_grid.yaml --dry_run
    python scripts/sweep.py scripts/sweeps/seeds.yaml --set task_name=mrpc data_dir=glue 'seed=[1, 2, 3]'
    python scripts/sweep.py scripts/sweeps/rate_search.yaml --workers 2 --sweep_dir outputs/sweeps/rates

It can be stopped at any time; the same command resumes it. With an account, `wandb sweep FILE` and `wandb agent ID`
run the same file.
"""

from pathlib import Path

from peftlib import cli
from peftlib.arguments import check_train_arguments, parse_sweep_arguments, parse_train_arguments, train_parser
from peftlib.sweeps.command import prepared
from peftlib.sweeps.config import load_sweep


def main() -> None:
    # ── The sweep, checked before any run starts ─────────────────────────────────────────────────────────────
    file, args = parse_sweep_arguments()
    known = train_parser().flags()
    sweep = prepared(load_sweep(file, known, parse_train_arguments, args.set, check_train_arguments), file)

    # ── Preview ──────────────────────────────────────────────────────────────────────────────────────────────
    if args.dry_run:
        from peftlib.sweeps.preview import preview

        preview(sweep)
        return

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────────
    # Imported after the checks, so that an error in the file is reported before Optuna and W&B are loaded.
    with cli.importing():
        from peftlib.sweeps.console import SweepConsole
        from peftlib.sweeps.loop import run_sweep
        from peftlib.sweeps.search import Search

    folder = Path(args.sweep_dir) if args.sweep_dir else sweep.default_folder
    search = Search(sweep, folder, args.seed, retry_failed=args.retry_failed)
    run_sweep(search, SweepConsole(), args.workers, args.count)


if __name__ == "__main__":
    cli.run(main)
