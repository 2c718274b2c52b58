"""train.py's words, parsed or refused."""

from __future__ import annotations

import pytest

from peftlib.arguments import TrainArguments, parse_train_arguments
from peftlib.errors import UserError


def parse(*words: str) -> TrainArguments:
    return parse_train_arguments(list(words))


def complaint(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    message = str(caught.value)
    assert "\n" not in message
    return message
