"""Triton's interpreter, ready for the numpy at hand."""

from __future__ import annotations

from typing import Any

import triton.runtime.interpreter as interpreter


def mend_interpreter() -> None:
    """Triton 3.6 takes an array of one element for a number, which numpy 2.4 no longer allows.

    Later releases do not (triton issue 9171).
    """
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
