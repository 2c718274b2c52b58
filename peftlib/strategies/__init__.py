"""Fine-tuning methods: one file per method, and one entry in `STRATEGIES`.

A strategy is a frozen dataclass whose fields become command-line flags (`arguments/train.py` reads them). A new method
brings its own flags, default learning rate and file format, and nothing else in the project names it.
"""

from __future__ import annotations

from peftlib.strategies.adalora import AdaLoRA
from peftlib.strategies.base import Strategy
from peftlib.strategies.bitfit import BitFit
from peftlib.strategies.full import Full
from peftlib.strategies.head import HeadOnly
from peftlib.strategies.ia3 import IA3
from peftlib.strategies.ln_tuning import LNTuning
from peftlib.strategies.lora import LoRA
from peftlib.strategies.peft_method import PeftMethod

STRATEGIES: dict[str, type[Strategy]] = {
    "bitfit": BitFit,
    "lora": LoRA,
    "adalora": AdaLoRA,
    "ia3": IA3,
    "ln_tuning": LNTuning,
    "peft": PeftMethod,
    "full": Full,
    "head": HeadOnly,
}

__all__ = ["STRATEGIES", "Strategy"]
