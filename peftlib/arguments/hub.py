"""Whether a result is pushed to the Hugging Face Hub. Flags of `scripts/train.py` and `scripts/export.py`.

There is none for the token: on a command line it would end in records and process lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class HubArguments:
    """Whether the result is pushed, and where to."""

    _argument_group_name: ClassVar[str] = "Hugging Face Hub"

    push_to_hub: bool = field(
        default=False,
        metadata={
            "help": "upload the result once it is on disk, with the token of `hf auth login` or HF_TOKEN, which is "
            "tried before anything else is done"
        },
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={
            "help": "the repository, as in me/reviews; without an owner it is the token's; None takes the output "
            "folder's name"
        },
    )
    hub_private_repo: bool = field(
        default=False, metadata={"help": "make the repository private; else it is public, if its owner allows that"}
    )
