"""Kill a real run again and again, resume it each time, and hold the result against a run that was left alone.

    python tests/chaos.py --kills 30 --seed 1

Every life of the run ends with SIGKILL at a random moment: while it imports, loads, trains, or writes a checkpoint
(it writes one after every update). Moments are counted in updates, not in seconds, so that a machine whose load changes
still has the run alive at the last kill. Exit status 0 when the final adapter is bit-equal and nothing is left lying
around.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parents[1]


def command(folder: Path, extra: list[str]) -> list[str]:
    flags = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "2", "--resume_from_checkpoint", "auto"]
    return [sys.executable, str(ROOT / "scripts" / "train.py"), "--output_dir", str(folder), *flags, *extra]


def start(folder: Path, extra: list[str]) -> subprocess.Popen[bytes]:
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return subprocess.Popen(command(folder, extra), stdout=log, stderr=log, start_new_session=True)


def step_of(folder: Path) -> int:
    steps = [int(path.name.removeprefix("step_")) for path in folder.glob("checkpoints/step_*")]
    return max(steps, default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("extra", nargs="*", help="flags of train.py, after --")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print(f"chaos: {options.kills} kills, seed {options.seed}", flush=True)
    extra = options.extra or ["--max_train_samples", "1600", "--max_eval_samples", "100", "--num_train_epochs", "4"]
    # Dropout draws from the state that a resumed run goes on from; two threads that wait for each other crawl on a
    # machine at work.
    extra = [*extra, "--dropout", "0.1", "--num_cpu_threads", "1"]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        calm, hunted = Path(name) / "calm", Path(name) / "hunted"
        begin = time.monotonic()
        if start(calm, extra).wait() != 0:
            print((Path(name) / "calm.log").read_text(), file=sys.stderr)
            return 1
        setup = time.monotonic() - begin - json.loads((calm / "run.json").read_text())["seconds"]
        steps = json.loads((calm / "all_results.json").read_text())["global_step"]
        pace = json.loads((calm / "run.json").read_text())["seconds"] / steps
        for kill in range(1, options.kills + 1):
            run, begin = start(hunted, extra), time.monotonic()
            if chance.random() < 1 / 3:  # before it trains
                time.sleep(chance.uniform(0, setup))
            else:
                here = step_of(hunted)
                # Twice its share of what is left, at most; two updates for every later kill stay in any case.
                spare = steps - here - 2 * (options.kills - kill + 1)
                goal = here + chance.uniform(0, max(1.0, 2 * spare / (options.kills - kill + 2)))
                while step_of(hunted) < int(goal) and run.poll() is None:
                    time.sleep(0.002)
                time.sleep(goal % 1 * pace)
            if run.poll() is not None:
                print(f"  the run ended by itself (status {run.returncode}) before kill {kill}: give it more epochs")
                print((Path(name) / "hunted.log").read_text()[-3000:], file=sys.stderr)
                return 1
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            half_written = len(list(hunted.glob("checkpoints/.writing-*")))
            life = time.monotonic() - begin
            print(
                f"  kill {kill} after {life:.1f} s: at step {step_of(hunted)}, {half_written} half-written", flush=True
            )
        if start(hunted, extra).wait() != 0:
            print((Path(name) / "hunted.log").read_text()[-3000:], file=sys.stderr)
            return 1
        left, right = (load_file(folder / "adapter_model.safetensors") for folder in (calm, hunted))
        differ = [key for key in left.keys() | right.keys() if left[key].tobytes() != right[key].tobytes()]
        curves = [[line.get("train/loss") for line in read(folder)] for folder in (calm, hunted)]
        orphans = [path for path in hunted.rglob("*") if path.name.startswith((".writing-", ".saving-"))]
        orphans += hunted.rglob("*.tmp")
        resumed = json.loads((hunted / "run.json").read_text()).get("resumed_at_step", 0)
        print(f"  adapter: {'DIFFERS in ' + differ[0] if differ else 'bit-equal'}; losses: "
              f"{'equal' if curves[0] == curves[1] else 'DIFFER'}; orphans: {len(orphans)}; "
              f"the last life went on from step {resumed} of {steps}")  # fmt: skip
        return 1 if differ or orphans or curves[0] != curves[1] or not resumed else 0


def read(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
