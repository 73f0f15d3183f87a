"""Starts the measuring process and listens to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from engine.calibration.readings import (
    Failed,
    Finished,
    Order,
    Progressed,
    Readings,
    decode_message,
    encode,
)
from engine.environment import engine_environment


class CalibrationError(ValueError):
    """Nothing could be measured; one line."""


def run_calibration(order: Order, on_progress: Callable[[str], None]) -> Readings:
    """Measures in a process like the engine's; blocks until it is done.

    Raises:
        CalibrationError: a model cannot be loaded, or the process died.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "engine.calibration.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=engine_environment(),
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(encode(order))
            process.stdin.close()
            for line in process.stdout:
                message = decode_message(line)
                if isinstance(message, Progressed):
                    on_progress(message.text)
                elif isinstance(message, Failed):
                    raise CalibrationError(message.message)
                elif isinstance(message, Finished):
                    return message.readings
        finally:
            process.kill()
    raise CalibrationError(f"the measuring process ended with exit code {process.returncode}")
