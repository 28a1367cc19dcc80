"""What a service measures of itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trbert_deploy.runtime.chain import Timing
from trbert_deploy.runtime.token_state import RowResult, TokenRow
from trbert_deploy.selection.operating_point import OperatingPoint

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """The figures of a service; each service has its own.

    Attributes: a counter, gauge or histogram each, with the help text that it gives.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"trbert_{name}", what, labels, registry=self._registry)

        def histogram(name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(
                f"trbert_{name}", what, labels, registry=self._registry, buckets=buckets
            )

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"trbert_{name}", what, ["model"], registry=self._registry)

        self.requests = counter("requests", "Requests by status.", "route", "status")
        self.request_seconds = histogram(
            "request_seconds", "From a request to its answer.", _SECONDS, "route"
        )
        self.waiting = gauge("queue_tokens", "Tokens that wait.")
        self.load = gauge("load", "Of what may wait, the share that does (the last batch's).")
        self.shed_threshold = gauge(
            "shed_threshold", "At which the last batch shed load; 0: the model's own point."
        )
        self.waits = histogram("queue_seconds", "Before the first row runs.", _SECONDS, "model")
        self.batch_tokens = histogram("batch_tokens", "Tokens of a run.", _TOKENS, "model")
        self.batch_rows = histogram("batch_rows", "Rows of a run.", _ROWS, "model")
        self.graph_seconds = counter("graph_seconds", "In each graph.", "model", "graph")
        self.run_seconds = counter("run_seconds", "Of the model's thread.", "model")
        self.tokens = counter("tokens", "Tokens that came.", "model")
        self.kept = counter("kept_tokens", "Those that survived a cut.", "model", "cut")
        self.rows = counter("rows", "Rows that ran.", "model")
        self.dense_rows = counter("dense_rows", "Rows that kept all tokens.", "model")
        self.left = counter("left_rows", "Rows that left at the exit of a cut.", "model", "cut")
        self.slots = counter("slots", "Places in batches, with padding.", "model")
        self.filled = counter("filled_slots", "Places in batches with a token.", "model")
        self.drift = gauge(
            "drift", "Recent share of survivors less the calibrated one, in deviations of a text."
        )

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request had its answer."""
        self.requests.labels(route, status).inc()
        self.request_seconds.labels(route).observe(seconds)

    def of_model(
        self, name: str, waiting_tokens: Callable[[], int], drift: Callable[[], float] | None
    ) -> ModelMetrics:
        """The figures of one model.

        Args:
            drift: None where a model has nothing that it could be compared with.
        """
        self.waiting.labels(name).set_function(waiting_tokens)
        if drift is not None:
            self.drift.labels(name).set_function(drift)
        return ModelMetrics(self, name)


class ModelMetrics:
    """The figures of one model of a service; its own thread calls it."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def waited(self, seconds: float) -> None:
        """A request's first row runs after so long."""
        self._metrics.waits.labels(self._name).observe(seconds)

    def shed(self, load: float, point: OperatingPoint | None) -> None:
        """A batch begins under this load, at this point; the model's own where None."""
        self._metrics.load.labels(self._name).set(load)
        threshold = 0.0 if point is None else point.threshold or 0.0
        self._metrics.shed_threshold.labels(self._name).set(threshold)

    def ran(self, rows: Sequence[TokenRow], results: Sequence[RowResult], timing: Timing) -> None:
        """Rows ran together."""
        metrics, name = self._metrics, self._name
        tokens = sum(map(len, rows))
        metrics.batch_tokens.labels(name).observe(tokens)
        metrics.batch_rows.labels(name).observe(len(rows))
        metrics.tokens.labels(name).inc(tokens)
        metrics.rows.labels(name).inc(len(rows))
        metrics.run_seconds.labels(name).inc(timing.total_seconds)
        metrics.slots.labels(name).inc(timing.slots)
        metrics.filled.labels(name).inc(timing.tokens)
        for graph, seconds in timing.graph_seconds.items():
            metrics.graph_seconds.labels(name, graph).inc(seconds)
        for cut in range(len(results[0].kept)):
            kept = sum(len(result.kept[cut]) for result in results)
            metrics.kept.labels(name, cut).inc(kept)
            if left := sum(result.exit == cut for result in results):
                metrics.left.labels(name, cut).inc(left)
        dense = sum(
            all(len(kept) == len(row) for kept in result.kept)
            for row, result in zip(rows, results, strict=True)
        )
        metrics.dense_rows.labels(name).inc(dense)
