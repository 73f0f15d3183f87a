"""From a series and its values to what Prometheus' text is written from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from engine.step_totals import Tally
from server.metrics.series import SERIES, Kind, common_labels

ENGINE = "0"
"""vLLM numbers its engines; there is one here."""

Labelled = tuple[tuple[str, ...], float]
"""Values of a series' own labels, and the value."""


def common_values(name: str, model_name: str) -> tuple[str, ...]:
    """Values of the labels that every series of the name's prefix has."""
    values = {"model_name": model_name, "engine": ENGINE}
    return tuple(values[label] for label in common_labels(name))


class Recorder:
    """Makes counters and histograms for what the server itself counts, and collects them."""

    def __init__(self, model_name: str, max_model_len: int, registry: CollectorRegistry) -> None:
        self._model_name = model_name
        self._max_model_len = max_model_len
        self._registry = registry

    def counter(self, name: str, *values: str) -> Counter:
        """One without labels of its own, or of these values."""
        return self.counters(name).labels(*common_values(name, self._model_name), *values)

    def counters(self, name: str) -> Counter:
        """One for each value of its labels, ``common_values`` first."""
        series = SERIES[name]
        family = Counter(name, series.text, series.all_labels, registry=None)
        self._registry.register(_Recorded(family))
        return family

    def histogram(self, name: str) -> Histogram:
        return self.histograms(name).labels(*common_values(name, self._model_name))

    def histograms(self, name: str) -> Histogram:
        series = SERIES[name]
        buckets = series.buckets
        if series.ends_at_max_model_len:
            buckets = tuple(b for b in buckets if b <= self._max_model_len)
        family = Histogram(name, series.text, series.all_labels, buckets=buckets, registry=None)
        self._registry.register(_Recorded(family))
        return family


class _Recorded(Collector):
    """What was recorded, without the times when each sample was made, which nobody needs."""

    def __init__(self, family: MetricWrapperBase) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        for metric in self._family.collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


def _as_label(boundary: float) -> str:
    """A boundary as the client library writes it."""
    label: str = floatToGoString(boundary)  # type: ignore[no-untyped-call]
    return label


class Families:
    """Makes families of values that are read when they are asked for."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name

    def one(self, name: str, value: float) -> Iterator[Metric]:
        """A counter or gauge without labels of its own."""
        return self.labelled(name, [((), value)])

    def labelled(self, name: str, values: Iterable[Labelled]) -> Iterator[Metric]:
        series = SERIES[name]
        kind = CounterMetricFamily if series.kind is Kind.COUNTER else GaugeMetricFamily
        family = kind(name, series.text, labels=series.all_labels)
        for labels, value in values:
            family.add_metric([*common_values(name, self._model_name), *labels], value)
        yield family

    def infos(self, name: str, facts: Iterable[Mapping[str, object]]) -> Iterator[Metric]:
        """A gauge whose values are 1, and whose labels say something."""
        names = SERIES[name].labels
        return self.labelled(name, [(tuple(str(f[label]) for label in names), 1.0) for f in facts])

    def tallies(self, name: str, tallies: Sequence[tuple[tuple[str, ...], Tally]]) -> Metric:
        """A histogram of tallies by the values of its own labels."""
        series = SERIES[name]
        family = HistogramMetricFamily(name, series.text, labels=series.all_labels)
        for labels, tally in tallies:
            boundaries = map(_as_label, (*tally.boundaries, inf))
            buckets = list(zip(boundaries, accumulate(tally.counts), strict=True))
            values = [*common_values(name, self._model_name), *labels]
            family.add_metric(values, buckets, tally.total)
        return family
