"""One backbone in memory, any number of adapters; a batch mixes any tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ptune
from ptune.classifier import Prediction, PromptClassifier, Text
from ptune.errors import PtuneError


@dataclass(frozen=True)
class TaskInfo:
    """What a task is."""

    name: str
    labels: list[str]
    problem_type: str
    pairs: bool | None
    num_virtual_tokens: int
    depth: str


class PromptBank:
    """Many tasks; each keeps its own classifier."""

    def __init__(self, model: str, *, dtype: str = "auto", **_: Any) -> None:
        self.model, self.dtype = model, dtype
        self._tasks: dict[str, PromptClassifier] = {}
        self.refused: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, model: str | None = None, dtype: str = "auto", **_: Any
    ) -> PromptBank:
        """Every sub-folder that holds an adapter is a task."""
        bank = cls(model or "minilm", dtype=dtype)
        for config in sorted(Path(folder).glob("*/adapter_config.json")):
            try:
                bank.add(config.parent.name, config.parent)
            except PtuneError as error:
                bank.refused[config.parent.name] = str(error)
        if not bank._tasks:
            raise PtuneError(f"{folder} holds no adapter.")
        return bank

    def add(self, task: str, source: str | Path, *, replace: bool = False) -> None:
        """Add a task."""
        if task in self._tasks and not replace:
            raise PtuneError(f"There is a task {task!r} already.")
        loaded = ptune.load(source, model=self.model, dtype=self.dtype)
        self._tasks[task] = loaded

    def remove(self, task: str) -> None:
        """Remove a task."""
        if self._tasks.pop(task, None) is None:
            raise PtuneError(f"There is no task {task!r}.")

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._tasks))

    def _of(self, name: str) -> PromptClassifier:
        found = self._tasks.get(name)
        if found is None:
            raise PtuneError(f"There is no task {name!r}.")
        return found

    def task(self, name: str) -> TaskInfo:
        """What a task is."""
        c = self._of(name)
        return TaskInfo(name, c.labels, c.problem_type_, None, c.num_virtual_tokens, c.prompt)

    def logits(
        self, requests: Sequence[tuple[str, Text]], *, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Logits of each request, in order."""
        results: list[Any] = [None] * len(requests)
        groups: dict[tuple[str, bool], list[int]] = {}
        for i, (task, text) in enumerate(requests):
            groups.setdefault((task, isinstance(text, str)), []).append(i)
        with self._lock:
            for (task, _), rows in groups.items():
                texts = [requests[i][1] for i in rows]
                for i, row in zip(rows, self._of(task).logits(texts), strict=True):
                    results[i] = row
        return results

    def predict(self, requests: Sequence[tuple[str, Text]]) -> list[Prediction]:
        """Predictions of each request, in order."""
        rows = self.logits(requests)
        return [
            self._of(task)._prediction(row) for (task, _), row in zip(requests, rows, strict=True)
        ]
