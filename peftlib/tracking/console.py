"""Console output of a run: a progress bar on a terminal, a line per log in a pipe."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from peftlib.console import Console


class RunConsole(Console):
    """Standard output of a run.

    Args:
        speaks: False on every process but the main one, which alone prints.

    Attributes:
        total_steps: updates in the whole run, for the bar and the ETA; set it before `with`.
    """

    def __init__(self, speaks: bool = True) -> None:
        super().__init__(speaks)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self.total_steps = 0

    def __enter__(self) -> RunConsole:
        if self._pretty:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._rich,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self.total_steps, state="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, step: int) -> None:
        """Move the progress bar; prints nothing in a pipe."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, values: dict[str, float], step: int) -> None:
        """Show the loss and the throughput, and evaluation scores on a separate line."""
        loss, rate = values.get("train/loss"), values.get("train/samples_per_second")
        state = f"loss {loss:.4f}  {rate:.0f} samples/s" if loss is not None and rate is not None else ""
        if self._bar is not None:
            self._bar.update(self._task, state=state)
        elif state:
            place = f"step {step}/{self.total_steps}  epoch {values['train/epoch']:.2f}"
            self.note(f"{place}  {state}  lr {values['train/learning_rate']:.2e}")
        scores = {name.removeprefix("eval/"): value for name, value in values.items() if name.startswith("eval/")}
        if scores:
            shown = "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())
            self.note(f"evaluation at step {step}  {shown}")
