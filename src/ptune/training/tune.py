"""Search for settings with Optuna: many short trainings, then one with the best settings.

Trials see the training data only. The evaluation set chooses nothing, so the scores of the final
classifier are as honest as those of an ordinary run.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from ptune.data.dataset import LABEL, WEIGHT, TaskData
from ptune.errors import PtuneError, counted, first_line, missing_package
from ptune.files import folder_of, read_json, staged, write_json
from ptune.labels import in_words
from ptune.training.folder import (
    alone_in,
    changed_settings,
    check_folder,
    differences,
    has_other_data,
    prepare_folder,
)
from ptune.training.run import Run, train_run, trained_in_memory
from ptune.training.settings import TrainSettings, settings_of
from ptune.training.start import check_arguments, prepare, sharing_texts
from ptune.training.summary import Summary
from ptune.training.trainer import check_metric, training_arguments

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

# Files in the output folder: the study, for Optuna; the table of trials; everything, for programs.
STUDY_NAME, TRIALS_NAME, TUNE_NAME = "trials.log", "trials.csv", "tune.json"

# What is searched. Learning rates and epochs are multiples of what `training.defaults` chooses.
SPACE: dict[str, tuple[Any, ...]] = {
    "prompt": ("deep", "input"),
    "num_virtual_tokens": (5, 10, 20, 40),
    "prompt_learning_rate": (0.25, 4.0),
    "learning_rate": (0.25, 4.0),
    "epochs": (0.5, 1.0, 2.0),
}
MULTIPLES = ("prompt_learning_rate", "learning_rate", "epochs")
RANGES = ("prompt_learning_rate", "learning_rate")
# Below this number of training examples, trials are cross-validated.
FEW, FEW_FOLDS = 500, 3
# Evaluations of a trial. It is stopped if it is worse than the median of the others.
EVALUATIONS = 4
# Finished trials before others are stopped; and before importances mean anything.
MEASURED = 4


@dataclass
class Tuned:
    """The result of a search.

    Attributes:
        run: The run with the best settings, on all training data.
        settings: The best value of everything that was searched.
        score: The mean score of these settings in the search.
        default_score: That of the default settings.
        importances: How much of the difference between good and other trials each setting explains,
            from 0 to 1; empty after too few trials.
        trials: All trials, as in `trials.csv`.
    """

    run: Run
    settings: dict[str, Any]
    score: float
    default_score: float | None
    importances: dict[str, float] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)

    @property
    def summary(self) -> dict[str, Any]:
        """Everything but the run, for `tune.json`."""
        return {k: v for k, v in vars(self).items() if k not in ("run", "trials")}


def tune(
    settings: TrainSettings,
    output_dir: str | Path,
    *,
    trials: int = 20,
    search: Sequence[str] | None = None,
    folds: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: TrainerCallback | None = None,
    dataset: TaskData | None = None,
    show: Callable[[Summary], None] | None = None,
    show_trial: Callable[[dict[str, Any]], None] = lambda trial: None,
) -> Tuned:
    """Search for the best settings, and train a classifier with them.

    Each trial trains on a part of the training data and is scored on the rest, by the first metric
    of the task. The first trial has the default settings.

    Args:
        settings: What to train, on which data. What is not searched stays as it is here.
        output_dir: The run folder. It also gets `tune.json` and `trials.csv`.
        trials: Number of trials, including those of an interrupted search.
        search: What to search, of the keys of `SPACE`; ``None``: those with their default value.
        folds: Score each trial on N parts of the training data in turn. 1: on a fifth. ``None``:
            as the search that is resumed, else 3 with fewer than 500 examples, else 1.
        overwrite: Replace the run in this folder.
        resume: Continue an interrupted search, or the final training.
        progress, dataset, show: As for `train_run`, for the final training.
        show_trial: Gets each trial when it has ended.

    Raises:
        PtuneError: Optuna is not installed, or another search is writing to the folder; or as for
            `train_run`.
        KeyboardInterrupt: Ctrl-C was pressed. The trials that have ended are kept.
    """
    check_arguments(settings, dataset)
    if not isinstance(trials, Integral) or trials < 1:
        raise PtuneError(f"trials is {trials!r}; expected a whole number of at least 1.")
    if settings.processes > 1:
        raise PtuneError("A search runs in one process. Start it without torchrun or accelerate.")
    folder = folder_of(output_dir)
    check_folder(folder, overwrite=overwrite, resume=resume)
    resolved, dataset, _ = prepare(settings, dataset)
    names = searched(settings, resolved, search)
    check_metric(training_arguments(resolved, folder, len(dataset.train)), dataset)
    asked = {"settings": settings.to_dict(), "search": names, "folds": folds}
    if resume:
        folds = _check_unchanged(folder, asked, dataset)
    asked |= {"planned": trials}
    search_of = _Search(settings, _folds(dataset, folds, settings.seed), names, folder, asked)
    how: dict[str, Any] = {"progress": progress, "dataset": dataset, "show": show}
    with sharing_texts():
        with alone_in(folder):
            if not resume:
                prepare_folder(folder, resolved, dataset, keep=False)
                for name in (STUDY_NAME, TRIALS_NAME, TUNE_NAME):
                    (folder / name).unlink(missing_ok=True)
            study = search_of.run(trials, show_trial)
        best = search_of.settings_of(study.best_trial, dataset)
        begun = resume and not changed_settings(folder, *prepare(best, dataset)[:2])
        run = train_run(best, folder, overwrite=not begun, resume=begun, **how)
    return search_of.finish(study, run, best)


def left_open(settings: TrainSettings) -> list[str]:
    """What can be searched and has its default value."""
    declared = settings_of(TrainSettings)
    return [name for name in SPACE if getattr(settings, name) == declared[name].default]


def searched(
    settings: TrainSettings, resolved: TrainSettings, search: Sequence[str] | None = None
) -> list[str]:
    """What can be searched, in the order of `SPACE`.

    Args:
        settings: The settings as the user gave them.
        resolved: The same, with everything filled in.
        search: As for `tune`.

    Raises:
        PtuneError: Something cannot be searched, or nothing is left to search.
    """
    search = left_open(settings) if search is None else search
    search = [search] if isinstance(search, str) else search
    if unknown := [name for name in search if name not in SPACE]:
        raise PtuneError(f"{unknown[0]!r} cannot be searched; expected some of {', '.join(SPACE)}.")
    useless: set[str] = set()
    if "prompt" not in search and settings.prompt == "none":
        useless |= {"num_virtual_tokens", "prompt_learning_rate"}
    if resolved.template is not None:
        useless.add("num_virtual_tokens")  # the words of the template decide
    if resolved.head == "words-frozen":
        useless.add("learning_rate")
    if resolved.training_arguments.get("max_steps", -1) > 0:
        useless.add("epochs")  # the steps decide
    names = [name for name in SPACE if name in search and name not in useless]
    if not names:
        raise PtuneError(
            "Every setting is given, so there is nothing to search. Leave out one of "
            f"{', '.join(SPACE)}, or use ptune train."
        )
    return names


def read_search(folder: Path) -> dict[str, Any]:
    """What `tune.json` says about the search in a folder.

    Raises:
        PtuneError: There is none.
    """
    if not (file := folder / TUNE_NAME).is_file():
        raise PtuneError(f"{folder} holds no search to resume. Leave out --resume to start one.")
    return read_json(file)


def _check_unchanged(folder: Path, asked: dict[str, Any], dataset: TaskData) -> int | None:
    """Check that a search is resumed as it was started; returns its number of parts."""
    read = read_search(folder)
    folds: int | None = read.get("folds")
    before = {**read.get("asked", {}), "search": read.get("search"), "folds": folds}
    now = {**asked["settings"], "search": asked["search"], "folds": asked["folds"] or folds}
    if listed := differences(before, now):
        raise PtuneError(
            f"The search in {folder} was started with other settings: {listed}. Resume it "
            "with its own settings, or start one in another folder."
        )
    if has_other_data(folder, dataset):
        raise PtuneError(
            f"The search in {folder} was started with other examples: a file has changed since, so "
            "scores could not be compared. Bring the former one back, or start a search in another "
            "folder."
        )
    return folds


def _folds(dataset: TaskData, folds: int | None, seed: int) -> list[TaskData]:
    """Parts of the training data, each with the rest to evaluate on."""
    from sklearn.model_selection import KFold, StratifiedKFold

    examples = dataset.train
    if folds is not None and folds < 1:
        raise PtuneError(f"folds is {folds}; expected a whole number of at least 1.")
    count = folds or (FEW_FOLDS if len(examples) < FEW else 1)
    parts = 5 if count == 1 else count
    if len(examples) < 2 * parts:
        fewer = "Lower --folds, or use" if parts > FEW_FOLDS else "Use"
        raise PtuneError(
            f"{len(examples)} training examples are too few to search on; expected at least "
            f"{2 * parts}. {fewer} ptune train."
        )
    targets = list(examples[LABEL]) if dataset.labels.is_single else None
    # No label has an example for each part: scikit-learn refuses to share them out.
    alike = targets is not None and max(Counter(targets).values()) >= parts
    split = (StratifiedKFold if alike else KFold)(parts, shuffle=True, random_state=seed)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label with fewer examples than parts
        for train, rest in split.split(np.zeros(len(examples)), targets):
            held_out = examples.select(rest.tolist())
            if WEIGHT in held_out.column_names:
                held_out = held_out.remove_columns(WEIGHT)
            part = examples.select(train.tolist())
            found.append(replace(dataset, train=part, evaluation={"": held_out}, test={}))
    return found[:count]


class _Search:
    """A study, and what its trials train on."""

    def __init__(
        self,
        settings: TrainSettings,
        folds: list[TaskData],
        names: list[str],
        folder: Path,
        asked: dict[str, Any],
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise missing_package("optuna", "tune") from error
        self.optuna = optuna
        self.settings, self.folds, self.names = settings, folds, names
        self.folder, self.asked = folder, asked
        self.metric = folds[0].metrics[0]

    def run(self, trials: int, show_trial: Callable[[dict[str, Any]], None]) -> optuna.Study:
        """Run the trials that are missing."""
        own, states = self.optuna, self.optuna.trial.TrialState
        with self._quiet():
            study = self._study()
            self._write(self._trials(study))
            for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
                study.tell(trial.number, state=states.FAIL)  # the process was killed
            ended = [t for t in study.trials if t.state in (states.COMPLETE, states.PRUNED)]
            # Otherwise a search that resumes would propose the first trials again.
            study.sampler = own.samplers.TPESampler(seed=self.settings.seed + len(study.trials))
            if not ended:
                study.enqueue_trial(self._default())

            def after(study: optuna.Study, trial: Any) -> None:
                found = self._trials(study)
                self._write(found)
                show_trial(found[-1])

            if left := max(0, trials - len(ended)):
                count = counted(left, "trial", "trials")
                logger.warning("%s of %s. %s", count, ", ".join(self.names), self._scored)
                study.optimize(self._objective, n_trials=left, callbacks=[after])
            if not any(t.state == states.COMPLETE for t in study.trials):
                raise PtuneError("No trial has ended with a score. Raise --trials and resume.")
        return study

    def _study(self) -> optuna.Study:
        """The study in the folder, or a new one."""
        own, file = self.optuna, self.folder / STUDY_NAME
        _drop_half_a_line(file)
        try:
            journal = own.storages.journal.JournalFileBackend(str(file))
            return own.create_study(
                study_name="ptune",
                storage=own.storages.JournalStorage(journal),
                pruner=own.pruners.MedianPruner(MEASURED, n_warmup_steps=1),
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PtuneError(
                f"{file} is damaged ({first_line(error)}), so the search cannot be resumed. Start "
                f"one in another folder; what this one found is in {self.folder / TRIALS_NAME}."
            ) from error

    @property
    def _scored(self) -> str:
        train, held_out = (
            len(part) for part in (self.folds[0].train, self.folds[0].evaluation[""])
        )
        again = f", {len(self.folds)} times in turn" if len(self.folds) > 1 else ""
        return (
            f"Each trains on {train} examples and is scored by {in_words(self.metric)} on "
            f"{held_out} others{again}."
        )

    def _default(self) -> dict[str, Any]:
        own = dict.fromkeys(MULTIPLES, 1.0)
        return {n: own.get(n, getattr(self.settings, n)) for n in self.names}

    def _objective(self, trial: optuna.Trial) -> float:
        for name in self.names:
            if name in RANGES:
                trial.suggest_float(name, *SPACE[name], log=True)
            else:
                own = () if name in MULTIPLES else (getattr(self.settings, name),)
                trial.suggest_categorical(name, list(dict.fromkeys((*SPACE[name], *own))))
        chosen = self.settings_of(trial, self.folds[0])
        trial.set_user_attr("settings", {n: getattr(chosen, n) for n in self.names})
        scores: list[float] = []
        for data in self.folds:
            try:
                scores.append(self._score(chosen, data, trial if len(self.folds) == 1 else None))
            except PtuneError as error:
                if trial.number == 0:
                    raise  # the user's settings or data are wrong
                logger.warning("A trial was stopped: %s", error)
                raise self.optuna.TrialPruned from error
            if len(self.folds) > 1:
                trial.report(float(np.mean(scores)), len(scores) - 1)
                if trial.should_prune():
                    raise self.optuna.TrialPruned
        return float(np.mean(scores))

    def settings_of(self, trial: Any, dataset: TaskData) -> TrainSettings:
        """The settings of a trial on a dataset, with numbers in place of multiples."""
        params = trial.params
        given = replace(self.settings, **{n: params[n] for n in params if n not in MULTIPLES})
        resolved, _, _ = prepare(given, dataset)
        own = {n: params[n] * getattr(resolved, n) for n in MULTIPLES if n in params}
        if "num_virtual_tokens" in self.names:
            own["num_virtual_tokens"] = resolved.num_virtual_tokens  # the rule's, if left open
        return replace(given, **own, training_arguments=resolved.training_arguments)

    def _score(self, settings: TrainSettings, data: TaskData, trial: Any) -> float:
        """Train on a part of the data; the score on the rest."""
        watch = _Watch(self.metric, trial)
        often = {"eval_strategy": "steps", "eval_steps": 1 / EVALUATIONS}
        how: dict[str, Any] = often if trial else {"eval_strategy": "no"}
        with trained_in_memory(settings, data, callbacks=[watch], **how) as trainer:
            if watch.step < trainer.state.global_step:
                watch.trial = None
                trainer.evaluate()
        return watch.score

    # Results.

    def _trials(self, study: optuna.Study) -> list[dict[str, Any]]:
        found = []
        for trial in study.trials:
            if trial.state == self.optuna.trial.TrialState.WAITING:
                continue
            score = trial.value
            if score is None and trial.intermediate_values:
                score = trial.intermediate_values[max(trial.intermediate_values)]
            seconds = trial.duration and round(trial.duration.total_seconds(), 1)
            found.append(
                {
                    "trial": trial.number,
                    "state": trial.state.name.lower(),
                    self.metric: score,
                    "seconds": seconds,
                    **trial.user_attrs.get("settings", {}),
                }
            )
        return found

    def _write(self, trials: list[dict[str, Any]], **more: Any) -> None:
        """Write the trials for people and for programs."""
        content = {
            "asked": self.asked["settings"],
            "planned": self.asked["planned"],
            "search": self.names,
            "metric": self.metric,
            "folds": len(self.folds),
            **more,
            "trials": trials,
        }
        with staged(self.folder) as stage:
            write_json(stage / TUNE_NAME, content)
            columns = ["trial", "state", self.metric, "seconds", *self.names]
            with (stage / TRIALS_NAME).open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(trials)

    def finish(self, study: optuna.Study, run: Run, best: TrainSettings) -> Tuned:
        """Say what mattered."""
        complete = [t for t in study.trials if t.state == self.optuna.trial.TrialState.COMPLETE]
        default = next((t.value for t in complete if t.params == self._default()), None)
        importances: dict[str, float] = {}
        if len(complete) >= MEASURED and len({t.value for t in complete}) > 1:
            with self._quiet():
                importances = self.optuna.importance.get_param_importances(study)
        chosen, trials = {n: getattr(best, n) for n in self.names}, self._trials(study)
        score = float(study.best_value)
        found = Tuned(run, chosen, score, default, importances, trials)
        self._write(trials, **found.summary)
        return found

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Hide Optuna's own log: ptune shows its own."""
        logs = self.optuna.logging
        before = logs.get_verbosity()
        logs.set_verbosity(logs.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="optuna")
                yield
        finally:
            logs.set_verbosity(before)


def _drop_half_a_line(file: Path) -> None:
    """Cut off a last line that a killed process did not finish: Optuna could not read it."""
    if file.is_file() and not (content := file.read_bytes()).endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)


class _Watch(TrainerCallback):
    """Remembers the last score, and stops a trial that falls behind."""

    def __init__(self, metric: str, trial: Any) -> None:
        self.metric, self.trial = metric, trial
        self.score, self.step = math.nan, 0

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare with the other trials at the same share of their steps."""
        score = kwargs["metrics"][f"eval_{self.metric}"]
        self.score, self.step = 0.0 if math.isnan(score) else float(score), state.global_step
        if self.trial is None or state.global_step >= state.max_steps:
            return
        self.trial.report(self.score, round(EVALUATIONS * state.global_step / state.max_steps) - 1)
        if self.trial.should_prune():
            import optuna

            raise optuna.TrialPruned
