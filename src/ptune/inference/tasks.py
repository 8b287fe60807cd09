"""The tasks of a bank: what is known about each, and which have their weights in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ptune.adapters import adapter
from ptune.adapters.adapter import Adapter
from ptune.compat import ForkLock
from ptune.errors import PtuneError, first_line, near
from ptune.labels import Labels
from ptune.postprocessing import Postprocessing
from ptune.prompts.mechanisms import Prompt
from ptune.texts import Reading


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task of a bank.

    Attributes:
        name: Its name in the bank.
        labels_: Its labels, in the order of the logits.
        postprocessing: Its calibration and thresholds.
        pairs: Whether it was trained on pairs of texts; ``None``: unknown.
        num_virtual_tokens: Length of its prompt.
        depth: `input`, `deep`, `reader` or `none`.
    """

    name: str
    labels_: Labels
    postprocessing: Postprocessing
    pairs: bool | None
    num_virtual_tokens: int
    depth: str

    @property
    def thresholds(self) -> list[float] | None:
        """The probability above which a text has each label, if it can have several."""
        own = self.postprocessing.thresholds
        return None if own is None else own.tolist()

    @property
    def labels(self) -> list[str]:
        """Label names, in the order of the logits."""
        return list(self.labels_.names)

    @property
    def problem_type(self) -> str:
        """As in Transformers' configurations."""
        return self.labels_.kind


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of a task, which take memory."""

    prompt: Prompt
    head: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.prompt.nbytes + sum(t.nbytes for t in self.head.values())


@dataclass(eq=False, slots=True)
class Task:
    """A task with its files. Added again from the same files, it is another task.

    Attributes:
        info: Public information.
        folder: The folder of its files.
        stamp: State of these files when they were read.
        reading: How its texts are read.
        weights: `None` while they are only on disk.
        columns: The columns of a table that hold its texts; empty: not trained on a table.
    """

    info: TaskInfo
    folder: str
    stamp: tuple[Any, ...]
    reading: Reading
    weights: Weights | None
    columns: tuple[str, ...] = ()


class TaskTable:
    """Tasks by name. Any number of threads may use it.

    Args:
        budget: Bytes of weights to keep in memory, those of the most recently used tasks. ``None``:
            all are kept.
        read_weights: Moves an adapter's tensors to the backbone's device.

    Attributes:
        used: Bytes of the weights in memory.
        recent: Tasks in memory, the most recently used last.
    """

    def __init__(self, budget: int | None, read_weights: Callable[[Adapter], Weights]) -> None:
        self.budget, self.read_weights, self.used = budget, read_weights, 0
        self.recent: OrderedDict[str, Task] = OrderedDict()
        self._tasks: dict[str, Task] = {}
        self._lock = ForkLock(level=1)

    def add(self, task: Task, *, replace: bool) -> None:
        """Add a task.

        Raises:
            PtuneError: As for `check_free`.
        """
        name = task.info.name
        with self._lock:
            self.check_free(name, replace=replace)
            self._forget(name)
            self._tasks[name] = task
            self._remember(task)

    def remove(self, name: str) -> None:
        """Remove a task.

        Raises:
            PtuneError: There is no task with this name.
        """
        with self._lock:
            self._known(name)
            self._forget(name)
            del self._tasks[name]

    def of(self, names: Iterable[str]) -> list[Task]:
        """The tasks with these names, all as they are at one moment.

        Raises:
            PtuneError: There is no task with one of the names.
        """
        with self._lock:
            return [self._known(name) for name in names]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._tasks))

    def check_free(self, task: str, *, replace: bool) -> None:
        """Refuse a name that is in use.

        Raises:
            PtuneError: There is a task of that name, and it is not to be replaced.
        """
        if task in self._tasks and not replace:
            raise PtuneError(
                f"There is a task {task!r} already. Give this one another name, or replace the "
                "other one (replace=True)."
            )

    def _known(self, task: str) -> Task:
        if task not in self._tasks:
            there = near(task, self._tasks) if self._tasks else "the bank has none"
            raise PtuneError(f"There is no task {task!r}; {there}.")
        return self._tasks[task]

    def take(self, tasks: Iterable[Task]) -> dict[Task, Weights]:
        """The weights of tasks, read from disk if they are not in memory."""
        taken = {}
        with self._lock:
            for task in tasks:
                if task.weights is None:
                    task.weights = self._read(task)
                taken[task] = task.weights
                # The weights of a task removed meanwhile go when this call ends.
                if self._tasks.get(task.info.name) is task:
                    self._remember(task)
        return taken

    def _read(self, task: Task) -> Weights:
        with named_in_errors(task.info.name):
            if stamp_of(Path(task.folder)) != task.stamp:
                raise PtuneError(
                    f"It is not in memory, and its files in {task.folder} have changed or gone "
                    "since it was added. Add it again (replace=True) or remove it."
                )
            return self.read_weights(Adapter.read(task.folder, own_backbone=True))

    def _remember(self, task: Task) -> None:
        """Make a task the most recently used, and drop weights beyond the budget."""
        assert task.weights is not None
        if task.info.name not in self.recent:
            self.used += task.weights.nbytes
        self.recent[task.info.name] = task
        self.recent.move_to_end(task.info.name)
        while self.budget is not None and self.used > self.budget:
            _, oldest = self.recent.popitem(last=False)
            assert oldest.weights is not None
            self.used -= oldest.weights.nbytes
            oldest.weights = None

    def _forget(self, task: str) -> None:
        """Stop counting a task's weights. A call that has started may still use them."""
        old = self.recent.pop(task, None)
        if old is not None and old.weights is not None:
            self.used -= old.weights.nbytes


def stamp_of(folder: Path) -> tuple[Any, ...]:
    """File metadata of an adapter, which changes when its content does."""
    found: list[tuple[int, ...] | None] = []
    for name in adapter.PREDICTING:
        try:
            status = (folder / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


@contextmanager
def named_in_errors(task: str) -> Iterator[None]:
    """Add the task's name to errors about its adapter."""
    try:
        yield
    except Exception as error:  # damaged files raise all kinds of errors
        reason = (
            str(error)
            if isinstance(error, PtuneError)
            else f"its files are damaged ({first_line(error)}). Save or fetch it again."
        )
        raise PtuneError(f"The adapter of the task {task!r} is refused: {reason}") from error
