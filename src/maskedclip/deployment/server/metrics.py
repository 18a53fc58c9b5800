"""What Prometheus reads: requests, times, the queue, batches, refused uploads; no names, texts or addresses."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "maskedclip_requests_total", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "maskedclip_request_seconds",
            "Time from a request's first byte to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batches = Histogram(
            "maskedclip_batch_size",
            "Items that the model saw at once",
            ["kind"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self._rejected = Counter(
            "maskedclip_rejected_uploads_total", "Uploads refused, by reason", ["reason"], registry=self.registry
        )
        self._queue = Gauge("maskedclip_queue_photographs", "Photographs in work or waiting", registry=self.registry)
        self._buffered = Gauge("maskedclip_upload_bytes", "Bytes of uploads in memory", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def follow(self, *, queue: Callable[[], int], buffered: Callable[[], int]) -> None:
        """Where the queue's length and the uploads' bytes are asked for when the metrics are read."""
        self._queue.set_function(queue)
        self._buffered.set_function(buffered)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer; the route is the template, never the address itself."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, kind: str, size: int) -> None:
        """Count a batch; kind: `features:MODEL` and the like."""
        self._batches.labels(kind.partition(":")[0]).observe(size)

    def rejected(self, reason: str) -> None:
        """Count a refused upload."""
        self._rejected.labels(reason).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
