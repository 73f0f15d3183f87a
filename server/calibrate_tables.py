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
from profiles.accelerator import AcceleratorProfile, Figure, ProvenanceKind

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
    quantization: str
    kv_cache_dtype: str
    num_steps: int
    catalogue: Errors
    """By the catalogue's figures."""
    measured: Errors
    """By the device's measured figures, before anything was fitted."""
    learned: Learned

    @property
    def title(self) -> str:
        return f"{self.name} {self.quantization}/{self.kv_cache_dtype}"


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
    for key, figure in after.achievable_flops.items():
        if key in before.dense_flops and figure.provenance.kind is ProvenanceKind.MEASURED:
            table.add_row(
                f"fastest {key} product, GFLOP/s",
                f"{before.dense_flops[key].value / 1e9:.0f}",
                f"{figure.value / 1e9:.0f}",
                _spread(figure),
            )
    table.add_row(f"products, {', '.join(map(str, _ROWS_SHOWN))} rows, GFLOP/s", "", "", "")
    for name in dict.fromkeys(rate.dtype for rate in after.linear_rates):
        table.add_row(f"  {name} weights", "", *_products(name, after))
    for key, figure in after.coefficients.items():
        name = key.rpartition(".")[2]
        if name in _OVERHEADS:
            table.add_row(
                f"{_OVERHEADS[name]}, µs", "", f"{figure.value * 1e6:.0f}", _spread(figure)
            )
    return _with_attention(table, after, report.attention_backend)


def _products(name: str, profile: AcceleratorProfile) -> tuple[str, str]:
    """Rates by the number of rows, and their spread."""
    shown = [
        rate.flops
        for rate in profile.linear_rates
        if rate.dtype == name and rate.num_rows in _ROWS_SHOWN
    ]
    rates = " ".join(f"{flops.value / 1e9:.0f}" for flops in shown)
    return rates, _spread(max(shown, key=lambda flops: flops.spread))


def _with_attention(table: Table, profile: AcceleratorProfile, backend: str) -> Table:
    """Shares are called ``engine.what.type of keys and values``."""
    for what, of_what in (("kv_bandwidth", "of read rate"), ("attention", "of peak")):
        found = [
            (kv_dtype, figure)
            for key, figure in profile.coefficients.items()
            for kv_dtype in key.split(".")[2:]
            if key.split(".")[1] == what
        ]
        kind = "decode" if what == "kv_bandwidth" else "prefill"
        if found:
            table.add_row(f"{kind} attention ({backend}), {of_what}", "", "", "")
        for kv_dtype, figure in found:
            table.add_row(f"  {kv_dtype} KV", "", f"{figure.value:.0%}", _spread(figure))
    return table


def _errors(models: Sequence[ModelReport]) -> Table:
    table = _table("model weights/KV", "catalogue", "device", "fitted", "held out")
    for model in models:
        table.add_row(
            model.title,
            *(
                f"{errors.median:.0%}, {errors.p90:.0%}"
                for errors in (model.catalogue, model.measured)
            ),
            f"{model.learned.after.median:.1%}, {model.learned.after.p90:.1%}",
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
