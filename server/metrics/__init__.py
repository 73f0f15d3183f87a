"""What ``/metrics`` shows. ``series`` says what there is; no series has a label per request."""

from server.metrics.exposition import Metrics

__all__ = ["Metrics"]
