"""Run the comparison that this project began with, then report on it; stopped, the same command goes on.

    python scripts/reproduce.py
    python scripts/reproduce.py --data_dir glue --max_train_samples 8000
    python scripts/reproduce.py --data_dir glue --model_name_or_path bert-base-uncased --seeds 1,2,3,4,5

It says first what can be reached from here; without the Hub and a GLUE folder the same grid runs on packaged data.
"""

import subprocess
import sys
from pathlib import Path

from peftlib import cli
from peftlib.arguments import parse_reproduce_arguments

SCRIPTS = Path(__file__).resolve().parent


def main() -> None:
    args = parse_reproduce_arguments()
    # ── What can be reached ──────────────────────────────────────────────────────────────────────────────────
    from peftlib.sweeps.reproduction import sweep_words, tasks_at_hand

    tasks, notice = tasks_at_hand(args.data_dir)
    words, folder = sweep_words(args.model_name_or_path, tasks, args.data_dir, args.seeds, args.max_train_samples)
    folder = Path(args.sweep_dir) if args.sweep_dir else folder
    if notice is not None:
        print(notice, flush=True)

    # ── The runs ─────────────────────────────────────────────────────────────────────────────────────────────
    sweep = [SCRIPTS / "sweep.py", SCRIPTS / "sweeps" / "reproduce.yaml", "--sweep_dir", folder]
    run(*sweep, "--workers", args.workers, "--set", *words, *args.set)

    # ── The report ───────────────────────────────────────────────────────────────────────────────────────────
    run(SCRIPTS / "compare.py", folder, "--output_dir", args.output_dir)


def run(*words: object) -> None:
    """Another script of this folder; one that does not end well ends this one in the same way."""
    status = subprocess.run([sys.executable, *map(str, words)]).returncode
    if status != 0:
        sys.exit(status)


if __name__ == "__main__":
    cli.run(main)
