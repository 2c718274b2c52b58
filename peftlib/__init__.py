"""The nouns of the suite: what trains, on what, how, and how good it is. See the tree in README.md.

From Python, the methods are here, and what finished runs have left; each is imported when it is first asked for:

    from peftlib import BitFit, Finished
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlib.evaluation.finished import Finished
    from peftlib.strategies import STRATEGIES
    from peftlib.strategies.adalora import AdaLoRA
    from peftlib.strategies.bitfit import BitFit
    from peftlib.strategies.full import Full
    from peftlib.strategies.head import HeadOnly
    from peftlib.strategies.ia3 import IA3
    from peftlib.strategies.ln_tuning import LNTuning
    from peftlib.strategies.lora import LoRA
    from peftlib.strategies.peft_method import PeftMethod

__version__ = "0.7.6"
__all__ = [
    "IA3", "STRATEGIES", "AdaLoRA", "BitFit", "Finished", "Full", "HeadOnly", "LNTuning", "LoRA", "PeftMethod",
]  # fmt: skip

_PLACES = {
    "AdaLoRA": "strategies.adalora",
    "BitFit": "strategies.bitfit",
    "Finished": "evaluation.finished",
    "Full": "strategies.full",
    "HeadOnly": "strategies.head",
    "IA3": "strategies.ia3",
    "LNTuning": "strategies.ln_tuning",
    "LoRA": "strategies.lora",
    "PeftMethod": "strategies.peft_method",
    "STRATEGIES": "strategies",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the scripts import this package before they have looked at their flags."""
    if name not in _PLACES:
        raise AttributeError(f"module 'peftlib' has no attribute {name!r}")
    return getattr(import_module(f"peftlib.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
