"""PEFT's other methods under their own names: those that modify layers (VeRA, LoHa, OFT, …), and prompt methods."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, EnumType
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from peftlib.errors import UserError, in_one_line, nearest
from peftlib.flags import from_json
from peftlib.strategies.base import Strategy
from peftlib.strategies.prompts import PROMPT_TYPES, SETTLED_FOR_PROMPTS, virtual_tokens

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedModel

    from peftlib.strategies.base import Trained

#: PEFT's types that modify layers, for which training, saving, loading and merging were tested here. Excluded:
#: - AdaMSS, FRoD, OSF, PSOFT, TinyLoRA: their frozen parts come from decompositions of the weights, whose signs differ
#:   between thread counts and machines, so that a checkpoint, which lacks them, would be wrong elsewhere (with all but
#:   AdaMSS and TinyLoRA, so would the adapter);
#: - RandLoRA, whose files repeat its random basis for every layer;
#: - GLoRA, which hardly learnt from 2,000 sentences, at 1e-3 as at 1e-4;
#: - Lily, which cannot be merged, and Shadow, which does not fit BERT-like layers;
#: - Poly and X-LoRA, which combine tasks or finished adapters; trainable tokens, which are for new ones.
LAYER_TYPES = (
    "beft", "boft", "c3a", "deft", "delora", "fourierft", "gralora", "hira", "hra", "loha", "lokr", "miss", "oft",
    "peanut", "pvera", "road", "shira", "supertuning", "unilora", "vblora", "vera", "waveft",
)  # fmt: skip
PEFT_TYPES = (*LAYER_TYPES, *PROMPT_TYPES)
#: Those that multiply or add to the frozen weights themselves, which must therefore not be rounded.
_READ_WEIGHTS = ("hira", "shira", "supertuning")
#: PEFT's type -> options for dropout of whole modules, blocks or rows, which the host chooses (OFT's is never applied).
_DROPOUTS_OF_THE_HOST = {
    "boft": ("boft_dropout",),
    "loha": ("module_dropout", "rank_dropout"),
    "lokr": ("module_dropout", "rank_dropout"),
}
#: PEFT's types with their own `--method`.
_METHODS = ("adalora", "ia3", "ln_tuning", "lora")
#: PEFT's type -> its option that has to divide the widths of all layers, and PEFT's default for it.
_DIVISORS = {"c3a": ("block_size", 256), "vblora": ("vector_length", 256)}
#: Options that PEFT annotates as int, but that are scale factors and may be any number.
_SCALES = ("alpha", "delora_lambda")
#: Options that are set automatically, or that would select layers, which PEFT is given by their full names. PVeRA's
#: `generator_seed` is for a generator of its own, whose state no checkpoint holds; without it the run's seed decides.
_SETTLED = (
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "generator_seed", "inference_mode", "layers_pattern",
    "layers_to_transform", "modules_to_save", "peft_type", "peft_version", "revision", "task_type",
)  # fmt: skip


def is_installed(peft_type: str) -> bool:
    """Return whether the installed PEFT has this type, without importing it: each has a folder of its name."""
    package = importlib.util.find_spec("peft")
    assert package is not None and package.origin is not None
    return (Path(package.origin).parent / "tuners" / peft_type).is_dir()


@dataclass(frozen=True)
class PeftMethod(Strategy):
    """Train another of PEFT's methods, and the new classification head."""

    _argument_group_name: ClassVar[str] = "--method peft"
    # For LoHa and LoKr. Other methods need other rates: docs/methods.md has those that work.
    default_learning_rate: ClassVar[float] = 3e-3
    named_by: ClassVar[tuple[str, ...]] = ("peft_type",)

    peft_type: str = field(
        default="loha", metadata={"help": f"peft: which PEFT method, one of {', '.join(PEFT_TYPES)}"}
    )
    peft_kwargs: str = field(
        default="{}",
        metadata={
            "help": "peft: options of its configuration as a JSON object, such as '{\"r\": 256}'; target_modules is "
            "all-linear, and num_virtual_tokens 20, unless given"
        },
    )

    def __post_init__(self) -> None:
        given: Any = self.peft_kwargs
        if isinstance(given, dict):  # from Python
            try:
                object.__setattr__(self, "peft_kwargs", json.dumps(given))
            except TypeError as error:
                raise UserError(f"peft_kwargs {given}: {error}") from error
        # Canonical spelling, since runs are compared by their flags.
        object.__setattr__(self, "peft_type", self.peft_type.lower())
        options = self._options()
        try:
            object.__setattr__(self, "peft_kwargs", json.dumps(options, sort_keys=True, allow_nan=False))
        except ValueError as error:
            raise UserError(f"--peft_kwargs {self.peft_kwargs}: numbers must be finite") from error
        if self.peft_type not in PEFT_TYPES:
            own = self.peft_type in _METHODS
            hint = f"; use --method {self.peft_type}" if own else nearest(self.peft_type, PEFT_TYPES)
            raise UserError(f"--peft_type {self.peft_type}: not one of {', '.join(PEFT_TYPES)}{hint}")
        if not is_installed(self.peft_type):
            version = importlib.metadata.version("peft")
            raise UserError(f"--peft_type {self.peft_type}: needs a newer peft; this is {version}")
        if self.peft_type in PROMPT_TYPES:
            virtual_tokens(options)
        for name in sorted(options.keys() & self._settled):
            selects_layers = name.startswith("layers_")
            way = "express it in target_modules, as a regular expression" if selects_layers else "leave it out"
            raise UserError(f"--peft_kwargs: {name} is set automatically; {way}")

    @classmethod
    def named(cls, flags: Mapping[str, Any]) -> str:
        return f"PEFT {flags.get('peft_type', '')}".strip()

    @property
    def reads_frozen_weights(self) -> bool:
        return self.peft_type in _READ_WEIGHTS or self._options().get("init_weights") == "bat"  # a variant of MiSS

    @property
    def draws_on_host(self) -> bool:
        options = self._options()
        return any(options.get(name) for name in _DROPOUTS_OF_THE_HOST.get(self.peft_type, ()))

    @property
    def recomputable(self) -> bool:
        return self.peft_type != "prefix_tuning"  # transformers then drops the keys and values, with a warning

    @property
    def virtual_tokens(self) -> int:
        return virtual_tokens(self._options()) if self.peft_type in PROMPT_TYPES else 0

    @property
    def _settled(self) -> frozenset[str]:
        return frozenset(_SETTLED + SETTLED_FOR_PROMPTS * (self.peft_type in PROMPT_TYPES))

    def _options(self) -> dict[str, Any]:
        try:
            return from_json(self.peft_kwargs, example='{"r": 8}')
        except ValueError as error:
            raise UserError(f"--peft_kwargs {self.peft_kwargs}: {error}") from error

    def _apply(self, model: PreTrainedModel, head: frozenset[str]) -> Trained:
        from peftlib.strategies.adapter import head_modules
        from peftlib.strategies.prompts import options_for, wrap_with_prompts
        from peftlib.strategies.wrapping import refuse_rank, spare_from_decay, wrap

        modules, prompts = head_modules(model, head), self.peft_type in PROMPT_TYPES
        if prompts:
            options = options_for(model, self.peft_type, self._options())
        else:  # full module names, since not all of PEFT's types have `exclude_modules`
            options = self._options() | {"target_modules": self._targets(model, modules)}
        if self.peft_type in _DIVISORS:
            name, usual = _DIVISORS[self.peft_type]
            options.setdefault(name, _common_divisor(model, options["target_modules"], usual))
        if self.peft_type == "oft" and "r" in options:
            options.setdefault("oft_block_size", 0)  # PEFT's default of 32 contradicts any r
        config = self._config(options | {"modules_to_save": modules})
        if self.peft_type == "hra":  # keeps a matrix of the layer's size for each of its r reflections
            refuse_rank("--peft_kwargs r", config.r, model, modules)
        try:
            wrapped = wrap_with_prompts(model, config) if prompts else wrap(model, config)
        # PEFT reports a configuration that does not fit the layers by whatever exception comes first.
        except (
            ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError
        ) as error:  # fmt: skip
            reason = in_one_line(error)
            raise UserError(f"--peft_type {self.peft_type} --peft_kwargs '{self.peft_kwargs}': {reason}") from error
        for name in ("beft_bias", "boft_s"):  # a bias with two dimensions; scale factors
            spare_from_decay(wrapped, name)
        return wrapped

    def _targets(self, model: PreTrainedModel, head: list[str]) -> list[str]:
        """The full names of the modules that `target_modules` matches, outside the head.

        As in PEFT, a list holds name endings, and a string is a regular expression for full names.
        """
        from peftlib.strategies.wrapping import ends_in, is_linear, linears_of, outside, refuse_what_matches_nothing

        wanted, flag = self._options().get("target_modules", "all-linear"), "--peft_kwargs target_modules"
        found: dict[str, nn.Module] = outside(model, head)
        if wanted == "all-linear":
            names = [name for name, module in found.items() if is_linear(module)]
        elif isinstance(wanted, list) and wanted and all(isinstance(target, str) for target in wanted):
            refuse_what_matches_nothing(model, head, wanted, f"{flag} {', '.join(wanted)}")
            names = [name for name in found if any(ends_in(name, target) for target in wanted)]
        elif isinstance(wanted, str):
            try:
                names = [name for name in found if re.fullmatch(wanted, name)]
            except re.error as error:
                raise UserError(f"{flag} {wanted}: not a valid regular expression: {error}") from error
        else:
            raise UserError(f"{flag} {wanted}: must be all-linear, a list of name endings, or a regular expression")
        if not names:
            raise UserError(
                f"{flag} {wanted}: matches nothing in this {model.config.model_type} model; {linears_of(model)}"
            )
        return names

    def _config(self, options: dict[str, Any]) -> PeftConfig:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, TaskType

        kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[self.peft_type.upper()]]
        hints, known = get_type_hints(kind), {entry.name for entry in fields(kind)} - self._settled
        for name, value in self._options().items():
            if name not in known:
                raise UserError(f"--peft_kwargs: {self.peft_type} has no option {name}{nearest(name, known)}")
            hint = float if name in _SCALES else hints[name]
            if choices := _choices(hint):
                if value not in choices:
                    raise UserError(
                        f"--peft_kwargs: {name} is {json.dumps(value)}, and not one of {', '.join(choices)}"
                    )
            elif not _fits(value, hint):
                kinds = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
                raise UserError(f"--peft_kwargs: {name} is {json.dumps(value)}, and must be of type {kinds}")
            if name.endswith("dropout") and isinstance(value, int | float) and not 0 <= value < 1:
                raise UserError(f"--peft_kwargs: {name} is {value}; must be in 0 <= p < 1")
        try:
            config: PeftConfig = kind(task_type=TaskType.SEQ_CLS, **options)
        except (ValueError, TypeError) as error:
            raise UserError(f"--peft_kwargs '{self.peft_kwargs}': {in_one_line(error)}") from error
        return config


def _common_divisor(model: nn.Module, names: list[str], most: int) -> int:
    """The largest number up to `most` that divides the widths of all these modules."""
    weights = [getattr(model.get_submodule(name), "weight", None) for name in names]  # PEFT refuses those without
    widths = [width for weight in weights if weight is not None for width in weight.shape]
    return max(number for number in range(1, most + 1) if math.gcd(*widths) % number == 0)


def _choices(hint: Any) -> list[str]:
    """The values of the enumeration in PEFT's type annotation of an option; empty if it has none."""
    return [str(choice.value) for kind in get_args(hint) if isinstance(kind, EnumType) for choice in list[Enum](kind)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value fits PEFT's type annotation of an option, which PEFT itself does not check at the start.

    Annotations of other kinds accept everything but None.
    """
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, member) for member in get_args(hint))
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return value is not None
