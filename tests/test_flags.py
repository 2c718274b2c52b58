"""The list of flags that do not shape a result names flags that there are."""

from __future__ import annotations

from peftlib.arguments import train_parser
from peftlib.flags import NOT_SHAPING


def test_every_name_is_a_flag():
    assert {f"--{name}" for name in NOT_SHAPING} <= set(train_parser().flags())
