"""Fixtures that keep tests in Triton's interpreter fast."""

from __future__ import annotations

from functools import cache, reduce

import pytest


@pytest.fixture
def few_programs(monkeypatch):
    """Few programs, so that each has several blocks of rows, and few rows: an interpreted block takes milliseconds."""
    from peftlib.acceleration import layer_calls  # it imports Triton, which is not everywhere
    from peftlib.data import collation

    monkeypatch.setattr(layer_calls, "_PROGRAMS", 3)
    monkeypatch.setattr(layer_calls, "_FORWARD_ROWS", 8)
    monkeypatch.setattr(layer_calls, "_ROWS", 8)
    monkeypatch.setattr(layer_calls, "_GELU_ROWS", 8)
    monkeypatch.setattr(collation, "STEP", 32)
    _quicken_interpreter(monkeypatch)


def _quicken_interpreter(monkeypatch):
    """Take two fifths off the interpreter's time, with the same results.

    It makes a table of NumPy's types for every value, reduces with a kernel's own function number by number, and looks
    through all of Triton's language whenever one function calls another.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    def column_by_column(self, blocks):
        """`ReduceOps.generic_reduce` along an axis: the function gets a whole column at a time."""
        assert self.axis is not None and not self.keep_dims
        columns = [
            tuple(self.to_tensor(np.take(block.handle.data, at, self.axis), block.dtype) for block in blocks)
            for at in range(blocks[0].shape[self.axis])
        ]
        return reduce(lambda total, column: self.combine_fn.fn(*total, *column), columns)

    plain = interpreter._get_np_dtype
    of_scalar = cache(plain)
    monkeypatch.setattr(
        interpreter, "_get_np_dtype", lambda kind: plain(kind) if kind.scalar.is_ptr() else of_scalar(kind.scalar)
    )
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", column_by_column)
    patched = interpreter._patch_lang

    def patched_once(fn):
        """`_patch_lang`, unless the function is called by one for which everything is patched already."""
        langs = [lang for lang in fn.__globals__.values() if lang is tl or lang is tl.core]
        return (
            patched(fn)
            if any(map(tl.core.is_builtin, (lang.load for lang in langs)))
            else interpreter._LangPatchScope()
        )

    monkeypatch.setattr(interpreter, "_patch_lang", patched_once)
