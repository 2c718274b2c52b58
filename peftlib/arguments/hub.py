"""Flags of `scripts/train.py` and `scripts/export.py` for pushing to the Hugging Face Hub.

There is none for the token: on a command line it would end up in records and process lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class HubArguments:
    """Whether to push the result, and where to."""

    _argument_group_name: ClassVar[str] = "Hugging Face Hub"

    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "upload the finished result, with the token of `hf auth login` or HF_TOKEN, which is checked "
            "before anything starts"
        },
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={
            "help": "repository to push to, such as me/reviews; without an owner it goes to the token's account; "
            "None uses the output folder's name"
        },
    )
    hub_private_repo: bool = field(
        default=False,
        metadata={
            "help": "create the repository as private; otherwise it is public, unless its owner's settings forbid that"
        },
    )
