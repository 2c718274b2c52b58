"""The lists of flags name flags that there are: of those that do not shape a result, and of those of a node."""

from __future__ import annotations

import pytest

from peftlib.arguments import train_parser
from peftlib.flags import NOT_SHAPING, OF_A_NODE


@pytest.mark.parametrize("names", [NOT_SHAPING, OF_A_NODE])
def test_every_name_is_a_flag(names):
    assert {f"--{name}" for name in names} <= set(train_parser().flags())
