"""``ridgeline plan``: the question from the command line, the answer for people or programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from planner.candidates import Question
from planner.choose import make_plan
from planner.plan import LedgerView, Percentiles, Plan, Prediction, Rejected
from planner.slo import Slo
from planner.workload import Workload
from profiles.accelerator import Hardware
from profiles.catalog import load_catalog
from profiles.hardware import parse_hardware
from profiles.quality import measured_quality
from server import plan_words
from server.choices import Objective
from server.model_source import find_facts
from server.settings import EngineFlags, engine_pins

DETECTED = "auto"
_BAR_WIDTH = 20
_LABEL_WIDTH = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(EngineFlags):
    """``ridgeline plan`` as it was typed; None where the flag was not given."""

    model: str | None = None
    on: str = DETECTED
    workload: str | None = None
    slo: str | None = None
    objective: Objective | None = None
    quality_bits: int | None = None
    as_json: bool = False
    as_yaml: bool = False
    output: Path | None = None
    engine: str | None = None


def run_plan(options: PlanOptions) -> str:
    """Plans and prints; returns why there is no plan, in one line, or nothing.

    Raises:
        ValueError: something that was asked cannot be read, is unknown or is impossible.
    """
    if options.as_json and options.as_yaml:
        raise ValueError("--json and --yaml are two ways to print one plan; choose one")
    plan = make_plan(question_of(options))
    if options.output is not None:
        _write(plan, options.output, as_json=options.as_json)
    if options.as_json:
        print(plan.to_json())
    elif options.as_yaml:
        print(plan.to_yaml(), end="")
    else:
        render(plan, Console(highlight=False))
    return plan.refusal.reason if plan.refusal is not None else ""


def question_of(options: PlanOptions) -> Question:
    """What is asked.

    Raises:
        ValueError: as ``run_plan``.
    """
    model = find_facts(options.model)
    hardware, available_bytes = _hardware(options.on)
    question = Question(
        model=model.reference,
        spec=model.spec,
        hardware=hardware,
        slo=Slo.parse(options.slo) if options.slo is not None else Slo(),
        objective=options.objective,
        quality_bits=options.quality_bits,
        quality=measured_quality(model.directory),
        pins=replace(engine_pins(options), engine=options.engine),
        available_bytes=available_bytes,
    )
    if options.workload is None:
        return question
    return replace(question, workload=Workload.parse(options.workload))


def _hardware(on: str) -> tuple[Hardware, int | None]:
    """The devices, and the memory that is free on each where they are of one kind and here."""
    if on != DETECTED:
        return parse_hardware(on, load_catalog()), None
    from profiles.detect import detect_hardware
    from profiles.measured import calibrated

    detected = detect_hardware()
    free = [group.free_bytes for group in detected.groups]
    return calibrated(detected.hardware), free[0] if len(free) == 1 else None


def _write(plan: Plan, path: Path, *, as_json: bool) -> None:
    text = plan.to_json() + "\n" if as_json or path.suffix == ".json" else plan.to_yaml()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


# ---------------------------------------------------------------------- for people


def render(plan: Plan, console: Console) -> None:
    """Prints a plan or a refusal so that it reads well from 80 columns on."""
    console.print(Text(f"{plan.model} on {plan.hardware}", style="bold"))
    asked = [("workload", plan.workload), ("targets", plan.slo or "none")]
    _facts(console, [*asked, ("optimised", f"for {plan.objective}")])
    if plan.refusal is not None:
        console.print()
        console.print(Text("No plan", style="bold red"), Text(f"  {plan.refusal.reason}"))
        if plan.refusal.fixes:
            console.print("\n[bold]What would do[/bold]")
            for fix in plan.refusal.fixes:
                console.print(Padding(Text(fix), (0, 0, 0, 2), expand=False))
    for pool in plan.pools:
        console.print()
        where = f" on {pool.hardware}" if len(plan.pools) > 1 else ""
        console.print(Text(f"Decision{where}", style="bold green"))
        settings = pool.plan
        facts = [
            ("run", plan_words.decision(settings)),
            ("limits", plan_words.limits(settings)),
            ("length", f"up to {settings.max_model_len} tokens"),
            ("devices", str(pool.devices_used)),
        ]
        if len(plan.pools) == 1:
            facts.append(("why", plan_words.reason(plan)))
        _facts(console, facts)
    if plan.prediction is not None:
        if len(plan.pools) > 1:
            _facts(console, [("why", plan_words.reason(plan))])
        _prediction(console, plan.prediction)
    for pool in plan.pools:
        _ledger(console, pool.ledger)
    if plan.binding_constraint:
        console.print("\n[bold]Limited by[/bold]")
        console.print(Padding(Text(plan.binding_constraint), (0, 0, 0, 2), expand=False))
    _rejected(console, plan.rejected)
    if plan.notes:
        console.print("\n[bold]Note[/bold]")
        for note in plan.notes:
            console.print(Padding(Text(note), (0, 0, 0, 2), expand=False))


def _facts(console: Console, facts: list[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", width=_LABEL_WIDTH)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _prediction(console: Console, prediction: Prediction) -> None:
    level = prediction.ttft_ms.interval.level
    console.print(
        f"\n[bold]Predicted[/bold]  [dim]with intervals that hold the true value in "
        f"{level:.0%} of cases[/dim]"
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", width=_LABEL_WIDTH)
    for _ in range(3):
        table.add_column(justify="right")
    table.add_row("", *(Text(name, style="dim") for name in ("P50", "P90", "P99")))
    for name, percentiles in (
        ("TTFT", prediction.ttft_ms),
        ("TPOT", prediction.tpot_ms),
        ("E2E", prediction.e2e_ms),
    ):
        table.add_row(name, *_cells(percentiles))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    rates = [
        (
            "tokens/s",
            plan_words.number_with_error(
                prediction.output_tokens_per_s, *prediction.output_tokens_per_s_interval
            ),
        ),
        (
            "requests/s",
            plan_words.number_with_error(
                prediction.requests_per_s, *prediction.requests_per_s_interval
            ),
        ),
    ]
    if prediction.slo_attainment < 1 or prediction.goodput_per_s < prediction.requests_per_s:
        rates.append(("meet all", f"{prediction.slo_attainment:.0%} of requests"))
    _facts(console, rates)
    if prediction.extrapolated:
        console.print("  [dim]some steps lie outside what the step-time model was fitted to[/dim]")


def _cells(percentiles: Percentiles) -> Iterator[str]:
    interval = percentiles.interval
    for value, (low, high) in (
        (percentiles.p50, interval.p50),
        (percentiles.p90, interval.p90),
        (percentiles.p99, interval.p99),
    ):
        yield plan_words.time_with_error(value, low, high)


def _ledger(console: Console, ledger: LedgerView) -> None:
    total = ledger.device_bytes
    size = f"{total / plan_words.GIB:.1f} GiB"
    console.print(f"\n[bold]Memory[/bold]  [dim]of each {ledger.device}: {size}[/dim]")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for name, num_bytes in plan_words.ledger_items(ledger):
        share = num_bytes / total
        bar = Text("█" * round(share * _BAR_WIDTH), style="cyan")
        table.add_row(name, f"{num_bytes / plan_words.GIB:.2f} GiB", f"{share:.1%}", bar)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _rejected(console: Console, rejected: tuple[Rejected, ...]) -> None:
    if not rejected:
        return
    console.print("\n[bold]Rejected[/bold]")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", ratio=2, overflow="fold")
    table.add_column(ratio=3, overflow="fold")
    for reason, alternatives in _by_reason(rejected):
        table.add_row(Text("\n".join(alternatives)), Text(reason))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _by_reason(rejected: tuple[Rejected, ...]) -> Iterator[tuple[str, list[str]]]:
    """Alternatives with the same reason together; those that came closest first."""
    grouped: dict[str, list[str]] = {}
    for one in reversed(rejected):
        grouped.setdefault(one.reason, []).insert(0, one.alternative)
    yield from grouped.items()
