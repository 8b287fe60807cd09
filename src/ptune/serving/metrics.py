"""Prometheus metrics."""

from __future__ import annotations

from collections import Counter as Counts
from collections import defaultdict
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

# A text is called unfamiliar if more than this share of the held-out texts are more familiar.
UNFAMILIAR = 0.95


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
        by_task: dict[int, list[Answer]] = defaultdict(list)
        for answer in answers:
            if np.isfinite(answer.logits).all():
                by_task[id(answer.task)].append(answer)
        for some in by_task.values():
            task, labels, values = some[0].task, some[0].task.labels_, some[0].task.postprocessing
            self.truncated.labels(task.name).inc(sum(answer.truncated for answer in some))
            if labels.is_regression:
                continue
            logits = np.stack([answer.logits for answer in some])
            decided = labels.decide(values.margins(logits))
            rows = decided.tolist() if labels.is_multi else np.eye(len(labels))[decided].tolist()
            names = [[n for n, on in zip(labels.names, row, strict=True) if on] for row in rows]
            for label, count in Counts(name for own in names for name in own or [NO_LABEL]).items():
                self.labels.labels(task.name, label).inc(count)
            for score in labels.probabilities(values.calibrated(logits)).max(axis=1).tolist():
                self.confidence.labels(task.name).observe(score)
            if values.unfamiliar is not None:
                count = int((values.unfamiliar.share(logits) > UNFAMILIAR).sum())
                self.unfamiliar.labels(task.name).inc(count)
