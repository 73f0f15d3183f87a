"""What ``ridgeline serve`` says of itself when it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
    plan: Mapping[str, str]
    """What was decided and what it promises, by headings of a word or two."""
    starting_words: str
    """What takes the time until it is ready."""
    curl: str
    log_format: LogFormat

    def starting(self) -> None:
        if self.log_format is LogFormat.JSON:
            fields = {"url": self.url, "model": self.model, "hardware": self.hardware}
            fields |= {"limits": self.limits, "version": self.version}
            logger.info("starting", extra={"fields": fields})
            plan = {name.replace(" ", "_"): value for name, value in self.plan.items()}
            logger.info("plan", extra={"fields": plan})
            return
        console = _console()
        console.print(f"[bold]Ridgeline {self.version}[/bold]")
        for name, value in (
            ("listening", self.url),
            ("model", self.model),
            ("hardware", self.hardware),
            ("limits", self.limits),
            *self.plan.items(),
        ):
            console.print(f"  [dim]{name:<10}[/dim] ", end="")
            console.print(value, markup=False)
        console.print(f"  [dim]{self.starting_words} …[/dim]")

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
