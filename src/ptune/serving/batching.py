"""Batches of requests, computed by one thread."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from ptune.inference.bank import Answer, PromptBank
from ptune.serving.metrics import Metrics
from ptune.serving.settings import ServeSettings
from ptune.texts import Text

# Characters per text of `batch_size` that are gathered for a batch: about 128 tokens.
CHARACTERS_PER_TEXT = 512


class TooLong(Exception):
    """A text that must not be cut has more tokens than its task reads."""


@dataclass
class Job:
    """The texts of one request.

    Attributes:
        requests: Each a task and a text or pair for it.
        may_cut: Texts that are too long are cut; otherwise `answers` raises `TooLong`.
        side: Where they are cut: `left` or `right`; ``None``: the tokenizer decides.
        answers: The result, one answer per request.
    """

    requests: list[tuple[str, Text]]
    may_cut: bool = True
    side: str | None = None
    answers: Future[list[Answer]] = field(default_factory=Future)

    @property
    def characters(self) -> int:
        """Length of all its texts."""
        return sum(len(t) if isinstance(t, str) else sum(map(len, t)) for _, t in self.requests)


class Deliveries:
    """Tells an event loop which jobs are done: of a whole batch at once, which wakes it once."""

    def __init__(self) -> None:
        self._done: deque[asyncio.Future[None]] = deque()
        self._woken: asyncio.AbstractEventLoop | None = None  # it will call `_deliver`

    async def answers(self, job: Job) -> list[Answer]:
        """Wait for the answers of a job that was submitted. A job that nobody awaits is cancelled.

        Raises:
            Exception: What the job raised.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        job.answers.add_done_callback(lambda _: self._add(loop, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            job.answers.cancel()
            raise
        return job.answers.result()

    def _add(self, loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
        """A job is done. Called by the thread that computes."""
        self._done.append(waiter)
        if self._woken is not loop and not loop.is_closed():
            self._woken = loop
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = None  # first: what is added from now on wakes the loop again
        while self._done:
            waiter = self._done.popleft()
            if not waiter.done():
                waiter.set_result(None)


class Batcher:
    """A bounded queue, and the thread that computes.

    The next batch gathers while the current one is computed. Batches therefore grow with the load,
    and a single request never waits for others.
    """

    def __init__(self, bank: PromptBank, settings: ServeSettings, metrics: Metrics) -> None:
        self.bank, self.metrics = bank, metrics
        self.batch_size, self.bound = settings.batch_size, settings.queue
        self.enough = CHARACTERS_PER_TEXT * settings.batch_size
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting = 0  # texts
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ptune-batches", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish all waiting jobs, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            queue.Full: Too many texts are waiting.
        """
        self._count(len(job.requests))
        self._queue.put(job)

    def _count(self, texts: int) -> None:
        with self._lock:
            if texts > 0 and self._waiting + texts > self.bound:
                raise queue.Full
            self._waiting += texts
            self.metrics.waiting.set(self._waiting)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs, characters = [job], job.characters
            while characters < self.enough and not self._queue.empty():
                more = self._queue.get()
                if more is None:
                    self._queue.put(None)  # stop after this batch
                    break
                jobs.append(more)
                characters += more.characters
            self._count(-sum(len(j.requests) for j in jobs))
            # A job is cancelled when its time is up.
            self._answer([j for j in jobs if j.answers.set_running_or_notify_cancel()])

    def _answer(self, jobs: list[Job]) -> None:
        """Answer every job. If one fails, the others are still answered."""
        if not jobs:
            return
        try:
            answers = iter(self._compute(jobs))
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answers.set_exception(error)
                return
            half = len(jobs) // 2
            self._answer(jobs[:half])
            self._answer(jobs[half:])
        else:
            for job in jobs:
                job.answers.set_result([next(answers) for _ in job.requests])

    def _compute(self, jobs: list[Job]) -> list[Answer]:
        started = time.perf_counter()
        uncut = [request for job in jobs if not job.may_cut for request in job.requests]
        if excess := max(self.bank.excess(uncut), default=0):
            raise TooLong(excess)
        answers: dict[int, Answer] = {}
        requests = [(job.side, request) for job in jobs for request in job.requests]
        for side in {side for side, _ in requests}:
            chosen = [i for i, (own, _) in enumerate(requests) if own == side]
            some = [requests[i][1] for i in chosen]
            found = self.bank.answers(some, batch_size=self.batch_size, truncation_side=side)
            answers |= zip(chosen, found, strict=True)
        self.metrics.batch_texts.observe(len(requests))
        self.metrics.batch_seconds.observe(time.perf_counter() - started)
        self.metrics.record(answers.values())
        return [answers[i] for i in range(len(requests))]
