"""Whole messages: what was found, what was expected, and how to correct it."""

import enum
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SENTENCES, refused, train_tokenizer

from ptune import PromptBank, PromptClassifier, load, train_run
from ptune.adapters.download import AdapterFiles
from ptune.backbones.loading import load_tokenizer
from ptune.data.dataset import TaskData, load_files
from ptune.data.glue import evaluation_sets, load_glue
from ptune.data.opening import Dialect
from ptune.data.tables import Columns, read_table
from ptune.labels import Labels, labels_from_json, read
from ptune.labels.metrics import compute
from ptune.texts import Template, as_columns, encode, rows
from ptune.training.settings import TrainSettings

TEXTS = ["a text", "another text"] * 3
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


class Colour(enum.Flag):
    RED = 1
    BLUE = 2


def written(name, content):
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def mrpc(content):
    for part in ("train", "dev"):
        written(f"MRPC/{part}.tsv", content)
    return load_glue("mrpc", ".")


def dataset(labels, *more, **how):
    return TaskData.from_lists([TEXTS], labels, *more, **how)


def table(name, content, **dialect):
    return read_table(written(name, content), Dialect(**dialect))


def locked_sheet(name):
    manifest = (
        '<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
        '<manifest:file-entry manifest:full-path="content.xml">'
        "<manifest:encryption-data/></manifest:file-entry></manifest:manifest>"
    )
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("META-INF/manifest.xml", manifest)
        archive.writestr("content.xml", "locked")
    return read_table(name)


AB = Labels.learn(read(["a", "b"]))
NUMBERS = Labels.learn(read([0.5, 1.5, 2.25]))

MESSAGES = {
    "A number of examples per label can only be drawn if each text has one label; texts is "
    "multi_label_classification.": lambda: dataset([["a"], ["b"]] * 3).few_examples(1, 0),
    "sample_weight must be 6 numbers of at least 0, one for each text, and not all of them "
    "zero.": lambda: dataset(["a", "b"] * 3, sample_weight=[1, 2]),
    "A regression has no classes, so class_weight cannot be used.": lambda: dataset(
        [0.5, 1.5, 2.5, 3.5, 4.5, 5.25], class_weight="balanced"
    ),
    "class_weight does not fit the labels: …": lambda: dataset(
        ["a", "b"] * 3, class_weight={"c": 1}
    ),
    "There are 6 texts and 2 labels. Every text needs one label (or one list of labels).": lambda: (
        dataset(["a", "b"])
    ),
    "2 examples of 2 labels are too few to hold some out for evaluation. Add examples, or name a "
    "file with --eval-file.": lambda: load_files(written("few.csv", "text,label\nx,a\ny,b\n")),
    "There is no GLUE task 'mrcp'; did you mean 'mrpc'? …": lambda: load_glue("mrcp", "."),
    "MRPC/train.tsv holds no examples, only a header. Download it again.": lambda: mrpc(HEADER),
    "MRPC/train.tsv has the columns a, b, but not '#1 String'. Is it the original MRPC file of "
    "GLUE?": lambda: mrpc("a\tb\nc\td\n"),
    "mrpc train has the label '7'. Expected one of 0, 1. Is it the original file of "
    "GLUE?": lambda: mrpc(HEADER + "7\t1\t2\tx\ty\n"),
    "There is no encoding 'latin-99'. Use for example --encoding cp1252.": lambda: table(
        "a.csv", "text,label\nx,a\n", encoding="latin-99"
    ),
    "The delimiter 'ab' is not one character. Use for example ';', or tab.": lambda: table(
        "a.csv", "text,label\nx,a\n", delimiter="ab"
    ),
    "empty.csv is empty. Expected a header and examples.": lambda: table("empty.csv", ""),
    "There is no file mial.csv. Did you mean mail.csv?": lambda: (
        written("mail.csv", "text\nx\n"),
        read_table("mial.csv"),
    ),
    "b.jsonl could not be read as json: line 2 is broken or cut short (…). Expected one object "
    'per line, or a list of objects, such as {"text": "…", "label": "…"}.': lambda: table(
        "b.jsonl", '{"text": "x"}\n{"text": \n'
    ),
    'Example 2 of b.json is \'5\'. Expected an object such as {"text": "…", "label": '
    '"…"}.': lambda: table("b.json", '[{"text": "x"}, 5]'),
    "b.parquet could not be read as parquet: …. Is it complete, and is it what its name "
    "says?": lambda: table("b.parquet", b"PAR1 nothing"),
    "b.csv.gz could not be read (…): it is damaged, incomplete, or not what its ending says. Write "
    "or download it again, or rename it.": lambda: table("b.csv.gz", b"\x1f\x8b\x08nothing"),
    "a.json is one object (text, label); expected one object per line, or a list of objects, such "
    'as {"text": "…", "label": "…"}. pandas writes lines with to_json(orient="records", '
    "lines=True).": lambda: table("a.json", '{"text": ["x", "y"], "label": ["a", "b"]}'),
    "a.csv is a web page. Download the file itself (on GitHub: Raw, on the Hub: download).": (
        lambda: table("a.csv", "\n<!DOCTYPE html><html><head></head></html>")
    ),
    "a.parquet is a pointer of Git LFS. Fetch the file with `git lfs pull`.": lambda: table(
        "a.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:46\nsize 12\n"
    ),
    "Standard input is not read as a table. Write it to a file and name that, or give `ptune "
    "predict` the texts as lines, without --file.": lambda: read_table("-"),
    "There is no metric 'acc'; did you mean 'accuracy'? There are: accuracy, f1, …": lambda: (
        compute(["acc"], np.zeros(2), np.zeros(2))
    ),
    "labels is the string 'yes,no'; pass a list of labels.": lambda: PromptClassifier.zero_shot(
        "yes,no"
    ),
    "model is a dict; expected a string.": lambda: TrainSettings({"a": "x" * 100}),
    "Expected TrainSettings(train_file=…) and an output folder, or a TaskData; found a dict. "
    "PromptClassifier().fit takes texts and labels.": lambda: train_run({}, "run"),
    "Expected TrainSettings(train_file=…) and an output folder, or a TaskData; found a DataFrame. "
    "PromptClassifier().fit takes texts and labels.": lambda: train_run(
        TrainSettings(), "run", dataset=pd.DataFrame()
    ),
    "Expected the folder of an adapter, or its name on the Hub; found an object of type "
    "PromptClassifier. Save a classifier first: classifier.save(folder).": lambda: load(
        PromptClassifier()
    ),
    "Expected the folder of an adapter, or its name on the Hub; found an object of type "
    "NoneType. …": lambda: AdapterFiles(None),
    "a.csv holds no settings; expected the settings.json of a run, or a .yaml file. Examples to "
    "learn from are named with --train-file.": lambda: TrainSettings.read(
        written("a.csv", "text,label\nx,a\n")
    ),
    "No column of a.jsonl but text is called like a label (…); it has text, a. Name it with "
    "--label-column, or each column of 0 and 1 with --indicator-column.": lambda: load_files(
        written("a.jsonl", '{"text": "x", "a": "y"}'), columns=Columns("text")
    ),
    "Name the labels with --label-column or --indicator-column, not both.": lambda: load_files(
        written("a.csv", "text,a,b\nx,0,1\n"), columns=Columns("text", None, "a", ("b",))
    ),
    "A regression needs numbers as labels (the labels). Found 'x' at position 1 (counting from 0). "
    "Correct it or leave that example out.": lambda: dataset(["1.5", "x"] * 3, "regression"),
    "The label '<object …>' is of type object (the labels, position 0 (counting from 0)). Labels "
    "are strings, integers, floats, booleans or enum members. Convert it, for example with "
    "str().": lambda: dataset([object(), object()] * 3),
    "The label <Colour.RED|BLUE: 3> combines members of Colour (the labels, position 0 (counting "
    "from 0)). Pass a list of members for each text, for example list(label).": lambda: dataset(
        [Colour.RED | Colour.BLUE, Colour.RED] * 3
    ),
    "The label inf is not a finite number (the labels, position 0 (counting from 0)). Leave it "
    "out.": lambda: dataset([float("inf"), 1.5] * 3),
    "Expected one label per example, and the labels are of type ndarray with 3 dimensions. Pass a "
    "list, an array or a column of a DataFrame.": lambda: dataset(np.zeros((6, 2, 2))),
    "No example has a label (the labels). A classifier needs at least two.": lambda: dataset(
        [[], []] * 3
    ),
    "Every example has the label 'a' (the labels). This is only one class, and a classifier needs "
    "at least two. Are these the labels?": lambda: dataset(["a"] * 6),
    "Two labels of different types are both written '1' (the labels). Convert all labels to one "
    "type, for example with str().": lambda: dataset([1, "1"] * 3),
    "The label 'c' occurs 1 time(s) (the labels), and training never saw it; there are: a, "
    "b.": lambda: Labels.learn(read(["a", "b"])).encode(read(["c"])),
    "GLUE's mrpc could not be downloaded from the Hub (…). Check the network, or name a folder of "
    "the original files with --data-dir.": lambda: load_glue("mrpc"),
    "GLUE's ax has no public labels to evaluate on; use `ptune predict`.": lambda: (
        written("AX/diagnostic.tsv", "index\tsentence1\tsentence2\n0\tx\ty\n"),
        evaluation_sets(AB, task="ax", data_dir="."),
    ),
    "The classifier has the labels a, b, and mrpc has not_equivalent, equivalent: it was trained "
    "on another task.": lambda: (
        mrpc(HEADER + "0\t1\t2\tx\ty\n1\t1\t2\tx\ty\n"),
        evaluation_sets(AB, task="mrpc", data_dir="."),
    ),
    "Name what to evaluate on: --task, --file or --dataset, and one only.": lambda: evaluation_sets(
        AB
    ),
    "a.csv does not have the encoding utf-16. Name another with --encoding.": lambda: table(
        "a.csv", b"text,label", encoding="utf-16"
    ),
    "a.jsonl does not end after its first list: there is more in line 2. Expected one list of "
    'objects, or one object per line, such as {"text": "…", "label": "…"}.': lambda: table(
        "a.jsonl", '["where is it", "a"]\n["my money", "b"]\n'
    ),
    "mail.ods has a password. Save it without one.": lambda: locked_sheet("mail.ods"),
    "mail.txt ends in '.txt'; ptune reads .csv, .tsv, .json, .jsonl, .ndjson, .parquet, .arrow, "
    ".feather, .xlsx, .ods. For a text in each line: `ptune predict … < mail.txt`.": lambda: (
        read_table("mail.txt")
    ),
    "mail has no ending that says what it is; ptune reads .csv, …": lambda: read_table("mail"),
    "mail is a folder; ptune reads .csv, …": lambda: (Path("mail").mkdir(), read_table("mail")),
    "runs has no adapter_config.json, so it is not an adapter. Name a folder inside it that is "
    "one: a, b.": lambda: (
        [written(f"runs/{name}/adapter_config.json", "{}") for name in ("a", "b", ".writing-c")],
        AdapterFiles("runs"),
    ),
    "run has no adapter_config.json, so it is not an adapter. Its training has not finished: "
    "repeat the command with --resume.": lambda: (
        written("run/settings.json", "{}"),
        AdapterFiles("run"),
    ),
    "run has no adapter_config.json, so it is not an adapter. Its training has not finished: "
    "repeat the command with --resume, or name a folder inside it that is one: "
    "checkpoints/checkpoint-3.": lambda: (
        written("run/settings.json", "{}"),
        written("run/checkpoints/checkpoint-3/adapter_config.json", "{}"),
        AdapterFiles("run"),
    ),
    "model has no adapter_config.json, so it is not an adapter. It is a model; train a classifier "
    "on it with `ptune train --model model`.": lambda: (
        written("model/config.json", "{}"),
        AdapterFiles("model"),
    ),
    "There is no folder 'runs/mial', and the Hub could not be asked for adapter_config.json of a "
    "repository with that name (no network, or offline mode). Did you mean runs/mail?": lambda: (
        written("runs/mail/adapter_config.json", "{}"),
        AdapterFiles("runs/mial"),
    ),
    "…/a has no config.json, so it is not a backbone. Name a folder that Transformers' "
    "save_pretrained wrote, or a model on the Hub.": lambda: (
        written("a/b.txt", ""),
        load_tokenizer("a"),
    ),
    "…/a has no config.json, so it is not a backbone. It holds an adapter: load it with "
    "ptune.load, or add it to a PromptBank. As the model, name the backbone that it was trained "
    "on.": lambda: (
        written("a/adapter_config.json", '{"base_model_name_or_path": "never/asked"}'),
        load_tokenizer("a"),
    ),
    "…/runs has no config.json, so it is not a backbone. It holds adapters in mail, mood: "
    "PromptBank.from_folder loads them. As the model, name the backbone that they were trained "
    "on.": lambda: (
        written("runs/mail/adapter_config.json", "{}"),
        written("runs/mood/adapter_config.json", "{}"),
        PromptBank("runs"),
    ),
    "No column of a.csv is called like a text (text, sentence, message, content, body, review, "
    "utterance, comment); it has label, a, b. Name it with --text-column, or use --no-header if "
    "the first line is an example.": lambda: load_files(written("a.csv", "label,a,b\nx,y,z\n")),
    "No column of a.csv is called like a label (label, labels, category, class, intent, target, "
    "sentiment, score, y); it has text, a. Name it with --label-column, or each column of 0 and 1 "
    "with --indicator-column, or use --no-header if the first line is an example.": lambda: (
        load_files(written("a.csv", "text,a\nx,y\n"))
    ),
    "The problem type single_label_classification needs one label per text, but the labels are "
    "lists or a matrix, at position 0, 2, 4 (counting from 0). Leave out the problem type, or use "
    "multi_label_classification.": lambda: dataset(
        [["a", "b"], ["a"]] * 3, "single_label_classification"
    ),
    "The table of the labels has no columns. Pass at least one.": lambda: dataset(
        pd.DataFrame(index=range(6))
    ),
    "Expected a matrix of the numbers 0 and 1; the labels hold the strings '0' and '1'. Convert "
    "them, for example with np.array(y).astype(int).": lambda: dataset([["0", "0"], ["1", "0"]]),
    "There are 102 different labels in 102 examples (the labels). Are these the labels? To predict "
    "numbers as numbers, use problem_type='regression'.": lambda: Labels.learn(
        read([f"label {i}" for i in range(102)])
    ),
    "There are 102 different labels in 102 examples (column 'label' of a.csv). Is it the right "
    "column (--label-column)? To predict numbers as numbers, use --problem-type "
    "regression.": lambda: load_files(
        written("a.csv", "text,label\n" + "".join(f"text {i},label {i}\n" for i in range(102)))
    ),
    "The label 'c' occurs 1 time(s) (the labels of eval_set), and training never saw it; there "
    "are: a, b.": lambda: PromptClassifier().fit(["x", "y"], ["a", "b"], eval_set=(["z"], ["c"])),
    "Expected a column for each of the labels a, b; the labels have a, c.": lambda: Labels.learn(
        read(pd.DataFrame({"a": [0, 1], "b": [1, 0]}))
    ).encode(read(pd.DataFrame({"a": [0, 1], "c": [1, 0]}))),
    "ptune.json is damaged: label_type is 'int', which does not fit the labels a, b. Save or "
    "download it again.": lambda: labels_from_json(
        {"labels": ["a", "b"], "label_type": "int"}, "ptune.json"
    ),
    "A regression has no probabilities; use predict.": lambda: NUMBERS.probabilities([[0.5]]),
    "There are no texts.": lambda: as_columns([]),
    "Expected a table with one column of texts, or two for pairs; found the columns (none). Select "
    'them, for example X[["text"]].': lambda: rows(pd.DataFrame(index=range(2))),
    "The template '{soft:so} {text} {prompt}' has places for 2 virtual tokens and 1 more of any "
    "size, and the prompt has 2. Set num_virtual_tokens (--num-virtual-tokens) to at least "
    "3.": lambda: Template("{soft:so} {text} {prompt}").placed(train_tokenizer(), 2),
    "The template '{soft:}{text}' has {soft:}, which has no tokens. Name words there, or use "
    "{prompt}.": lambda: Template("{soft:}{text}").placed(train_tokenizer(), None),
    "The template '{prompt:5} {text}' has places for 5 virtual tokens, and the prompt has 6. Set "
    "num_virtual_tokens (--num-virtual-tokens) to 5, or leave it out.": lambda: Template(
        "{prompt:5} {text}"
    ).placed(train_tokenizer(), 6),
    "The template 'chat:{text}' needs a chat format, and this tokenizer has none. Leave out "
    "'chat:'.": lambda: encode(
        train_tokenizer(), [SENTENCES], None, template=Template("chat:{text}")
    ),
    "The template '{text} x' has {text} alone, but these are pairs.": lambda: Template(
        "{text} x"
    ).fill([["a"], ["b"]]),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_mistake_gets_a_whole_message(message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(message):
        MESSAGES[message]()
