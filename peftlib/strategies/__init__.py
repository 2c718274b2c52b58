"""What trains. One method is one file here and one entry in `STRATEGIES`.

A strategy is a frozen dataclass: its fields are the command line's flags for it (`arguments/train.py`
reads them off), so a new method brings its own flags, its own default learning rate and its own way to be
saved, and nothing else in the project names it.
"""

from __future__ import annotations

from peftlib.strategies.base import Strategy
from peftlib.strategies.bitfit import BitFit
from peftlib.strategies.full import Full
from peftlib.strategies.head import Head
from peftlib.strategies.ia3 import IA3
from peftlib.strategies.ln_tuning import LNTuning
from peftlib.strategies.lora import LoRA
from peftlib.strategies.peft_method import PeftMethod

STRATEGIES: dict[str, type[Strategy]] = {
    "bitfit": BitFit,
    "lora": LoRA,
    "ia3": IA3,
    "ln_tuning": LNTuning,
    "peft": PeftMethod,
    "full": Full,
    "head": Head,
}

__all__ = ["STRATEGIES", "Strategy"]
