"""Prometheus metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)


class Metrics:
    """The numbers on `/metrics`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

        def add(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **how: Any) -> Any:
            return kind(f"ptune_{name}", text, labels, registry=self.registry, **how)

        self.requests = add(Counter, "requests", "Requests answered.", ("route", "status"))
        self.seconds = add(
            Histogram, "request_seconds", "From the first byte to the answer.", ("route",)
        )
        self.texts = add(Counter, "texts", "Texts classified.", ("task",))
        self.waiting = add(Gauge, "queue_texts", "Texts waiting for a batch.")
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self.batch_texts = add(Histogram, "batch_texts", "Texts per batch.", buckets=sizes)
        self.batch_seconds = add(Histogram, "batch_seconds", "Seconds per batch.")
        self.tasks = add(Gauge, "tasks", "Tasks served.")
        self.refused = add(Gauge, "tasks_refused", "Adapters refused when the server started.")
