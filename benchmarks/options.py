"""Shared by the benchmarks' command lines: flags, a description of the machine, and writing of results."""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig

from peftlib.files import write_json, write_text
from peftlib.modeling import DEFAULT_MODEL, find_model, load_tokenizer
from peftlib.tracking.machine import environment
from peftlib.training.precision import choose_precision

#: A value of --model_name_or_path: bert-base-uncased's shape with random weights, on which speed does not depend.
BERT_BASE_SHAPE = "bert-base-shape"
_VERSIONS = ("python", "torch", "transformers", "accelerate", "peft")


def common_parser(description: str, output: str, model: str = DEFAULT_MODEL) -> argparse.ArgumentParser:
    """Build a parser with the flags of every benchmark.

    Args:
        description: the script's docstring.
        output: the default output folder.
        model: the default model.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="a folder in GLUE's layout; none takes the packaged data")
    parser.add_argument("--model_name_or_path", default=model, help=f"default: {model}")
    parser.add_argument("--num_cpu_threads", type=int, default=0, help="per process; 0 takes all cores")
    parser.add_argument("--output_dir", type=Path, default=Path(output), help=f"default: {output}")
    return parser


@contextmanager
def model_at_hand(name: str) -> Iterator[str]:
    """Yield the value of `--model_name_or_path` for `scripts/train.py`: a new folder for `BERT_BASE_SHAPE`."""
    with tempfile.TemporaryDirectory(prefix="bench-model-") as folder:
        yield write_random_bert(Path(folder), BertConfig()) if name == BERT_BASE_SHAPE else name


def write_random_bert(folder: Path, config: BertConfig) -> str:
    """Save a BERT with random weights and the packaged model's tokenizer.

    The default configuration is that of bert-base-uncased, which has the same vocabulary.
    """
    AutoModel.from_config(config).save_pretrained(folder)
    load_tokenizer(find_model(DEFAULT_MODEL)).save_pretrained(folder)
    return str(folder)


def describe(name: str) -> dict[str, Any]:
    """Describe this run of `benchmarks.<name>`: date, command, machine and versions."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
        "faster_bf16": choose_precision("auto", device).name == "bf16",
        **environment(device),
    }


def heading(facts: dict[str, Any]) -> str:
    """Format machine, versions, date, command, and a note where bf16 is not faster, as Markdown."""
    machine, versions, git = facts["machine"], facts["versions"], facts["git"]
    commit = "" if git is None else f", commit {git['commit'][:10]}{' with changes' if git['changed'] else ''}"
    lines = [
        f"{machine['device']}, {machine['cpu_count']} CPU cores, {machine['platform']}; "
        + ", ".join(f"{name} {versions[name]}" for name in _VERSIONS)
        + f"; {facts['date']}{commit}.",
        f"`{facts['command']}`",
    ]
    if not facts["faster_bf16"]:
        lines.append('"ours" takes fp32 here, since this device does not multiply bf16 matrices faster.')
    return "\n\n".join(lines)


def write(folder: Path, name: str, found: dict[str, Any], text: str) -> None:
    """Write FOLDER/<name>.json and FOLDER/<name>.md; the latter gets a heading and is also printed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", found)
    text = f"{heading(found)}\n\n{text}\n"
    write_text(folder / f"{name}.md", text)
    print(text)


def say(line: str) -> None:
    """Print progress to stderr, as stdout is for the tables only."""
    print(line, file=sys.stderr, flush=True)
