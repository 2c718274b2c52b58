"""The eleven files that GLUE's server takes, each with the predictions for a split whose labels are hidden."""

from __future__ import annotations

from dataclasses import dataclass

from peftlib.data.tasks import DIAGNOSTICS, TASKS, Task

_HEADER = "index\tprediction"


def answer_file(answers: list[str]) -> str:
    """Format a file for the server.

    Args:
        answers: classes as GLUE writes them, or scores, in the split's order.
    """
    return "\n".join([_HEADER, *(f"{place}\t{answer}" for place, answer in enumerate(answers))]) + "\n"


@dataclass(frozen=True)
class ServerFile:
    """One of the eleven files.

    Attributes:
        examples: number of examples in the split.
        constant: the constant answer, which needs no model: the most common class (the first of equally common ones),
            or for regression the middle of the range.
    """

    task_name: str
    split: str
    examples: int
    constant: str

    @property
    def task(self) -> Task:
        return TASKS[self.task_name]

    @property
    def name(self) -> str:
        """The file name that the server expects."""
        name = self.task.glue_answers(self.split)
        assert name is not None, self.task_name
        return name

    def filled(self) -> str:
        """Return the file's content with the constant answer for every example."""
        return answer_file([self.constant] * self.examples)

    def problem(self, content: bytes) -> str | None:
        """Return why the server would reject this content or score it wrongly; None if it is valid."""
        try:
            *lines, rest = content.decode().split("\n")
        except UnicodeDecodeError as error:
            return f"not UTF-8 (byte {error.start})"
        if not lines or lines[0] != _HEADER:
            return "line 1: the header is not index<TAB>prediction"
        if rest:
            return f"line {len(lines) + 1}: is cut off"
        if len(lines) - 1 != self.examples:
            return f"{len(lines) - 1:,} answers where the server wants {self.examples:,}"
        classes = self.task.classes_in_glue()
        for place, line in enumerate(lines[1:]):
            index, _, answer = line.partition("\t")
            if index != str(place):
                return f"line {place + 2}: the index is {index!r}, not {place}"
            if self.task.regression and self.task.parse_score(answer) is None:
                return f"line {place + 2}: the answer is {answer!r}; there are {self.task.scores_in_words()}"
            if not self.task.regression and answer not in classes:
                return f"line {place + 2}: the answer is {answer!r}; there are {', '.join(classes)}"
        return None


#: File name without .tsv -> file, in the order of GLUE's tasks. Numbers of examples are from the dataset card
#: (https://huggingface.co/datasets/nyu-mll/glue); MNLI, QNLI and RTE are balanced.
SERVER_FILES: dict[str, ServerFile] = {
    file.name.removesuffix(".tsv"): file
    for file in (
        ServerFile("cola", "test", 1063, "1"),
        ServerFile("sst2", "test", 1821, "1"),
        ServerFile("mrpc", "test", 1725, "1"),
        ServerFile("stsb", "test", 1379, "2.500"),
        ServerFile("qqp", "test", 390_965, "0"),
        ServerFile("mnli", "test", 9796, "entailment"),
        ServerFile("mnli", "test_mismatched", 9847, "entailment"),
        ServerFile("qnli", "test", 5463, "entailment"),
        ServerFile("rte", "test", 3000, "entailment"),
        ServerFile("wnli", "test", 146, "0"),
        ServerFile("mnli", DIAGNOSTICS, 1104, "entailment"),
    )
}

#: Stands for the files of all tasks without a run.
REST = "rest"
