"""All processes react alike to what happens in one of them. The rest is in test_checkpointing.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching import run_in_two


@pytest.mark.launch
def test_two_processes_end_an_evaluation_alike_and_go_on_alike(tmp_path: Path) -> None:
    """One of them gets a signal, or has too little memory; at the start, batches fit the one with less."""
    run_in_two(Path(__file__).with_name("evaluations_of_two.py"), tmp_path, cwd=tmp_path)
