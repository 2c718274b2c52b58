"""The flags of reproduce.py."""

from __future__ import annotations

import pytest

from peftlib.arguments import parse_reproduce_arguments
from peftlib.errors import UserError


@pytest.mark.parametrize("seeds", ["", "1,", "a", "1 2", "1;2"])
def test_seeds_are_numbers_with_commas(seeds):
    with pytest.raises(UserError, match="must be whole numbers separated by commas"):
        parse_reproduce_arguments([f"--seeds={seeds}"])
