"""🤗 data sets: which splits and columns are read, and what their labels are called."""

import json
import os
import subprocess
import sys

import pytest
from conftest import call, refused
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hub_server import HubServer

from ptune.data.splits import evaluation_split, load_task
from ptune.data.tables import Columns

CLASSES = ClassLabel(names=["World", "Sports"])
NEWS = Features({"idx": Value("int32"), "text": Value("string"), "label": CLASSES})


def news(start, count, label=None):
    numbers = range(start, start + count)
    columns = {"idx": list(numbers), "text": [f"news {i}" for i in numbers]}
    labels = [i % 2 if label is None else label for i in numbers]
    return Dataset.from_dict({**columns, "label": labels}, features=NEWS)


@pytest.fixture
def saved(tmp_path):
    """Saves splits, or one data set, in a folder; returns its name."""

    def save(*one, **splits):
        dataset = one[0] if one else DatasetDict(splits)
        dataset.save_to_disk(tmp_path / "news")
        return str(tmp_path / "news")

    return save


def labels_of(data, part):
    return [data.labels.names[i] for i in part["label"]]


def test_classes_are_names_and_splits_are_found_and_stated(saved, caplog):
    name = saved(train=news(0, 20), test=news(100, 4), validation=news(200, 6))
    data = load_task(name)
    assert data.labels.names == ("Sports", "World")
    assert labels_of(data, data.train)[:2] == ["World", "Sports"]
    assert data.evaluation[""]["text"][:2] == ["news 200", "news 201"]
    assert f"{name}: training on the split 'train', evaluating on 'validation'." in caplog.text


def test_labels_of_a_split_are_separated_as_in_training(saved):
    name = saved(Dataset.from_dict({"text": ["one", "two"], "label": ["a;b", "a"]}))
    columns = Columns(trained_separator=";")
    _, column = evaluation_split(name, columns=columns, problem_type="multi_label_classification")
    assert set(column.values[0]) == {"a", "b"}


def test_test_is_evaluated_on_unless_its_labels_are_not_public(saved, caplog):
    splits = {"train": news(0, 20), "validation": news(200, 6)}
    texts, column = evaluation_split(saved(**splits, test=news(100, 4)))
    assert (texts[0][0], column.values[:2]) == ("news 100", ["World", "Sports"])
    assert "evaluating on the split 'test'." in caplog.text
    name = saved(**splits, test=news(100, 4, label=-1))
    assert evaluation_split(name)[0][0][0] == "news 200"
    assert evaluation_split(name, split="train")[0][0][0] == "news 0"
    with refused(
        f"The data set {name} has no split 'tset'; did you mean 'test'? There are: train, …."
    ):
        evaluation_split(name, split="tset")


def test_of_a_single_split_a_fifth_is_held_out(saved):
    data = load_task(saved(news(0, 20)))
    assert len(data.train) == 16
    assert len(data.evaluation[""]) == 4


def test_columns_are_found_as_in_files(saved):
    pairs = Dataset.from_dict(
        {
            "premise": [f"first {i}" for i in range(20)],
            "hypothesis": [f"second {i}" for i in range(20)],
            "kind": [["a"], ["a", "b"]] * 10,
            "tags": [[0], [0, 1]] * 10,
        }
    )
    pairs = pairs.cast_column("tags", List(ClassLabel(names=["late", "lost"])))
    data = load_task(saved(pairs), columns=Columns(label="tags"))
    assert data.train[0].keys() == {"text", "text_pair", "label"}
    assert data.labels.names == ("late", "lost")
    assert data.labels.problem_type == "multi_label_classification"
    name = saved(pairs)
    with refused(
        f"No column of {name} (train) is called like a label (…); it has premise, hypothesis. "
        "Name it with --label-column, or each column of 0 and 1 with --indicator-column, or use "
        "--no-header if the first line is an example."
    ):
        load_task(name)


def test_examples_whose_label_is_not_public_are_counted(saved):
    name = saved(train=news(0, 20), test=news(100, 4, label=-1))
    with refused(
        f"4 of 4 labels are missing (column 'label' of {name} (test)), at row 1, 2, 3, 4 (counting "
        "from 1). Fill them in or leave those examples out (--skip-unlabelled)."
    ):
        evaluation_split(name, split="test").__getitem__(1).check()


def test_what_is_no_data_set_is_refused(saved, tmp_path):
    (tmp_path / "files").mkdir()
    with refused(
        f"The data set {tmp_path}/files could not be loaded (…). Name a folder that save_to_disk "
        "wrote; for a folder of files, use --train-file."
    ):
        load_task(str(tmp_path / "files"))
    name = saved(first=news(0, 4), second=news(4, 4))
    with refused(
        f"The data set {name} has no split 'train'; there are: first, second. Save the one to "
        "train on in a folder of its own."
    ):
        load_task(name)
    name = saved(train=news(0, 4, label=-1))
    with refused(
        f"No split of {name} has labels to evaluate on (train). Use `ptune predict`, or name the "
        "column with --label-column."
    ):
        evaluation_split(name)


def test_train_and_evaluate_take_a_data_set(saved, bert_folder, tmp_path, capsys):
    name = saved(train=news(0, 20), test=news(100, 4))
    words = ["train", "--dataset", name, "--model", bert_folder, "--output-dir", tmp_path / "run"]
    assert call(*words, "--epochs", 1) == 0
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["dataset"] == name
    capsys.readouterr()
    assert call("evaluate", tmp_path / "run", "--dataset", name, "--split", "train") == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] >= 0.25
    assert call("evaluate", tmp_path / "run", "--dataset", name, "--file", __file__) == 2
    told = "Error: Name what to evaluate on: --task, --file or --dataset, and one only.\n"
    assert capsys.readouterr().err == told


FROM_THE_HUB = """
from ptune import PtuneError
from ptune.data.splits import load_task
data = load_task("alice/news", "small")
print(data.labels.names, len(data.train), len(data.evaluation[""]), data.revision)
try:
    load_task("alice/news")
except PtuneError as error:
    print(error)
"""


def test_a_data_set_on_the_hub_has_its_configurations_and_commit(tmp_path):
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - {{split: train, path: {name}-train.parquet}}\n"
        f"  - {{split: test, path: {name}-test.parquet}}\n"
        for name in ("small", "large")
    )
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/README.md").write_text(f"{card}---\n")
    for split, rows in (("train", news(0, 20)), ("test", news(100, 4))):
        for config in ("small", "large"):
            rows.to_parquet(tmp_path / f"repo/{config}-{split}.parquet")
    with HubServer() as hub:
        commit = hub.add_folder("datasets/alice/news", tmp_path / "repo")
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-3000:]
    first, told = done.stdout.strip().splitlines()
    assert first == f"('Sports', 'World') 20 4 {commit}"
    assert told.startswith("The data set alice/news could not be loaded (Config name is missing.")
    assert told.endswith("or name its configuration with --dataset-config.")
