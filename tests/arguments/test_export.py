"""export.py's flags: which go together, and what the result is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peftlib.arguments import parse_export_arguments
from peftlib.errors import UserError


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((), "my-run-model"),
        (("--output_dir", "models/reviews"), "reviews"),
        (("--adapter",), "my-run"),
    ],
)
def test_a_result_is_called_as_its_folder(words, name):
    place, options, hub = parse_export_arguments(["outputs/my-run", "--push_to_hub", *words])
    assert (place, hub.push_to_hub, hub.hub_model_id, hub.hub_private_repo) == ("outputs/my-run", True, None, False)
    assert options.name_for(Path(place)) == name


def test_a_folder_s_own_name_is_taken_from_inside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, options, _ = parse_export_arguments([".", "--adapter", "--push_to_hub"])
    assert options.name_for(Path(os.curdir)) == tmp_path.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--adapter",), "--adapter requires --push_to_hub"),
        (("--hub_model_id", "me/x"), "--hub_model_id requires --push_to_hub"),
        (("--hub_private_repo",), "--hub_private_repo requires --push_to_hub"),
        (
            ("--adapter", "--push_to_hub", "--dtype", "bf16"),
            "--dtype applies to a full checkpoint",
        ),
        (("--adapter", "--push_to_hub", "--output_dir", "x"), "--output_dir applies to a full checkpoint"),
        (("--hub_token", "hf_abc"), "--hub_token: would end up in shell histories, process lists and records"),
    ],
)
def test_a_flag_without_the_one_it_is_of_is_refused(words, message):
    with pytest.raises(UserError) as caught:
        parse_export_arguments(["outputs/my-run", *words])
    assert str(caught.value).startswith(message)
