"""The results of ``ridgeline hardware calibrate``, and how they look to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from engine.calibration.learn import Errors, Learned
from profiles.accelerator import AcceleratorProfile, Figure

_ROWS_SHOWN = (1, 8, 64, 512)
_OVERHEADS = {
    "step_overhead_s": "a step",
    "layer_overhead_s": "a layer of a step",
    "host_request_s": "a request, engine aside",
    "host_request_work_s": "others' wait for a request",
    "host_step_s": "between two steps",
    "host_token_s": "a delivered token",
}


@dataclass(frozen=True, slots=True)
class ModelReport:
    """How well steps of a model are predicted, on those that the fit has not seen."""

    name: str
    num_steps: int
    catalogue: Errors
    """By the catalogue's figures."""
    measured: Errors
    """By the device's measured figures, before anything was fitted."""
    learned: Learned


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What came of one kind of device."""

    before: AcceleratorProfile
    after: AcceleratorProfile
    path: Path
    attention_backend: str
    models: tuple[ModelReport, ...] = ()


def report_tables(reports: Sequence[DeviceReport], seconds: float) -> Iterator[RenderableType]:
    """What was measured beside what the catalogue says, and how well steps are predicted."""
    for report in reports:
        yield Text(report.after.name, style="bold")
        yield Padding(_figures(report), (0, 0, 1, 2))
        if report.models:
            yield Text("Step time, predicted against measured (median error, P90)", style="bold")
            yield Padding(_errors(report.models), (0, 0, 1, 2))
        yield Text(f"Written to {report.path}", style="dim", overflow="fold")
    yield Text(f"Measured in {seconds:.0f} s", style="dim")


def _figures(report: DeviceReport) -> Table:
    before, after = report.before, report.after
    table = _table("", "catalogue", "measured", "±")
    table.add_row(
        "memory read, GB/s",
        f"{before.bandwidth_bytes_per_s.value / 1e9:.1f}",
        f"{after.bandwidth_bytes_per_s.value / 1e9:.1f}",
        _spread(after.bandwidth_bytes_per_s),
    )
    for rate in after.linear_rates:
        if rate.num_rows in _ROWS_SHOWN:
            peak = before.dense_flops.get(rate.dtype)
            is_last = rate.num_rows == _ROWS_SHOWN[-1]
            table.add_row(
                f"{rate.dtype} products, {rate.num_rows} row{'s'[: rate.num_rows > 1]}, GFLOP/s",
                f"{peak.value / 1e9:.0f}" if peak is not None and is_last else "",
                f"{rate.flops.value / 1e9:.1f}",
                _spread(rate.flops),
            )
    for key, figure in after.coefficients.items():
        name = key.rpartition(".")[2]
        if name in _OVERHEADS:
            table.add_row(
                f"{_OVERHEADS[name]}, µs", "", f"{figure.value * 1e6:.0f}", _spread(figure)
            )
    return _with_attention(table, after, report.attention_backend)


def _with_attention(table: Table, profile: AcceleratorProfile, backend: str) -> Table:
    shares = {key.rpartition(".")[2]: figure for key, figure in profile.coefficients.items()}
    for name, what in (("kv_bandwidth", "of the read rate"), ("attention", "of the peak")):
        if name in shares:
            kind = "decode" if name == "kv_bandwidth" else "prefill"
            table.add_row(
                f"{kind} attention ({backend}), {what}",
                "",
                f"{shares[name].value:.0%}",
                _spread(shares[name]),
            )
    return table


def _errors(models: Sequence[ModelReport]) -> Table:
    table = _table("", "catalogue", "measured device", "fitted", "held-out steps")
    for model in models:
        table.add_row(
            model.name,
            *(
                f"{errors.median:.1%}, {errors.p90:.1%}"
                for errors in (model.catalogue, model.measured, model.learned.after)
            ),
            f"{model.learned.num_held_out} of {model.num_steps}",
        )
    return table


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    return table


def _spread(figure: Figure) -> str:
    return f"{figure.spread:.0%}" if figure.spread else ""
