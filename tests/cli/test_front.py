"""What `ptune` shows: help, the summary before training, verdicts, comparisons, JSON."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import typer
from conftest import call, edit_json, write_mail
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ptune.cli import runs as cli
from ptune.cli.app import app
from ptune.training import trainer
from ptune.training.summary import verdict

COMMANDS = typer.main.get_command(app).commands


@pytest.fixture(scope="module")
def mail(tmp_path_factory, texts):
    """Two columns of texts, rows without a text, and a rare label."""
    file = tmp_path_factory.mktemp("mail") / "mail.csv"
    rows = [(f"hello {i}", f"{t} {i}", "ab"[i % 2]) for i, t in enumerate(texts * 6)]
    rows[3] = (*rows[3][:2], "rare")
    rows += [("no body", "", "a"), ("no body", " ", "b")]
    with file.open("w", newline="") as f:
        csv.writer(f).writerows([("subject", "text", "label"), *rows])
    return file


@pytest.fixture(scope="module")
def flags(bert_folder, mail):
    chosen = ["train", "--model", bert_folder, "--train-file", mail, "--skip-empty"]
    return [*chosen, "--num-virtual-tokens", 4, "--epochs", 1, "--dtype", "float32"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, flags):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("one", "two"):
        assert call(*flags, "--output-dir", folder / name) == 0
    return folder


@pytest.fixture
def printed(capsys):
    """Runs `ptune`, which must succeed; returns its output and errors."""

    def run(*words):
        capsys.readouterr()
        assert call(*words) == 0
        return capsys.readouterr()

    return run


# Help.


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_sentence_and_shows_its_default(name):
    for option in COMMANDS[name].params:
        if option.param_type_name == "option" and option.name != "help":
            help = (option.help or "").replace("\\[", "[")
            assert help.rstrip().endswith((".", "]")), option.name
            shown = "[default: " in help or (option.show_default and option.default is not None)
            assert shown or option.is_flag or option.required, option.name


def test_help_says_what_is_true_of_the_command():
    def help_of(command, name):
        (found,) = (p for p in COMMANDS[command].params if p.name == name)
        return found.help, [*found.opts, *found.secondary_opts]

    assert "half of those of ptune train" in help_of("demo", "epochs")[0]
    for command in ("check", "drift"):
        assert "one JSON list" in help_of(command, "as_json")[0]
    for command in ("tune", "check", "report"):
        assert "task for each" not in help_of(command, "label_column")[0]
    assert "task for each" in help_of("train", "label_column")[0]
    assert help_of("train", "no_header")[1] == ["--no-header", "--header"]


def test_backslash_and_n_as_typed_are_a_line_break():
    words = ["--output-dir", "run", "--label-separator", r"\n", "--template", r"{text}\nSo:"]
    given = COMMANDS["train"].make_context("train", words).params
    assert (given["label_separator"], given["template"]) == ("\n", "{text}\nSo:")


def test_panels_are_in_the_order_in_which_people_think():
    panels = dict.fromkeys(p.rich_help_panel for p in COMMANDS["train"].params if p.name != "help")
    assert list(panels) == ["Data", "Model", "Training", "Output", "Advanced"]


def test_help_on_a_narrow_terminal_shows_the_names_of_options(monkeypatch):
    done = subprocess.run(
        [sys.executable, "-m", "ptune", "train", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "60", "NO_COLOR": "1"},
        check=True,
    )
    assert "--text-pair-column NAME" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 60
    assert "\x1b" not in done.stdout


# Before training.


@pytest.mark.parametrize(("language", "told"), [("zh", True), ("en", False)])
def test_texts_in_an_unknown_script_are_pointed_out(
    bert_folder, texts, tmp_path, caplog, language, told
):
    """The tokenizer has whole words, as BERT's has pieces of them."""
    model = shutil.copytree(bert_folder, tmp_path / "model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({w for t in texts for w in t.split()})]
    vocabulary = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(model)
    if language == "zh":
        texts = ["我的 包裹 在 哪里", "它 应该 星期一 到", "我 想要 退款", "请 退还 全部 金额"]
    rows = [f'"{text}",{"ab"[i % 2]}' for i, text in enumerate(texts * 3)]
    (file := tmp_path / "mail.csv").write_text("\n".join(["text,label", *rows]), "utf-8")
    words = ["--model", model, "--train-file", file, "--output-dir", tmp_path / "run", "--dry-run"]
    assert call("train", *words, "--no-label-names") == 0
    assert ("does not know 100% of the tokens" in caplog.text) == told


def test_the_summary_shows_columns_labels_lengths_and_examples(printed, flags, tmp_path):
    out = printed(*flags, "--output-dir", tmp_path / "run", "--dry-run").out
    assert "columns 'text', 'label' (not subject)" in out
    assert "2 of 50 rows without a text left out" in out
    assert "38 train, 10 evaluation" in out
    assert "3, one per text: " in out
    assert "rare 1 (3%). Fewer than 5 examples: rare" in out
    assert "0 of 48 are truncated" in out
    assert out.count(" → ") == 3
    assert not (tmp_path / "run").exists()


def test_a_dry_run_shows_empty_rows_that_training_refuses(printed, flags, tmp_path, monkeypatch):
    """It also reads no text with the backbone, which may take minutes."""
    monkeypatch.setattr(trainer, "scale_steps_and_fit_head", None)
    words = [word for word in flags if word != "--skip-empty"]
    shown = printed(*words, "--output-dir", tmp_path / "run", "--dry-run")
    assert "2 of 50 rows without a text left out" in shown.out
    assert "fill them in, or train with --skip-empty" in shown.err
    assert call(*words, "--output-dir", tmp_path / "run") == 2


def test_the_summary_counts_truncated_texts(printed, bert_folder, tmp_path, texts):
    file = write_mail(tmp_path / "mail.csv", texts, copies=2)
    file.write_text(file.read_text().replace("please", "please " * 90))
    words = ["--model", bert_folder, "--train-file", file, "--num-virtual-tokens", 4]
    out = printed("train", *words, "--output-dir", tmp_path / "run", "--dry-run").out
    assert "2 of 16 have more than 64 tokens and are truncated; half have at most " in out


def test_a_dry_run_in_json_is_one_object(printed, flags, tmp_path):
    out = printed(*flags, "--output-dir", tmp_path / "run", "--dry-run", "--json").out
    assert json.loads(out)["examples"] == {"train": 38, "evaluation": 10}
    assert json.loads(out)["repeated"] == 0


def test_the_summary_names_evaluation_texts_that_are_learned(printed, flags, mail, tmp_path):
    out = printed(*flags, "--eval-file", mail, "--output-dir", tmp_path / "run", "--dry-run").out
    assert "48 train, 48 evaluation" in out
    assert "48 evaluation texts are also training texts" in out


@pytest.mark.parametrize(
    "how",
    [
        ["--dry-run"],
        # Transformers warns of checkpoints within one second.
        ["--epochs", "4", "--save-strategy", "epoch"],
    ],
)
def test_nothing_but_ptunes_own_output_appears(flags, tmp_path, how):
    """Each line once: the data are read once."""
    words = [*map(str, flags), "--output-dir", str(tmp_path / "run"), *how]
    done = subprocess.run([sys.executable, "-m", "ptune", *words], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "Left out 2 of 50 examples without a text.",
        "1 label(s) have a single example, such as rare. They are learned and not evaluated.",
    ]


# Files of settings.


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_saved_settings_are_read_again(printed, flags, tmp_path, ending):
    file, words = (
        tmp_path / f"own.{ending}",
        ["--output-dir", tmp_path / "run", "--dry-run", "--json"],
    )
    more = ["--learning-rate", "5e-3", "--weight-decay", "0.5", "--save-config", file]
    first = printed(*flags, *more, *words).out
    assert json.loads(first)["settings"]["learning_rate"] == 0.005
    assert printed("train", "--config", file, *words).out == first
    assert "weight_decay" in file.read_text()


def test_saved_settings_in_a_new_output_folder_are_refused(flags, tmp_path, capsys):
    words = ["--save-config", tmp_path / "run/own.yaml", "--output-dir", tmp_path / "run"]
    assert call(*flags, *words) == 2
    assert "own.yaml is in the output folder, which must be empty" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mail.csv", "mail.json", "mail"])
def test_saved_settings_never_replace_data(flags, tmp_path, capsys, name):
    content = json.dumps([{"text": "one", "label": "a"}])
    (tmp_path / name).write_text(content)
    words = ["--save-config", tmp_path / name, "--output-dir", tmp_path / "run"]
    assert call(*flags, *words) == 2
    assert re.search(r"ends in '.csv'|a file that holds no settings", capsys.readouterr().err)
    assert (tmp_path / name).read_text() == content


def test_what_saved_settings_do_not_hold_is_printed(flags, tmp_path, capsys):
    file = tmp_path / "own.yaml"
    words = ["--save-config", file, "--output-dir", tmp_path / "run", "--dry-run"]
    call(*flags, *words, "--group-column", "label", "--seeds", "2")
    assert f"{file} does not hold --group-column and --seeds" in capsys.readouterr().err
    call(*flags, *words)
    assert "does not hold" not in capsys.readouterr().err


def test_a_dry_run_resumes_nothing(printed, flags, runs, tmp_path):
    for folder in (runs / "one", tmp_path / "run"):
        words = ["--resume", "--dry-run", "--output-dir", folder]
        assert "columns" in printed(*flags, *words).out


def test_yaml_may_write_names_with_hyphens_and_numbers_without_a_point(printed, flags, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("learning-rate: 5e-3\n")
    words = ["--config", file, "--output-dir", tmp_path / "run", "--dry-run", "--json"]
    assert json.loads(printed(*flags, *words).out)["settings"]["learning_rate"] == 0.005


@pytest.mark.parametrize("content", ["- a\n", "a: [\n"])
def test_a_file_that_holds_no_settings_is_refused(flags, tmp_path, content, capsys):
    file = tmp_path / "own.yaml"
    file.write_text(content)
    assert call("train", "--config", file, "--output-dir", tmp_path / "run") == 2
    assert "own.yaml" in capsys.readouterr().err


# After training.


def test_json_is_the_only_output(printed, runs, mail, flags, tmp_path):
    trained = json.loads(printed(*flags, "--output-dir", tmp_path / "run", "--json").out)
    assert trained["eval_examples"] == {"eval": 10}
    words = ["--file", mail, "--skip-empty", "--json"]
    scores = json.loads(printed("evaluate", runs / "one", *words).out)
    assert scores.keys() == {"accuracy", "f1_macro"}
    assert json.loads(printed("info", runs / "one", "--json").out)["labels"] == "a, b, rare"


def test_a_classifier_that_learned_nothing_gets_a_warning():
    metrics = {"eval_examples": {"eval": 100}, "majority": {"accuracy": 0.6}}
    assert verdict({**metrics, "eval": {"accuracy": 0.9}}) is None
    warning = verdict({**metrics, "eval": {"accuracy": 0.62}})
    assert "right for 62 of 100 texts, that label for 60" in warning
    assert "--preset best" in warning
    assert verdict({**metrics, "eval": {"accuracy": 0.7}}) is None  # by chance in 3% of cases
    assert verdict({**metrics, "majority": {}, "eval": {"accuracy": 0.1}}) is None


def test_runs_are_listed(printed, runs, monkeypatch):
    out = printed("list", runs, "--json").out
    rows = json.loads(out)["runs"]
    assert [(r["run"], r["task"], r["labels"]) for r in rows] == [
        ("one", "mail", 3),
        ("two", "mail", 3),
    ]
    monkeypatch.setattr(cli, "console", Console(width=60))
    narrow = printed("list", runs).out
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60
    assert all(f" {row['kB']} " in narrow for row in rows)
    monkeypatch.undo()
    shown = printed("list", runs).out
    assert "one" in shown
    assert "tiny-bert" in shown


def test_the_tasks_and_seeds_of_a_training_are_listed(printed, runs, tmp_path):
    for name in ("alone", "fleet/a", "fleet/b", "alone/few", "checkpoints/checkpoint-5"):
        shutil.copytree(runs / "one", tmp_path / name, dirs_exist_ok=True)
    rows = json.loads(printed("list", tmp_path, "--json").out)["runs"]
    assert [row["run"] for row in rows] == ["alone", "fleet/a", "fleet/b"]


def test_the_score_in_a_list_is_not_a_loss(printed, runs, tmp_path):
    """With several evaluation sets, the loss has the name of its set before it."""
    shutil.copytree(runs / "one", tmp_path / "mnli")
    scores = {"matched_loss": 0.5, "matched_accuracy": 0.75}
    edit_json(tmp_path / "mnli" / "metrics.json", eval=scores)
    (row,) = json.loads(printed("list", tmp_path, "--json").out)["runs"]
    assert row["score"] == "matched_accuracy 0.750"


def test_two_classifiers_are_compared_on_one_file(printed, runs, mail):
    words = ["--file", mail, "--skip-empty"]
    same = json.loads(printed("compare", runs / "one", runs / "two", *words, "--json").out)
    assert same["only_this_right"] == [0, 0]
    assert same["p"] == 1
    assert same["texts"] == 48
    shown = printed("compare", *[runs / "one"] * 2, *words)
    assert "The difference may be chance." in shown.out
    assert "unknown to the classifier" not in shown.err
    mail.write_text(mail.read_text().replace("rare", "other"))
    said = printed("compare", *[runs / "one"] * 2, *words).err
    mail.write_text(mail.read_text().replace("other", "rare"))
    assert "1 of 48 labels are unknown to the classifier: 'other' (1)." in said


def test_a_classifier_that_is_right_more_often_is_better(printed, runs, mail, tmp_path, texts):
    """On a file labelled by one classifier, another one is worse."""
    from ptune import load

    first = load(runs / "one")
    found = [f"{t} {i}" for i, t in enumerate(texts * 8)]
    labels = first.predict(found)
    others = {"a": "b", "b": "rare", "rare": "a"}
    renamed = tmp_path / "other"
    shutil.copytree(runs / "one", renamed)
    info = json.loads((renamed / "ptune.json").read_text())
    info["labels"] = [others[name] for name in info["labels"]]
    (renamed / "ptune.json").write_text(json.dumps(info))
    with (tmp_path / "gold.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("text", "label"), *zip(found, labels, strict=True)])
    words = [runs / "one", renamed, "--file", tmp_path / "gold.csv"]
    result = json.loads(printed("compare", *words, "--json").out)
    assert result["accuracy"] == [1, 0]
    assert result["only_this_right"] == [64, 0]
    assert result["p"] == pytest.approx(2 * 0.5**64)
    assert f"{runs / 'one'} is better." in printed("compare", *words).out.replace("\n", " ")


def test_unknown_labels_are_neither_right_nor_wrong_in_a_comparison(printed, runs, tmp_path, texts):
    from ptune import load

    several = tmp_path / "several"
    shutil.copytree(runs / "one", several)
    edit_json(several / "ptune.json", problem_type="multi_label_classification")
    classifier = load(several)
    predicted = classifier.predict(texts).tolist()
    assert any(map(any, predicted))
    # Where a label is predicted, it is unknown; in one row, another one is wrong.
    cells = [["" if on else "0" for on in row] for row in predicted]
    cells[0][predicted[0].index(0)] = "1"
    with (tmp_path / "gold.csv").open("w", newline="") as f:
        rows = [[text, *row] for text, row in zip(texts, cells, strict=True)]
        csv.writer(f).writerows([("text", *classifier.labels_.names), *rows])
    columns = [word for name in classifier.labels_.names for word in ("--indicator-column", name)]
    words = [several, several, "--file", tmp_path / "gold.csv", *columns, "--json"]
    result = json.loads(printed("compare", *words).out)
    assert result["right"] == [len(texts) - 1] * 2


def test_matplotlib_s_message_about_its_cache_is_not_shown(tmp_path):
    """As in a container whose user has no home folder."""
    (tmp_path / "file").write_text("")
    program = "from ptune.cli.app import _setup; _setup(); import matplotlib"
    own = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "file")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=own)
    assert (done.returncode, done.stderr) == (0, "")
