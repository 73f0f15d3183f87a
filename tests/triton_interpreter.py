"""Triton's interpreter, ready for the numpy at hand."""

from __future__ import annotations

import threading
from typing import Any

import triton.runtime.interpreter as interpreter


def mend_interpreter() -> None:
    _take_arrays_of_one_element()
    _launch_one_at_a_time()


def _launch_one_at_a_time() -> None:
    """A launch keeps its place in the grid in globals, which ranks that are threads share."""
    original, lock = interpreter.GridExecutor.__call__, threading.Lock()

    def call(self: Any, *arguments: Any, **options: Any) -> None:
        with lock:
            original(self, *arguments, **options)

    interpreter.GridExecutor.__call__ = call


def _take_arrays_of_one_element() -> None:
    """Triton 3.6 takes an array of one element for a number, which numpy 2.4 no longer allows.

    Later releases do not (triton issue 9171).
    """
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
