"""``docs/metrics.md``, written from the series: ``python -m server.metrics.document``."""

from __future__ import annotations

from collections.abc import Iterator

from server.metrics.series import GROUPS, Kind, Series

_HEAD = """\
# Metrics

`/metrics` speaks Prometheus. A scrape never waits for the engine, everything is 0 when idle, no
label names a request, and token counters add up to the `usage` of the answers: a prompt counts
once, whatever `n` is. Counters go on when an engine dies and another is started.

Series called `vllm:` have vLLM's names, types, labels (`model_name`, `engine="0"`) and boundaries,
so that dashboards, autoscalers and inference gateways made for vLLM read this server as it is.
Series called `ridgeline_` have the label `model_name`. `gen_ai_` ones are OpenTelemetry's of a
GenAI server.

A continuation that ends is counted in `vllm:request_success_total` once, also when its client went
away (`finished_reason="abort"`) or the server failed it (`error`); requests that were refused are
not. What vLLM's histograms say of a request is said of each prompt (TTFT, E2E, queue, prefill) or
of each continuation (tokens, TPOT, decode, inference), for those that ended by themselves.

This page is written by `python -m server.metrics.document`.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join(
        [_HEAD, *(line for heading, group in GROUPS for line in _table(heading, group))]
    )


def _table(heading: str, group: tuple[Series, ...]) -> Iterator[str]:
    yield f"## {heading}\n"
    yield "| series | type | labels | what |"
    yield "| --- | --- | --- | --- |"
    for series in group:
        name = f"{series.name}_total" if series.kind is Kind.COUNTER else series.name
        labels = ", ".join(f"`{label}`" for label in series.labels)
        text = f"{series.text} ({series.when})" if series.when else series.text
        yield f"| `{name}` | {series.kind} | {labels} | {text} |"
    yield ""


if __name__ == "__main__":
    print(markdown(), end="")
