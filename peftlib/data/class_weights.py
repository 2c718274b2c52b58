"""How much each class counts in the training loss: the values of `--class_weights`."""

from __future__ import annotations

import json

import numpy as np

from peftlib.data.tasks import Task
from peftlib.errors import UserError, nearest
from peftlib.flags import from_json

NONE, BALANCED = "none", "balanced"
#: Smallest and largest weight: an example's share in its window's loss must not vanish in fp32.
_LEAST, _MOST = 1e-6, 1e6


def canonical(value: str) -> str:
    """Return the flag's value in the spelling by which runs are compared: a word, or JSON with its names sorted.

    Raises:
        UserError: it is neither, or a weight is no number within the range.
    """
    if value in (NONE, BALANCED):
        return value
    if not value.lstrip().startswith("{"):
        words = (NONE, BALANCED)
        raise UserError(
            f"--class_weights {value}: must be {NONE}, {BALANCED}, or weights by class name, such as "
            f"'{{\"spam\": 9}}'{nearest(value, words)}"
        )
    try:
        weights = from_json(value, example='{"spam": 9}')
    except ValueError as error:
        raise UserError(f"--class_weights {value}: {error}") from error
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not _LEAST <= weight <= _MOST:
            raise UserError(
                f"--class_weights: the weight of {name} is {json.dumps(weight)}, and must be a number from 1e-6 to 1e6"
            )
    return json.dumps({name: float(weight) for name, weight in weights.items()}, sort_keys=True)


def refuse_misfits(value: str, task: Task) -> None:
    """Refuse weights for a task without classes, for one whose texts have several, and for classes that it lacks.

    Args:
        value: of the flag, from `canonical`.

    Raises:
        UserError: names the task, and for a wrong name its classes.
    """
    if value == NONE:
        return
    if task.regression:
        raise UserError(f"--class_weights {value}: {task.name} is a regression, without classes; leave it out")
    if task.multi_label:
        raise UserError(
            f"--class_weights {value}: weighs examples by their class, and a text of {task.name} may have several; "
            "leave it out"
        )
    for name in {} if value == BALANCED else json.loads(value):
        if name not in task.labels:
            raise UserError(
                f"--class_weights: {task.name} has no class {name}{nearest(name, task.labels)} (known: "
                f"{', '.join(task.labels)})"
            )


def class_weights(value: str, task: Task, labels: np.ndarray) -> dict[str, float]:
    """Return class name -> weight, in the order of the classes; empty if all count alike.

    "balanced" is scikit-learn's heuristic (`compute_class_weight`): n / (classes that occur * examples of the class),
    after King and Zeng, 2001 (https://doi.org/10.1093/oxfordjournals.pan.a004868). A class without an example, of which
    there is nothing to weigh, gets 0. As with scikit-learn, a class that is not named has the weight 1.

    Args:
        value: of the flag, checked by `refuse_misfits`.
        labels: the class indices of the training examples, int64, shape (examples,).
    """
    if value == NONE:
        return {}
    if value != BALANCED:
        named = json.loads(value)
        return {name: named.get(name, 1.0) for name in task.labels}
    counts = np.bincount(labels, minlength=len(task.labels))
    scale = len(labels) / np.count_nonzero(counts)
    return {name: scale / count if count else 0.0 for name, count in zip(task.labels, counts.tolist(), strict=True)}
