"""What ``ridgeline serve`` says of itself when it starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rich.console import Console

from server.logs import LogFormat

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Banner:
    """The facts of a start, for people on standard output or for programs in the log."""

    version: str
    url: str
    model: str
    hardware: str
    limits: str
    curl: str
    log_format: LogFormat

    def starting(self) -> None:
        if self.log_format is LogFormat.JSON:
            fields = {"url": self.url, "model": self.model, "hardware": self.hardware}
            logger.info("starting", extra={"fields": {**fields, "version": self.version}})
            return
        console = _console()
        console.print(f"[bold]Ridgeline {self.version}[/bold]")
        for name, value in (
            ("listening", self.url),
            ("model", self.model),
            ("hardware", self.hardware),
            ("limits", self.limits),
        ):
            console.print(f"  [dim]{name:<10}[/dim] ", end="")
            console.print(value, markup=False)
        console.print("  [dim]loading the model …[/dim]")

    def ready(self, seconds: float) -> None:
        if self.log_format is LogFormat.JSON:
            fields = {"url": self.url, "startup_seconds": round(seconds, 2)}
            logger.info("ready", extra={"fields": fields})
            return
        console = _console()
        console.print(f"[bold green]ready[/bold green] in {seconds:.1f} s; try it:\n")
        console.print(f"  {self.curl}\n", markup=False)


def _console() -> Console:
    """Long lines stay whole, so that they can be copied."""
    return Console(highlight=False, soft_wrap=True)
