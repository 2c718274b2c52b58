"""The zip file for GLUE's server, made of the answers that finished runs have written."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from peftlib.console import Console
from peftlib.data.glue_server import REST, SERVER_FILES, ServerFile
from peftlib.data.own_data import task_in_table
from peftlib.data.tasks import TASKS
from peftlib.errors import RunError, UserError
from peftlib.evaluation.predictions import ABOUT
from peftlib.files import obstacle, write_bytes
from peftlib.reporting.runs import Run


@dataclass
class Submission:
    """The files for GLUE's server, as far as there are any.

    Attributes:
        contents: file name -> bytes, in the server's order.
        origins: file name -> where the file comes from, in words.
        missing: a line for each missing or refused file: why, and the command that makes it.
        without_run: names in `SERVER_FILES` of missing files whose task has no run.
        left_out: a line for each run that does not contribute, and why.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    without_run: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print where each file comes from, and what is missing."""
        for line in self.left_out:
            console.note(f"left out: {line}")
        if self.origins:
            counts = {file.name: f"{file.examples:,}" for file in SERVER_FILES.values()}
            lines = [[name, counts[name], origin] for name, origin in self.origins.items()]
            console.table(["file", "answers", "from"], lines, title="submission", numbers=1)
        for line in self.missing:
            console.note(line)

    def write(self, path: Path) -> None:
        """Write the zip atomically; the same answers give the same bytes.

        Raises:
            UserError: files are missing.
            RunError: writing failed, for instance on a full disk.
        """
        if self.missing:
            missing = f"{len(self.missing)} of {len(SERVER_FILES)} files are missing; run the commands above"
            hint = f", or use --fill {','.join(self.without_run)}" if self.without_run else ""
            raise UserError(f"{path}: not written, {missing}{hint}")
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            for name, content in self.contents.items():
                about = zipfile.ZipInfo(name)  # always dated 1980, for the same bytes
                about.compress_type, about.create_system, about.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
                file.writestr(about, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, archive.getvalue())
        except OSError as error:
            raise RunError(
                f"--output_file {path}: cannot be written ({error}); free some space, or name another file"
            ) from error


def check_place(path: Path) -> None:
    """Refuse a path where the zip cannot be written, before any work is done.

    Raises:
        UserError: it is a folder, a file that is no submission, below a file, or in a read-only folder.
    """
    if path.is_dir():
        raise UserError(f"--output_file {path}: is a folder; name a file")
    if path.exists() and not _is_submission(path):
        raise UserError(f"--output_file {path}: exists and is not a submission; name another file")
    if (problem := obstacle(path.absolute().parent)) is not None:
        raise UserError(f"--output_file {path}: {problem}; name another place")


def _is_submission(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {*archive.namelist()} == {file.name for file in SERVER_FILES.values()}
    except (OSError, zipfile.BadZipFile):
        return False


def collect(runs: list[Run], fill: Collection[str] = ()) -> Submission:
    """Collect the runs' answers in the server's format; of several runs of a task, the best one's.

    The best run has the highest validation score by the task's first metric; ties go to the one named first. It is
    chosen before looking for its answers.

    Args:
        fill: names in `SERVER_FILES` to fill with a constant answer if no run has answered; `REST` stands for all
            tasks without a run.

    Raises:
        UserError: a file to fill has been answered by a run, or two runs of a task cannot be compared.
    """
    submission = Submission()
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        task = None if run.problem else task_in_table(run.arguments)
        if task is not None and task.glue is not None:
            by_task.setdefault(task.name, []).append(run)
        else:
            submission.left_out.append(f"{run.folder}: {run.problem or f'{run.task} is not a GLUE task'}")
    best = {task: _best_of(task, several) for task, several in by_task.items()}
    for name, file in SERVER_FILES.items():
        if file.task_name in best:
            _add(submission, file, *best[file.task_name], fill=name in fill)
        elif name in fill or REST in fill:
            _fill(submission, file)
        else:
            train = f"accelerate launch scripts/train.py --task_name {file.task_name}"
            submission.missing.append(f"{file.name}: no run on {file.task_name} was given; train one with {train}")
            submission.without_run.append(name)
    return submission


def _best_of(task: str, runs: list[Run]) -> tuple[Run, str]:
    """The run that answers for a task, and why it was chosen, in words."""
    first, *others = runs
    if not others:
        return first, ""
    for other in others:
        if _scored_on(other) != _scored_on(first):
            raise UserError(
                f"{task}: {first.folder} and {other.folder} were scored on different validation examples; name one"
            )
    metric = TASKS[task].metrics[0]
    best = max(runs, key=lambda run: run.score(metric))
    return best, f", the best of {len(runs)} by {metric} on the validation split ({best.score(metric):.4f})"


def _scored_on(run: Run) -> str:
    return str(run.record["data"]["validation"]["fingerprint"])


def _add(submission: Submission, file: ServerFile, run: Run, why: str, *, fill: bool) -> None:
    """Add a run's answers, or say what is wrong with them."""
    path = run.folder / "predictions" / file.split / file.name
    if fill:
        if path.exists():
            raise UserError(f"--fill {path.stem}: {path} has a run's answers; leave out the run or {path.stem}")
        _fill(submission, file)
        return
    try:
        content = path.read_bytes()
    except OSError as error:
        problem: str | None = _why_absent(path) if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        content = b""
    else:
        problem = file.problem(content) or _staleness(path, run)
    if problem is None:
        submission.contents[file.name], submission.origins[file.name] = content, f"{run.folder}{why}"
        return
    predict = f"accelerate launch scripts/predict.py {shlex.quote(str(run.folder))}"
    split = "" if file.split == "test" else f" --split {file.split}"
    submission.missing.append(f"{file.name}: {run.folder}{why}: {problem}; make it with {predict}{split}")


def _fill(submission: Submission, file: ServerFile) -> None:
    submission.contents[file.name] = file.filled().encode()
    submission.origins[file.name] = f"--fill: always {file.constant}"


def _why_absent(path: Path) -> str:
    """Why there is no such file: no answers, or answers to the user's own file or to a split with known labels."""
    about = _said_beside(path)
    return "missing" if about is None else f"{path.parent} has answers to {about.get('source')}, not to GLUE's split"


def _staleness(path: Path, run: Run) -> str | None:
    """Why the answers are not those of the run as it is now; None if they are.

    Answers from versions up to 0.1.0 do not say when their run had ended: only the best step is compared.
    """
    about = _said_beside(path)
    if about is None:
        return f"no {ABOUT} beside it says which training it is from"
    ended = run.record.get("ended")
    of_now = about.get("run_ended", ended) == ended and about.get("global_step") == run.results.get("best_eval_step")
    return None if of_now else "made before the run was trained again"


def _said_beside(path: Path) -> dict[str, object] | None:
    try:
        about = json.loads((path.parent / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None
