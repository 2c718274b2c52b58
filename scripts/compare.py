"""Compare finished runs: a table, significance tests, plots, and a report in one HTML file.

    python scripts/compare.py outputs/sweeps/reproduce
    python scripts/compare.py outputs/mrpc-* outputs/sweeps/rate-search --output_dir report
    python scripts/compare.py outputs/bitfit outputs/lora --examples

Runs that differ in more than method, dropout, training loss, learning rate, warm-up and seed go into separate
comparisons, with the reason.
"""

import shlex
import sys
from pathlib import Path

from peftlib import cli
from peftlib.arguments import parse_compare_arguments


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    words, args = parse_compare_arguments()
    # Imported after the arguments are parsed, so that --help and flag errors are answered at once.
    with cli.importing():
        from peftlib.reporting.console import CompareConsole, publish
        from peftlib.reporting.folder import check_folder
        from peftlib.reporting.runs import find_runs

    runs = find_runs(words)

    # ── Two runs, example by example ─────────────────────────────────────────────────────────────────────────
    if args.examples:
        from peftlib.reporting.examples import show_disagreements

        show_disagreements(runs, CompareConsole(is_result=True), args.max_examples)
        return

    # ── All runs, in a report ────────────────────────────────────────────────────────────────────────────────
    check_folder(Path(args.output_dir))
    publish(runs, Path(args.output_dir), command=shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    cli.run(main)
