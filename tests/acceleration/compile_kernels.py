"""`python -m tests.acceleration.compile_kernels` cross-compiles a step's Triton kernels, without a GPU.

The step runs on the CPU, in bf16; launches are recorded instead of made, so its results are meaningless. Prints one
line per kernel and target: name, compute capability, bytes of shared memory, and constants.

Triton's interpreter, in which the other tests run, supports neither bf16 nor limits of shared memory.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

from peftlib.acceleration import layer_calls
from peftlib.acceleration.loss import weighted_loss_in_one
from peftlib.acceleration.row_encoder import MOST_RANK, take_rows
from peftlib.data.collation import WIDTHS, Collator, split_inputs
from peftlib.data.encoding import Chosen

#: Compute capability -> bytes of shared memory that a program may have there. 8.0 stands for Ampere and Ada, of which
#: 8.6 and 8.9 have least.
TARGETS = {80: 101_376, 90: 232_448}
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32"}
Launch = tuple[JITFunction, dict[str, Any], dict[str, Any]]


def launches(capability: int) -> list[Launch]:
    """Record the launches of BitFit, and of LoRA with the largest rank, on bert-base's layers for the larger widths."""
    made: list[Launch] = []
    layer_calls.is_hopper = lambda device: capability == 90
    layer_calls._registers.cache_clear()
    JITFunction.run = lambda self, *args, grid, warmup, **given: made.append((self, *bound(self, args, given)))
    for rank in (None, MOST_RANK):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=50, num_hidden_layers=2, hidden_dropout_prob=0.1)
        model = BertForSequenceClassification(config).train()
        for parameter in model.parameters():
            parameter.requires_grad_(rank is None and parameter.dim() == 1)
        if rank is not None:
            options = LoraConfig(
                r=rank, lora_dropout=0.1, target_modules="all-linear", exclude_modules=["pooler.dense"]
            )
            model = get_peft_model(model, options)
        assert take_rows(model, torch.bfloat16) == 0
        for width in WIDTHS[1:] if rank is None else WIDTHS[-1:]:
            inputs, targets = split_inputs(Collator({"input_ids": 0}).in_rows(0)(examples(width)))
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**inputs).logits
            weighted_loss_in_one(logits, targets.labels, targets.weight).backward()
    return made


def examples(longest: int) -> Chosen:
    lengths = np.array([longest, longest - 5, 3])
    ids, labels = np.full(lengths.sum(), 7, dtype=np.int32), np.zeros(3, dtype=np.int64)
    return Chosen({"input_ids": ids, "token_type_ids": ids % 2}, lengths, labels, labels, np.ones(3, dtype=np.float32))


def bound(kernel: JITFunction, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a launch's arguments by name, and its options."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | given
    return {name: values.pop(name) for name in kernel.arg_names}, values


def source(kernel: JITFunction, arguments: dict[str, Any]) -> ASTSource:
    """Specialise a kernel for these arguments as Triton does."""
    signature, constants, aligned = {}, {}, {}
    for place, (parameter, (name, value)) in enumerate(zip(kernel.params, arguments.items(), strict=True)):
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            aligned[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    return ASTSource(kernel, signature, constants, aligned)


def main() -> None:
    for capability, most in TARGETS.items():
        seen: set[str] = set()
        for kernel, arguments, options in launches(capability):
            made = source(kernel, arguments)
            key = f"{kernel.__name__} {sorted(made.signature.items())} {made.constants} {options}"
            if key in seen:
                continue
            seen.add(key)
            shared = compile(made, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared
            constants = {name: value for name, value in arguments.items() if made.signature[name] == "constexpr"}
            print(kernel.__name__, capability, shared, constants, flush=True)
            if shared > most:
                sys.exit(f"{kernel.__name__} needs {shared} bytes of shared memory, more than {most}: {constants}")


if __name__ == "__main__":
    main()
