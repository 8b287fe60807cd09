"""Many tasks at once: readers train together, and each gets a run folder of its own."""

import csv
import json
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from conftest import call, refused, train_tokenizer

import ptune
from ptune import TrainSettings
from ptune.adapters.adapter import Adapter
from ptune.errors import cut
from ptune.training import start
from ptune.training.fleet import tasks_of
from ptune.training.together import Member, Stack

COMMON = {
    "prompt": "reader",
    "num_virtual_tokens": 4,
    "reader_rank": 2,
    "reader_key_rank": 2,
    "batch_size": 8,
    "epochs": 2,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory, texts):
    """Mail of two customers, with two labels, several labels, a number and a constant column."""
    file = tmp_path_factory.mktemp("data") / "mail.csv"
    with file.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["text", "topic", "tone", "tags", "length", "same", "customer"])
        for i in range(48):
            text = f"{texts[i % 8]} {i}"
            topic = ("money", "parcel", "other")[i % 3]
            tags = ("urgent", "old|urgent", "old")[i % 3]
            writer.writerow(
                [text, topic, "ab"[i % 2], tags, i / 7, "x", ("acme", "bolt & co")[i // 24]]
            )
    return file


@pytest.fixture(scope="module")
def common(bert_folder, table):
    return TrainSettings(model=str(bert_folder), train_file=str(table), **COMMON)


@pytest.fixture(scope="module")
def trained(common, tmp_path_factory):
    """A fleet of four tasks with labels of all kinds, and one that cannot be trained."""
    folder = tmp_path_factory.mktemp("fleet")
    columns = ["topic", "tone", "tags", "length", "same", "missing"]
    return folder, ptune.train_fleet(tasks_of(common, label_columns=columns), folder)


def test_tasks_that_cannot_be_trained_are_reported_and_the_others_trained(trained, table):
    _, fleet = trained
    assert list(fleet.metrics) == ["topic", "tone", "tags", "length"]
    assert fleet.refused.keys() == {"same", "missing"}
    assert fleet.refused["same"].startswith("Every example has the label 'x' (column 'same' of ")
    assert fleet.refused["missing"].startswith(f"{table} has no column 'missing'; ")


@pytest.mark.parametrize("name", ["", 1, "/etc/mail", "../mail", "a" * 300, "."])
def test_a_name_that_is_no_folder_in_the_output_folder_is_refused(tmp_path, name):
    """One that is an absolute path was trained there."""
    with refused(f"A task cannot be called {cut(repr(name), 80)}: its run folder, in the …"):
        ptune.train_fleet({name: TrainSettings(train_file="a.csv")}, tmp_path / "runs")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("tasks", [[], {}, TrainSettings(train_file="a.csv")])
def test_what_is_no_task_by_name_is_refused(tmp_path, tasks):
    with refused("Expected the settings of each task by its name, such as {'mail': …"):
        ptune.train_fleet(tasks, tmp_path / "runs")
    with refused("Expected the name of a folder to write to; found None."):
        ptune.train_fleet({"mail": TrainSettings(train_file="a.csv")}, None)


def test_a_metric_that_evaluation_does_not_have_is_refused_before_training(common, tmp_path):
    own = replace(common, training_arguments={"metric_for_best_model": "pearson"})
    fleet = ptune.train_fleet(tasks_of(own, label_columns=["topic", "tone", "length"]), tmp_path)
    assert list(fleet.metrics) == ["length"]
    expected = "metric_for_best_model is 'pearson'; expected one of loss, accuracy, f1_macro."
    assert fleet.refused == dict.fromkeys(("topic", "tone"), expected)
    assert not (tmp_path / "topic").exists()


def test_each_text_of_a_fleet_is_read_once(trained):
    _, fleet = trained
    kept = [metrics["kept_texts"] for metrics in fleet.metrics.values()]
    assert {own["read"] for own in kept} == {48}


def test_every_task_has_an_ordinary_run_folder(trained, table, capsys, texts):
    folder, fleet = trained
    kinds = {"topic": 3, "tone": 2, "tags": 2, "length": 1}
    for name, labels in kinds.items():
        loaded = ptune.load(folder / name)
        assert len(loaded.labels) == labels
        assert json.loads((folder / name / "metrics.json").read_text()) == fleet.metrics[name]
        own = TrainSettings.read(folder / name)
        assert (own.train_file, own.label_column) == (str(table), name)
        assert own.to_dict() == start.prepare(own)[0].to_dict()
    assert call("evaluate", folder / "topic", "--file", table, "--label-column", "topic") == 0
    assert call("info", folder / "tone") == 0
    answers = ptune.PromptBank.from_folder(folder).predict_all(texts[:2])
    assert [set(of_text) for of_text in answers] == [set(kinds)] * 2
    for name in kinds:
        alone = ptune.load(folder / name)(texts[:2])
        for one, own in zip(answers, alone, strict=True):
            same = one[name].label == own.label
            assert same or one[name].label == pytest.approx(own.label, abs=0.03)


def test_tasks_of_a_fleet_tell_unfamiliar_texts(common, tmp_path, texts):
    file = tmp_path / "many.csv"
    rows = [f'"{texts[i % 8]} {i}",{("money", "parcel", "other")[i % 3]}' for i in range(90)]
    file.write_text("text,topic\n" + "\n".join(rows))
    own = replace(common, train_file=str(file), eval_file=str(file), label_column="topic")
    own = replace(own, other_label="other", epochs=1)
    tasks = {f"seed-{seed}": replace(own, seed=seed) for seed in range(2)}
    fleet = ptune.train_fleet(tasks, tmp_path / "fleet")
    for name, metrics in fleet.metrics.items():
        assert metrics["quality"]["out_of_scope"]["rows"] == 60
        assert ptune.load(tmp_path / "fleet" / name)(texts[:1])[0].unfamiliar is not None


@pytest.mark.parametrize("pooling", ["auto", "layers"])
def test_a_task_learns_in_a_fleet_what_it_learns_alone(common, tmp_path, pooling):
    """Same start, and the same gradients as in a batch of its own; whatever its head reads."""
    settings = [replace(common, label_column=name) for name in ("topic", "tone")]
    settings[0] = replace(settings[0], pooling=pooling)
    prepared = [start.prepare(own) for own in settings]
    numbers = {}
    for chosen in ((0, 1), (0,), (1,)):
        stack = Stack(*prepared[chosen[0]])
        for module in stack.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        members = [Member(*prepared[i][:2], stack) for i in chosen]
        for member in stack.train(list(members)):
            adapter = stack.model.to_adapter(member.adapter)
            key = "together" if len(chosen) > 1 else "alone"
            numbers[key, len(member.dataset.labels)] = adapter
    for labels in (2, 3):
        one, other = numbers["together", labels], numbers["alone", labels]
        torch.testing.assert_close(one.prompt_embeddings, other.prompt_embeddings)
        torch.testing.assert_close(one.head, other.head)


def test_a_task_that_is_continued_learns_what_it_would_have_learned(common, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    own = replace(common, label_column="topic", learning_rate=0.05, training_arguments=best)
    own, dataset, tokenizer = start.prepare(own)
    stack = Stack(own, dataset, tokenizer)
    for module in stack.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    whole, rest, damaged = (Member(own, dataset, stack) for _ in range(3))
    for member in stack.train([whole], lambda member: member.save(tmp_path)):
        assert member.step == 10
    rest.load(tmp_path)
    assert rest.step == 5
    assert len(list(stack.train([rest]))) == 1
    for one, other in zip(rest.log, whole.log, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    for one, other in zip(rest.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(one, other)
    (file,) = tmp_path.iterdir()
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # a limit on the size of files, like a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with refused(f"Saving to {tmp_path} failed: File too large. … Make room or name another …"):
            rest.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before
    file.write_bytes(before[:-100])
    damaged.load(tmp_path)
    assert damaged.step == 0


def test_a_task_starts_in_a_fleet_as_it_starts_alone(common, tmp_path):
    still = {"learning_rate": 0.0, "prompt_learning_rate": 0.0, "epochs": 1}
    settings = replace(common, label_column="topic", **still)
    alone = ptune.train_run(settings, tmp_path / "alone").model.to_adapter()
    ptune.train_fleet({"a": replace(settings, label_column="tone"), "b": settings}, tmp_path)
    found = Adapter.read(tmp_path / "b")
    assert torch.equal(found.prompt_embeddings, alone.prompt_embeddings)
    assert all(torch.equal(found.head[name], t) for name, t in alone.head.items())


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Small language models: one whose head can start as label words, and one that caps scores."""
    folder, tokenizer = tmp_path_factory.mktemp("decoders"), train_tokenizer(eos="[SEP]")
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    kinds = {"plain": transformers.LlamaConfig, "capped": transformers.Gemma2Config}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(kind(**size))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "head", "many"),
    [("plain", "words", 100), ("plain", "words", 2), ("capped", "linear", 2)],
)
def test_readers_of_a_decoder_start_in_a_fleet_as_alone(
    decoders, common, tmp_path, monkeypatch, name, head, many
):
    """As words after the text, with label words as head where the language model allows it."""
    monkeypatch.setattr("ptune.training.defaults.MANY_EXAMPLES", many)
    still = {"learning_rate": 0.0, "prompt_learning_rate": 0.0, "epochs": 1, "reader_rank": 0}
    settings = replace(common, model=str(decoders / name), label_column="topic", **still)
    settings = replace(settings, num_virtual_tokens=None)
    alone = ptune.train_run(settings, tmp_path / "alone").model.to_adapter()
    wrong = replace(settings, label_words="moon=cheese")
    tasks = {"a": replace(settings, label_column="tone"), "b": settings, "c": wrong}
    fleet = ptune.train_fleet(tasks, tmp_path)
    assert list(fleet.refused) == ["c"]
    written = json.loads((tmp_path / "b" / "settings.json").read_text())
    asked = "{text}{soft:\nThis text is about}" if head == "words" else None
    assert (written["head"], written.get("template")) == (head, asked)
    found = Adapter.read(tmp_path / "b")
    assert torch.equal(found.prompt_embeddings, alone.prompt_embeddings)
    assert all(torch.equal(found.head[name], t) for name, t in alone.head.items())


def test_a_fleet_goes_on_where_it_was_killed(common, tmp_path):
    tasks = tasks_of(common, label_columns=["topic", "tone"])
    with pytest.raises(KeyboardInterrupt):
        ptune.train_fleet({**tasks, "tone": replace(tasks["tone"], epochs=3)}, tmp_path, show=_stop)
    assert (tmp_path / "topic/metrics.json").is_file()
    assert not (tmp_path / "tone/metrics.json").exists()
    before = (tmp_path / "topic/adapter_model.safetensors").stat()
    tasks["tone"] = replace(tasks["tone"], epochs=3)
    with refused("The folder … already holds a run. …"):
        ptune.train_fleet(tasks, tmp_path)
    fleet = ptune.train_fleet(tasks, tmp_path, resume=True)
    assert fleet.skipped == ["topic"]
    assert fleet.metrics.keys() == {"topic", "tone"}
    assert [epoch["epoch"] for epoch in fleet.metrics["tone"]["epochs"]] == [1, 2, 3]
    seen = fleet.metrics["tone"]["kept_texts"]
    assert seen["read"] + seen["reused"] == 48  # the last epoch, not the first two again
    assert (tmp_path / "topic/adapter_model.safetensors").stat() == before
    assert ptune.load(tmp_path / "tone").labels == ["a", "b"]
    with refused("The run in … was started with other settings: seed was 0 and is 7. …"):
        ptune.train_fleet({n: replace(t, seed=7) for n, t in tasks.items()}, tmp_path, resume=True)


def _stop(name, metrics):
    raise KeyboardInterrupt


def test_two_fleets_never_write_to_one_folder(common, tmp_path):
    tasks, met = tasks_of(common, label_columns=["topic", "tone"]), []

    def start_another(name, metrics):
        with refused(f"Another run is writing to {tmp_path}. Wait until it has ended, or …"):
            ptune.train_fleet({"third": tasks["tone"]}, tmp_path)
        met.append(name)

    ptune.train_fleet(tasks, tmp_path, show=start_another)
    assert met == ["topic", "tone"]
    assert not (tmp_path / "third").exists()


def test_a_diverging_task_does_not_harm_the_others(common, tmp_path):
    wild = replace(common, label_column="tone", learning_rate=1e38, prompt_learning_rate=1e38)
    fleet = ptune.train_fleet(
        {"wild": wild, "tame": replace(common, label_column="topic")}, tmp_path
    )
    assert fleet.metrics.keys() == {"tame"}
    assert fleet.refused["wild"].startswith("The loss became NaN or infinite in step ")
    assert np.isfinite(fleet.metrics["tame"]["eval"]["loss"])


def test_a_task_that_has_learned_its_examples_ends_early(common, tmp_path, monkeypatch):
    monkeypatch.setattr("ptune.training.together.LEARNED", 1.0)
    hard = replace(common, label_column="topic", learning_rate=0.0, prompt_learning_rate=0.0)
    easy = replace(common, label_column="tone", learning_rate=0.05)
    tasks = {"hard": hard, "easy": easy}
    fleet = ptune.train_fleet({n: replace(t, epochs=12) for n, t in tasks.items()}, tmp_path)
    steps = {name: metrics["epochs"][-1]["step"] for name, metrics in fleet.metrics.items()}
    assert 10 <= steps["easy"] < steps["hard"] == 60
    assert fleet.metrics["easy"]["eval"]["loss"] > 0


def test_a_task_that_ends_early_keeps_the_mean_of_its_last_states(common, monkeypatch):
    monkeypatch.setattr("ptune.training.together.LEARNED", 1.0)
    often = {"eval_strategy": "steps", "eval_steps": 1}
    own = replace(common, label_column="tone", learning_rate=0.05, epochs=12)
    own, dataset, tokenizer = start.prepare(replace(own, training_arguments=often))
    stack, states = Stack(own, dataset, tokenizer), []
    (member,) = stack.train(
        [Member(own, dataset, stack)],
        lambda member: states.append(torch.cat([p.detach().flatten() for p in member.parameters])),
    )
    assert 10 <= member.step < member.steps
    found = torch.cat([p.detach().flatten() for p in member.parameters])
    mean = torch.stack(states[-10:]).mean(dim=0)
    assert (found - mean).norm() < 0.5 * (states[-1] - mean).norm()


def test_the_best_state_of_each_task_is_kept_on_request(common, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    own = replace(common, epochs=6, learning_rate=0.5, training_arguments=best)
    fleet = ptune.train_fleet(tasks_of(own, label_columns=["topic", "tone"]), tmp_path)
    for name, metrics in fleet.metrics.items():
        scores = [epoch["accuracy"] for epoch in metrics["epochs"]]
        matrix = np.array(metrics["confusion_matrix"]["eval"])
        assert metrics["adapter"] == "best"
        assert np.trace(matrix) / matrix.sum() == pytest.approx(max(scores)), name


def test_other_prompts_train_one_after_another(common, tmp_path, capsys):
    words = ["--train-file", common.train_file, "--model", common.model, "--epochs", 1]
    words += ["--label-column", "topic", "--label-column", "tone", "--num-virtual-tokens", 2]
    assert call("train", *words, "--prompt", "input", "--output-dir", tmp_path) == 0
    assert (tmp_path / "topic/confusion_matrix.png").is_file()
    assert "Skipped" not in capsys.readouterr().out
    again = ["train", *words, "--prompt", "input", "--resume", "--output-dir", tmp_path]
    assert call(*again) == 0
    assert "Skipped, because they were finished: topic, tone." in capsys.readouterr().out


def test_a_folder_of_files_and_a_column_of_groups_are_tasks(common, table, tmp_path, capsys):
    rows = list(csv.reader(table.open()))
    customers = tmp_path / "customers"
    customers.mkdir()
    for name, some in (("acme.csv", rows[1:25]), ("bolt.v2.csv", rows[25:])):
        with (customers / name).open("w", newline="") as f:
            csv.writer(f).writerows([rows[0], *some])
    (customers / "empty.csv").write_text("")
    (customers / "notes.md").write_text("mine")
    (customers / "older.csv").mkdir()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in COMMON.items()]
    words = ["train", "--model", common.model, "--label-column", "tone", *options]
    (customers / "same.csv").write_text("text,tone\n" + "some text,a\n" * 8)
    assert call(*words, "--tasks-dir", customers, "--output-dir", tmp_path / "files") == 2
    shown = capsys.readouterr()
    assert "4 tasks" in shown.out
    assert "majority class" in shown.out
    assert shown.err.endswith(
        "2 of 4 tasks were not trained.\n"
        f"empty: {customers}/empty.csv is empty. Expected a header and examples.\n"
        f"same: Every example has the label 'a' (column 'tone' of {customers}/same.csv). This is "
        "only one class, and a classifier needs at least two. Is it the right column "
        "(--label-column)?\n"
        "Correct these, and repeat the command with --resume: it skips the others.\n"
    )
    for name in ("empty", "same"):
        (customers / f"{name}.csv").write_text((customers / "acme.csv").read_text())
    again = ["--tasks-dir", customers, "--output-dir", tmp_path / "files"]
    assert call(*words, *again, "--resume") == 0
    assert "Skipped, because they were finished: acme, bolt.v2." in capsys.readouterr().out
    assert ptune.load(tmp_path / "files/empty").labels == ["a", "b"]
    (customers / "acme.csv").write_text((customers / "bolt.v2.csv").read_text())
    assert call(*words, *again, "--resume") == 0
    shown = capsys.readouterr()
    assert "Skipped, because they were finished: acme, bolt.v2, empty, same." in shown.out
    note = "files/acme was trained on other examples: a file has changed since. It is finished"
    assert shown.err.count("other examples") == 1
    assert note in shown.err
    groups = ["--train-file", table, "--group-column", "customer"]
    assert call(*words, *groups, "--output-dir", tmp_path / "groups") == 0
    assert sorted(p.name for p in (tmp_path / "groups").iterdir()) == ["acme", "bolt_co"]
    for file, group in (("acme", "acme"), ("bolt.v2", "bolt_co")):
        one, other = (
            json.loads((tmp_path / kind / name / "metrics.json").read_text())
            for kind, name in (("files", file), ("groups", group))
        )
        assert one["eval"] == pytest.approx(other["eval"], abs=1e-4)
        assert one["train_examples"] == other["train_examples"] < 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tasks-dir", "nowhere"],
            "There is no file with examples in nowhere. Check the path.",
        ),
        (
            ["--tasks-dir", "nowhere", "--group-column", "a"],
            "Name several tasks in one way: by --label-column, by --tasks-dir or by "
            "--group-column.",
        ),
        (
            ["--group-column", "customer"],
            "Several tasks come from one file. Name it with --train-file.",
        ),
        (
            ["--label-column", "a", "--label-column", "b", "--seeds", "2"],
            "Several tasks have neither --dry-run nor --seeds. Leave it out.",
        ),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(words, message, tmp_path, capsys):
    assert call("train", *words, "--output-dir", tmp_path / "runs") == 2
    assert capsys.readouterr().err == f"Error: {message}\n"


def test_if_no_task_can_be_trained_the_exit_code_says_so(common, tmp_path, capsys):
    words = ["--train-file", common.train_file, "--label-column", "no", "--label-column", "none"]
    assert call("train", *words, "--json", "--output-dir", tmp_path / "runs") == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["refused"].keys() == {"no", "none"}
    assert not (tmp_path / "runs").exists()


def test_rows_are_chosen_by_a_column(common, table, tmp_path):
    whole, part = (
        start.load_dataset(replace(common, label_column="tone", where=where))
        for where in (None, "customer=acme")
    )
    sizes = [len(d.train) + len(d.evaluation[""]) for d in (whole, part)]
    assert sizes == [48, 24]
    messages = {
        "acme": "where is 'acme'; expected a column and a value, as customer=acme.",
        "custmer=acme": f"{table} has no column 'custmer'; did you mean 'customer'? There are: …",
        "customer=": f"No row of {table} has '' in column 'customer'; there are: acme, bolt & co.",
    }
    for where, message in messages.items():
        with refused(message):
            start.load_dataset(replace(common, label_column="tone", where=where))
    with refused("--where is for a file, and this is a GLUE task: it would change nothing. …"):
        start.load_dataset(TrainSettings(task="mrpc", where="customer=acme"))


def test_several_tasks_never_drop_an_option(common, table):
    own = replace(common, where="tone=kind")
    with refused("A task for each value of 'customer' chooses its own rows, and --where tone=…"):
        tasks_of(own, group_column="customer")
    with refused(
        f"Each file in … is the training file of a task, and {table} would not be read. …"
    ):
        tasks_of(common, tasks_dir=table.parent)


def test_long_values_get_folders_with_short_names(common, tmp_path):
    values = [f"{'ü' * 300} {i}" for i in range(2)]
    file = tmp_path / "long.csv"
    file.write_text("text,label,group\n" + "".join(f"a,b,{value}\n" for value in values))
    tasks = tasks_of(replace(common, train_file=str(file)), group_column="group")
    assert [own.where for own in tasks.values()] == [f"group={value}" for value in values]
    assert all(len(name.encode()) < 120 and name.startswith("ü" * 50) for name in tasks)


def test_two_names_that_give_one_folder_are_refused(common):
    with refused("Two tasks would get the folder 'a_b': a b and a&b. Rename one."):
        tasks_of(common, label_columns=["a b", "a&b"])
