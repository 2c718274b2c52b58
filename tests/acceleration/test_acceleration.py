"""An accelerated model gives the same results, bit for bit where nothing is random or rounded."""

from __future__ import annotations

import copy
import gc
import logging
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from peftlib.acceleration import (
    accelerate_model,
    keep_frozen_linears_in,
    leave_casts_to_autocast,
)
from peftlib.acceleration.bert import unwrapped
from peftlib.errors import UserError
from peftlib.strategies import STRATEGIES
from tests.strategies.classifiers import METHODS, assert_computes_the_same, classifier, sentences


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "deberta"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "head"])
def test_an_accelerated_model_computes_the_same(tiny_folder, architecture, method):
    plain, head = classifier(tiny_folder(architecture))
    plain = METHODS[method].apply(plain, head).eval()
    quick = copy.deepcopy(plain)
    accelerate_model(quick, torch.device("cpu"), "no")
    assert_computes_the_same(quick, plain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_what_is_not_to_be_accelerated_stays_as_it_was(tiny_folder, method, precision):
    model = METHODS[method].apply(*classifier(tiny_folder("bert")))
    before = copy.deepcopy(model)
    accelerate_model(model, torch.device("cpu"), precision, enabled=False)
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert type(old) is type(new)
        assert len(old._forward_pre_hooks) == len(new._forward_pre_hooks)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert getattr(model, "get_base_model", lambda: model)().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "deberta"])
def test_layers_that_are_computed_twice_give_the_same_gradients_from_less_that_is_kept(
    tiny_folder, architecture, method, precision
):
    """Bit for bit, with dropout, on layers of transformers' own and on those that replace them."""
    once, head = classifier(tiny_folder(architecture))
    once = METHODS[method].apply(once, head).train()
    twice = copy.deepcopy(once)
    found = []
    for model, recompute in ((once, False), (twice, True)):
        accelerate_model(model, torch.device("cpu"), precision, recompute=recompute)
        kept: list[int] = []
        torch.manual_seed(0)
        counted = saved_tensors_hooks(partial(_counted, kept), lambda tensor: tensor)
        with counted, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(model(**sentences()).logits.float(), torch.tensor([0, 1, 0, 1]))
        loss.backward()
        grads = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
        found.append((loss, grads, sum(kept)))
    (loss, grads, bytes_of_all), (same_loss, same_grads, bytes_of_inputs) = found
    assert torch.equal(loss, same_loss)
    assert unwrapped(twice).config.to_dict() == unwrapped(once).config.to_dict(), "it is saved with a whole model"
    assert all(torch.equal(grads[name], same_grads[name]) for name in grads)
    if method != "head":  # of frozen layers below it, nothing is kept in any case
        assert bytes_of_inputs < 0.7 * bytes_of_all


def test_layers_that_are_computed_twice_cause_no_talk_of_caches(tiny_folder, monkeypatch):
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", said.append)
    logger = logging.getLogger("transformers.utils.generic")
    logger.addHandler(handler)
    transformers.utils.logging.warning_once.cache_clear()
    try:
        model, _ = classifier(tiny_folder("bert"))
        accelerate_model(model.train(), torch.device("cpu"), "no", recompute=True)
        model(**sentences())
    finally:
        logger.removeHandler(handler)
    assert said == []


def _counted(kept: list[int], tensor: torch.Tensor) -> torch.Tensor:
    kept.append(tensor.nbytes)
    return tensor


def test_a_model_that_cannot_compute_layers_twice_is_refused(tiny_folder):
    model, _ = classifier(tiny_folder("bert"))
    model.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match=r"^--gradient_checkpointing: transformers' bert does not have it; lower"):
        accelerate_model(model, torch.device("cpu"), "no", recompute=True)


def test_an_adapter_s_input_stays_in_bf16_and_gives_the_same_bits(tiny_folder):
    plain, head = classifier(tiny_folder("bert"))
    plain = STRATEGIES["lora"]().apply(plain, head).eval()
    quick = copy.deepcopy(plain)
    leave_casts_to_autocast(quick)
    seen: dict[str, set[torch.dtype]] = {"plain": set(), "quick": set()}
    for which, model in (("plain", plain), ("quick", quick)):
        for name, module in model.named_modules():
            if name.endswith("lora_dropout.default"):
                module.register_forward_pre_hook(lambda _, inputs, which=which: seen[which].add(inputs[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain(**sentences()).logits, quick(**sentences()).logits)
    assert seen == {"plain": {torch.float32}, "quick": {torch.float32, torch.bfloat16}}


_AFTER_A_STEP = """
import ctypes, sys
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "keep":
    from peftlib.acceleration import keep_freed_memory
    keep_freed_memory()
before = libc.mallinfo2()
blocks = [libc.malloc(20 << 20) for _ in range(10)]
mapped = libc.mallinfo2().hblks - before.hblks
for block in blocks:
    libc.free(block)
print(mapped, libc.mallinfo2().arena - before.arena + before.keepcost)  # what lay free at the end of the heap before
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_what_a_step_frees_stays_with_the_process():
    def step(how: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", _AFTER_A_STEP, how], capture_output=True, check=True)
        return [int(word) for word in done.stdout.split()]

    assert step("give back")[0] > 0, "glibc keeps large blocks by itself: keep_freed_memory can go"
    mapped, kept = step("keep")
    assert mapped == 0
    assert kept >= 200 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows what is mapped")
@pytest.mark.parametrize("method", ["bitfit", "lora"])
def test_no_page_of_the_checkpoint_stays_in_the_process(tiny_folder, method):
    def is_mapped() -> bool:
        return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text(encoding="utf-8")

    gc.collect()  # models of other tests, which PEFT ties into rings
    folder = tiny_folder("bert")
    model = STRATEGIES[method]().apply(*classifier(folder))
    assert is_mapped(), "transformers maps no checkpoint any more: leave_the_file can go"
    accelerate_model(model, torch.device("cpu"), "bf16")
    assert not is_mapped()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_frozen_weights_in_bf16_give_the_same_bits_under_autocast(tiny_folder, method):
    plain, head = classifier(tiny_folder("bert"))
    plain = METHODS[method].apply(plain, head).eval()
    kept = copy.deepcopy(plain)
    keep_frozen_linears_in(kept, torch.bfloat16)
    assert any(parameter.dtype == torch.bfloat16 for parameter in kept.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in kept.parameters() if parameter.requires_grad)
    losses = []
    for model in (plain, kept):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**sentences(), labels=torch.tensor([0, 1, 0, 1])).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(losses[0], losses[1])
    pairs = zip(plain.named_parameters(), kept.named_parameters(), strict=True)
    assert all(a.grad is None or torch.equal(a.grad, b.grad) for (_, a), (_, b) in pairs)


def test_full_fine_tuning_has_nothing_to_keep_in_half_precision(tiny_folder):
    model, head = classifier(tiny_folder("bert"))
    model = STRATEGIES["full"]().apply(model, head)
    keep_frozen_linears_in(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_only_a_method_that_reads_frozen_weights_keeps_them():
    assert STRATEGIES["lora"](use_dora=True).reads_frozen_weights
    assert not STRATEGIES["lora"]().reads_frozen_weights
