"""Put the answers of finished runs into the zip that GLUE's server takes (https://gluebenchmark.com/submit).

    python scripts/submit.py outputs/cola outputs/mrpc-* outputs/sweeps/mnli ...
    python scripts/submit.py outputs/* --fill WNLI --output_file submissions/bitfit.zip
    python scripts/submit.py outputs/mrpc --fill rest

scripts/predict.py writes the answers (for mnli also with --split test_mismatched and ax); missing ones are listed.
"""

from pathlib import Path

from peftlib import cli
from peftlib.arguments import parse_submit_arguments


def main() -> None:
    # ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────
    words, args = parse_submit_arguments()
    # Imported after the arguments are parsed, so that --help and flag errors are answered at once.
    with cli.importing():
        from peftlib.console import Console
        from peftlib.reporting.runs import find_runs
        from peftlib.reporting.submission import check_place, collect

    path, console = Path(args.output_file), Console()
    check_place(path)

    # ── Answers, checked ─────────────────────────────────────────────────────────────────────────────────────
    submission = collect(find_runs(words), args.filled)
    submission.show(console)

    # ── The zip ──────────────────────────────────────────────────────────────────────────────────────────────
    submission.write(path)
    console.note(f"for https://gluebenchmark.com/submit: {path}")


if __name__ == "__main__":
    cli.run(main)
