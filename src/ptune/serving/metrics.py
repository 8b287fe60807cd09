"""Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from ptune.inference.bank import Answer
from ptune.labels import NO_LABEL
from ptune.postprocessing import UNFAMILIAR


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
        self.labels = add(
            Counter, "predictions", "Texts with each predicted label.", ("task", "label")
        )
        tenths = [i / 10 for i in range(1, 11)]
        self.confidence = add(
            Histogram, "confidence", "Largest probability.", ("task",), buckets=tenths
        )
        self.unfamiliar = add(
            Counter,
            "unfamiliar_texts",
            f"Texts less familiar than {UNFAMILIAR:.0%} of the held-out ones.",
            ("task",),
        )
        self.truncated = add(
            Counter, "truncated_texts", "Texts longer than the task reads.", ("task",)
        )
        self.waiting = add(Gauge, "queue_texts", "Texts waiting for a batch.")
        sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
        self.batch_texts = add(Histogram, "batch_texts", "Texts per batch.", buckets=sizes)
        self.batch_seconds = add(Histogram, "batch_seconds", "Seconds per batch.")
        self.tasks = add(Gauge, "tasks", "Tasks served.")
        self.refused = add(Gauge, "tasks_refused", "Adapters refused when the server started.")

    def record(self, answers: Iterable[Answer]) -> None:
        """Count what the tasks of a batch answered. Nothing of the texts is kept."""
        for task, logits, prediction in answers:
            if not np.isfinite(logits).all():
                continue
            self.truncated.labels(task.name).inc(prediction.truncated)
            if task.labels_.is_regression:
                continue
            label = task.labels_.by_name(prediction).label
            for name in (label or [NO_LABEL]) if isinstance(label, list) else [label]:
                self.labels.labels(task.name, name).inc()
            self.confidence.labels(task.name).observe(prediction.score)
            if prediction.unfamiliar is not None:
                count = prediction.unfamiliar > UNFAMILIAR
                self.unfamiliar.labels(task.name).inc(count)
