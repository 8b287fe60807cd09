"""Texts in, labels and probabilities out, in order; and scikit-learn's verbs."""

import itertools
import random
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build, edit_json, refused
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from subjects import Subject

import ptune
from ptune import PromptClassifier, PromptModel, PtuneError
from ptune.adapters.adapter import Adapter
from ptune.backbones.loading import load_backbone, load_tokenizer
from ptune.inference.text_classifier import warn_of_unseen
from ptune.labels import Labels
from ptune.peft import PromptEncoderConfig


@pytest.fixture(scope="module", params=["single_label", "multi_label", "regression"])
def adapter_folder(request, bert_folder, tmp_path_factory):
    labels = {"single_label": ["no", "maybe", "yes"], "multi_label": ["a", "b", "c"]}.get(
        request.param, ["score"]
    )
    problem = request.param + ("" if request.param == "regression" else "_classification")
    return make_adapter(bert_folder, tmp_path_factory.mktemp("adapter"), labels, problem)


def make_adapter(bert_folder, folder, labels, problem):
    torch.manual_seed(0)
    backbone = load_backbone(str(bert_folder), labels=labels, problem_type=problem, dtype="float32")
    model = PromptModel(backbone, PromptEncoderConfig(num_virtual_tokens=4))
    with torch.no_grad():
        for _, p in model.head_parameters():
            p.mul_(10)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(bert_folder, tmp_path_factory):
    folder = make_adapter(
        bert_folder,
        tmp_path_factory.mktemp("adapter"),
        ["no", "maybe", "yes"],
        "single_label_classification",
    )
    return ptune.load(folder, dtype="float32")


def test_one_text_gives_one_prediction(classifier, texts):
    prediction = classifier(texts[0])
    assert prediction.label in ("no", "maybe", "yes")
    assert prediction.score == max(prediction.probabilities.values())
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
    assert list(prediction.probabilities) == ["no", "maybe", "yes"]


def test_every_problem_type_has_its_kind_of_answer(adapter_folder, texts):
    classifier = ptune.load(adapter_folder, dtype="float32")
    predictions = classifier(texts)
    for p in predictions:
        if classifier.problem_type_ == "regression":
            assert p.label == p.score
        elif classifier.problem_type_ == "multi_label_classification":
            assert p.label == [n for n, v in p.probabilities.items() if v > 0.5]
        else:
            assert p.probabilities[p.label] == p.score
    predicted = classifier.predict(texts)
    assert len(predicted) == len(texts)
    if classifier.problem_type_ == "regression":
        with pytest.raises(PtuneError, match="no probabilities"):
            classifier.predict_proba(texts)
    else:
        assert classifier.predict_proba(texts).shape == (len(texts), 3)


def test_answers_come_in_the_order_of_the_texts_whatever_their_length(classifier, texts):
    shuffled = [" ".join(texts[: 1 + i % 5]) + f" {i}" for i in range(150)]
    together = classifier.predict_proba(shuffled)
    alone = np.concatenate([classifier.predict_proba(t) for t in shuffled[::17]])
    np.testing.assert_allclose(together[::17], alone, atol=1e-5)


def test_batches_hold_many_short_texts_or_few_long_ones(classifier, texts):
    long = " ".join(texts)  # cut to what the backbone allows
    shapes = []
    hook = classifier.prompt_model_.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    list(classifier.logits([long] * 100 + ["short"] * 2000))
    hook.remove()
    budget = 128 * classifier.batch_size
    assert sum(rows for rows, _ in shapes) == 2100
    assert all(rows * width <= budget for rows, width in shapes)
    assert shapes[0] == (budget // 60, 60)
    assert max(rows for rows, _ in shapes) > 5 * shapes[0][0]


def test_nothing_is_printed_about_many_texts_where_there_is_no_terminal(classifier, capsys):
    classifier.predict(["short"] * 600)
    assert capsys.readouterr() == ("", "")


def test_a_pair_is_a_tuple_and_two_texts_are_a_list(classifier, texts):
    assert isinstance(classifier((texts[0], texts[1])), ptune.Prediction)
    assert len(classifier([texts[0], texts[1]])) == 2
    pairs = [(texts[0], texts[1]), [texts[1], texts[0]]]
    assert len(classifier.predict(pairs)) == 2
    one, two = classifier.predict_proba(pairs)
    assert not np.allclose(one, two)


def test_pairs_for_a_classifier_of_single_texts_and_the_reverse(estimator, labelled):
    X, y = labelled
    estimator.fit(X, y)
    with pytest.warns(UserWarning, match="was trained on single texts, and these are pairs"):
        estimator.predict((X[0], X[1]))
    frame = pd.DataFrame({"a": X, "b": X})
    with pytest.raises(PtuneError, match="Expected a table with one column of texts; found"):
        estimator.predict(frame)
    estimator.fit(frame, y)
    with pytest.warns(UserWarning, match="was trained on pairs of texts, and these are single"):
        estimator.predict(X[:2])
    with pytest.raises(PtuneError, match="Expected a table with two columns of texts, for pairs"):
        estimator.predict(frame[["a"]])


def test_an_endless_stream_is_answered_as_it_comes(classifier, texts, monkeypatch):
    monkeypatch.setattr("ptune.inference.text_classifier.WINDOW", 16)
    taken = []
    endless = (taken.append(i) or texts[i % 8] for i in itertools.count())
    answers = list(itertools.islice(classifier.stream(endless), 20))
    assert len(answers) == 20
    assert len(taken) == 32
    assert answers[0].probabilities == pytest.approx(classifier(texts[0]).probabilities)


def test_a_generator_and_a_list_give_the_same_arrays(classifier, texts):
    np.testing.assert_array_equal(
        classifier.predict(t for t in texts), classifier.predict(list(texts))
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["fine", ""], r"Found an empty text in the texts, at position 1 \(counting from 0\)"),
        (["fine", None], r"missing value \(None\).* position 1"),
        (["fine", 3], "'3' of type int.* position 1 .*Expected strings or pairs"),
        (["fine", ("a", "b")], "tuple of 2.* position 1 .*not a mixture"),
        ([("a", "b"), "fine"], "'fine'.* position 1 .*not a mixture"),
        ([("a", "b", "c")], "a tuple of 3"),
        ([1, 2], "Found numbers such as 1 in the texts, at position 0 .*; expected texts"),
    ],
)
def test_a_wrong_text_is_named_with_its_position(classifier, wrong, message):
    with pytest.raises(PtuneError, match=message):
        classifier.predict(wrong)


def test_texts_and_pairs_are_not_mixed_however_many_there_are(classifier, texts, monkeypatch):
    monkeypatch.setattr("ptune.inference.text_classifier.WINDOW", 4)
    with pytest.raises(PtuneError, match=r"a tuple of 2.* position 4 \(counting from 0\)"):
        classifier.predict([*texts[:4], (texts[4], texts[5])])
    pairs = [(text, text) for text in texts[:4]]
    with pytest.raises(PtuneError, match=r"the single text .* position 4 \(counting from 0\)"):
        classifier.predict([*pairs, texts[4]])


def test_nothing_in_nothing_out(classifier):
    assert classifier([]) == []
    assert classifier.predict([]).shape == (0,)
    assert classifier.predict_proba([]).shape == (0, 3)


def test_loading_what_is_no_adapter(tmp_path):
    with pytest.raises(PtuneError, match="There is no folder"):
        ptune.load(tmp_path / "nothing")


def test_a_backbone_that_moved_is_named_and_another_path_can_be_given(bert_folder, tmp_path, texts):
    folder = make_adapter(bert_folder, tmp_path / "a", ["x", "y"], "single_label_classification")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(bert_folder), "/moved/tiny-bert"))
    with pytest.raises(PtuneError, match="no backbone folder /moved/tiny-bert"):
        ptune.load(folder)
    assert ptune.load(folder, model=str(bert_folder), dtype="float32")(texts[0]).label in "xy"


@pytest.fixture(scope="module")
def labelled(texts):
    rows = [f"{t} {i}" for i in range(3) for t in texts]
    return rows, ["money" if "money" in r or "parcel" in r else "other" for r in rows]


@pytest.fixture
def estimator(bert_folder):
    return PromptClassifier(
        model=str(bert_folder),
        num_virtual_tokens=4,
        learning_rate=0.05,
        prompt_learning_rate=0.05,
        epochs=15,
        batch_size=8,
        dtype="float32",
    )


def test_it_fits_and_keeps_the_label_values(estimator, labelled):
    rows, labels = labelled
    fitted = estimator.fit(rows, [7 if label == "money" else 3 for label in labels])
    assert fitted is estimator
    assert list(estimator.classes_) == [3, 7]
    assert set(estimator.predict(rows)) <= {3, 7}
    assert estimator.score(rows, [7 if label == "money" else 3 for label in labels]) > 0.75


def test_it_drops_into_cross_validation(estimator, labelled):
    rows, labels = labelled
    scores = cross_val_score(estimator.set_params(epochs=2), rows, labels, cv=2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


def test_a_clone_has_the_parameters_and_nothing_learned(estimator):
    twin = clone(estimator)
    assert twin.get_params() == estimator.get_params()
    with pytest.raises(Exception, match="not fitted"):
        twin.predict(["text"])


def test_a_fitted_classifier_is_saved_and_loaded(estimator, labelled, tmp_path):
    rows, labels = labelled
    estimator.set_params(epochs=1).fit(rows, labels).save(tmp_path / "saved")
    loaded = ptune.load(tmp_path / "saved", dtype="float32")
    np.testing.assert_array_equal(loaded.predict_proba(rows), estimator.predict_proba(rows))
    assert list(loaded.classes_) == list(estimator.classes_)


def test_wrong_numbers_of_labels_are_refused(estimator, texts):
    with pytest.raises(PtuneError, match="8 texts and 3 labels"):
        estimator.fit(texts, ["a", "b", "a"])
    with pytest.raises(PtuneError, match="Every example has the label 'a'"):
        estimator.fit(texts, ["a"] * 8)


def test_a_decoder_classifies_pairs_and_long_texts(tmp_path, tokenizer, texts):
    build("gpt2").transformer.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    folder = make_adapter(
        tmp_path / "gpt2", tmp_path / "a", ["x", "y"], "single_label_classification"
    )
    classifier = ptune.load(folder, dtype="float32")
    together = classifier.predict_proba([texts[0], " ".join(texts * 5)])
    np.testing.assert_allclose(together[:1], classifier.predict_proba(texts[0]), atol=1e-5)


def test_label_values_and_their_type_survive_saving_and_loading(estimator, labelled, tmp_path):
    rows, names = labelled
    y = np.array([7 if name == "money" else 3 for name in names], dtype=np.int16)
    estimator.set_params(epochs=2).fit(rows, y).save_pretrained(tmp_path / "saved")
    loaded = PromptClassifier.from_pretrained(tmp_path / "saved", dtype="float32")
    predicted = loaded.predict(rows)
    assert predicted.dtype == np.int16
    np.testing.assert_array_equal(predicted, estimator.predict(rows))
    assert loaded(rows[0]).label in (3, 7)
    assert loaded.score(rows, y) == pytest.approx(np.mean(predicted == y))
    assert loaded.evaluate(rows, y)["accuracy"] == pytest.approx(np.mean(predicted == y))


def test_labels_that_training_never_saw_are_reported_and_count_as_errors(classifier, texts):
    y = ["green", *classifier.predict(texts)[1:]]
    with pytest.warns(UserWarning, match=r"1 of 8 labels are unknown to the classifier: 'green'"):
        scores = classifier.evaluate(texts, y)
    assert scores["accuracy"] == 7 / 8
    with pytest.warns(UserWarning, match=r"1 of 8 labels are unknown to the classifier: 'green'"):
        assert classifier.score(texts, y) == 7 / 8


def test_unseen_labels_are_counted_among_all_labels_of_the_texts():
    labels = Labels(("red", "blue"), "multi_label_classification")
    found = labels.targets([["red", "green"], ["blue", "green"], []])
    with pytest.warns(UserWarning, match="2 of 4 labels are unknown to the classifier: 'green'"):
        warn_of_unseen(*found)


def test_unknown_cells_and_weights_train(estimator, texts):
    y = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, 1.0], [1.0, np.nan]] * 2)
    estimator.set_params(epochs=1).fit(texts, y, sample_weight=range(1, 9))
    assert np.isfinite(estimator.predict_proba(texts)).all()
    assert 0 <= estimator.score(texts, y) <= 1


def test_equal_weights_change_nothing_and_a_weight_of_zero_leaves_out(estimator, texts):
    y = ["a", "b"] * 4
    estimator.set_params(epochs=2)
    plain = estimator.fit(texts, y).predict_proba(texts)
    equal = estimator.fit(texts, y, sample_weight=[2.0] * 8).predict_proba(texts)
    np.testing.assert_allclose(equal, plain, atol=1e-4)
    only_a = estimator.fit(texts, y, class_weight={"a": 1.0, "b": 0.0}).predict_proba(texts)
    assert only_a[:, 0].mean() > plain[:, 0].mean()


def test_a_weight_counts_as_so_many_copies_of_a_text(bert_folder, texts, tmp_path):
    """In a step on all texts, without dropout.

    Adam's first step is as large for a gradient that is rounding as for any other.
    """
    folder = shutil.copytree(bert_folder, tmp_path / "bert")
    edit_json(folder / "config.json", hidden_dropout_prob=0.0)
    y, times = np.array(["a", "b"] * 4), [0, 1, 2, 3, 1, 2, 1, 3]
    how = {"learning_rate": 0.05, "prompt_learning_rate": 0.05, "head": "linear", "loss": "labels"}
    own = PromptClassifier(str(folder), epochs=1, batch_size=64, dtype="float32", **how)
    found = own.fit(texts, y, times, optim="sgd").predict_proba(texts)
    copies = np.repeat(texts, times).tolist(), np.repeat(y, times)
    expected = own.fit(*copies, optim="sgd").predict_proba(texts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(own.fit(texts, y, optim="sgd").predict_proba(texts) - found).max() > 0.01


def test_fit_evaluates_and_takes_training_arguments(estimator, texts):
    y = ["a", "b"] * 4
    estimator.set_params(epochs=2)
    estimator.fit(texts, y, eval_set=(texts, y), weight_decay=0.5, device="cpu", verbose=False)
    assert [record["epoch"] for record in estimator.history_] == [1.0, 2.0]
    assert {"accuracy", "loss"} <= estimator.history_[0].keys()
    with pytest.raises(PtuneError, match=r"no argument 'weight_decy'.*did you mean 'weight_decay'"):
        estimator.fit(texts, y, weight_decy=0.5)


def test_an_evaluation_set_may_be_in_a_list_as_for_xgboost(estimator, texts):
    y = ["a", "b"] * 4
    estimator.set_params(epochs=1).fit(texts, y, eval_set=[(texts, y)])
    assert "accuracy" in estimator.history_[0]
    for wrong in (texts, [(texts, y)] * 2, [(texts,)]):
        with refused("eval_set must be texts and their labels: eval_set=(X_test, y_test)."):
            estimator.fit(texts, y, eval_set=wrong)
    pairs = list(zip(texts, texts, strict=True))
    with refused("Found a tuple of 2 (…) in the texts of eval_set, at position 0, 1, …"):
        estimator.fit(texts, y, eval_set=(pairs, y))
    with refused("Found the single text … in the pairs of texts, at position 0, 1, …"):
        estimator.fit(pairs, y, eval_set=(texts, y))


WEIGHTS = "sample_weight must be 8 numbers of at least 0, one for each text, and not all of them …"


@pytest.mark.parametrize(
    "wrong",
    [[1.0], ["a"] * 8, [1.0] * 7 + [np.inf], [1.0] * 7 + [np.nan], [-1.0] * 8, [0] * 8, iter("ab")],
)
def test_weights_that_are_no_weights_are_refused(estimator, classifier, texts, wrong):
    y = ["no", "yes"] * 4
    with refused(WEIGHTS):
        estimator.fit(texts, y, sample_weight=wrong)
    with refused(WEIGHTS):
        classifier.score(texts, y, sample_weight=wrong)


@pytest.mark.parametrize("weights", [{"a": -1, "b": 1}, {"a": np.nan, "b": 1}, {"a": 0, "b": 0}])
def test_weights_of_classes_that_are_no_weights_are_refused(estimator, texts, weights):
    with pytest.raises(PtuneError, match="class_weight"):
        estimator.fit(texts, ["a", "b"] * 4, class_weight=weights)


def test_weights_of_classes_where_labels_are_unknown_are_refused(estimator, texts):
    y = np.array([[0, 1], [1, np.nan]] * 4)
    with refused("It is unknown whether some texts have some labels (NaN), so class_weight …"):
        estimator.fit(texts, y, class_weight="balanced")


def test_only_the_ratio_of_weights_counts(estimator, texts):
    y, weights = ["a", "b"] * 4, np.arange(1.0, 9.0)
    of_tensor = torch.tensor(weights, requires_grad=True)
    expected = estimator.set_params(epochs=1).fit(texts, y, weights).predict_proba(texts)
    for scaled in (weights * 2.0**1020, of_tensor):
        found = estimator.fit(texts, y, sample_weight=scaled).predict_proba(texts)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_no_texts_have_no_answers_and_no_score(adapter_folder):
    classifier = ptune.load(adapter_folder, dtype="float32")
    assert len(classifier.predict([])) == 0
    assert classifier([]) == []
    for measure in (classifier.score, classifier.evaluate):
        with refused("There are no texts."):
            measure([], [])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("pearson", "The metric pearson is not for single_label_classification. Use one of …"),
        (["f1"], "The metric f1 is not for …classification with more than two labels. Use …"),
        (["recall"], "There is no metric 'recall'; …"),
        (3, "metrics is 3; there are: accuracy, …"),
    ],
)
def test_a_metric_for_another_kind_of_answer_is_refused(classifier, texts, names, message):
    with refused(message):
        classifier.evaluate(texts, ["no", "yes"] * 4, names)


def test_metrics_by_name_fit_the_kind_of_answer(adapter_folder, texts):
    classifier = ptune.load(adapter_folder, dtype="float32")
    y = classifier.predict(texts)
    assert set(classifier.evaluate(texts, y)) == set(classifier.labels_.metrics)
    wrong = "accuracy" if classifier.problem_type_ == "regression" else "spearman"
    with refused(f"The metric {wrong} is not for {classifier.problem_type_}. Use one of …"):
        classifier.evaluate(texts, y, [wrong])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (
            lambda c, _: c.predict(["a"], min_confidence="0.5"),
            "min_confidence is '0.5'; expected …",
        ),
        (lambda c, _: c.predict_set(["a"], coverage=None), "coverage is None; expected a number …"),
        (lambda c, _: c.predict(str), "Expected a text, a pair of texts or a collection …"),
        (lambda c, _: c.save(""), "Expected the name of a folder to write to; found ''."),
        (lambda c, _: c.save(None), "Expected the name of a folder to write to; found None."),
        (lambda c, _: c.rename_label("no", 5), "The new label is 5; expected a string."),
        (lambda c, _: c.rename_label(5, "no"), "There is no label 5; there are: no, maybe, yes."),
        (lambda _, f: ptune.load(f, dtype="f32"), "dtype is 'f32'; expected one of auto, float32…"),
        (lambda _, f: ptune.load(f, devise="cpu"), "load has no argument 'devise'; did you mean …"),
        (lambda _, f: ptune.load(f, batch_size=0).predict(["a"]), "batch_size is 0; expected …"),
        (
            lambda _, f: ptune.load(f, batch_size="8").predict(["a"]),
            "batch_size is '8'; expected …",
        ),
    ],
)
def test_a_wrong_argument_of_a_trained_classifier_is_named(
    bert_folder, tmp_path, monkeypatch, use, message
):
    monkeypatch.chdir(tmp_path)
    folder = make_adapter(bert_folder, tmp_path / "a", ["no", "maybe", "yes"], None)
    before = sorted(tmp_path.iterdir())
    with refused(message):
        use(ptune.load(folder, dtype="float32"), folder)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("wrong", ["ab", {"a", "b"}, ["a", "a"], ["a", None], [1, 2]])
def test_labels_to_ask_for_are_different_strings(bert_folder, wrong):
    with pytest.raises(PtuneError, match="labels"):
        PromptClassifier.zero_shot(wrong, model=str(bert_folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 3}, "…Write PromptClassifier(epochs=3) or set_params(epochs=…)."),
        ({"num_train_epochs": 3}, "…Write PromptClassifier(epochs=3) or set_params(epochs=…)."),
        ({"learning_rate": 0.1}, "learning_rate is a setting of the classifier, and not of fit.…"),
        (
            {"validation_data": ()},
            "fit has no argument 'validation_data'…: sample_weight, eval_set…",
        ),
        ({"device": "gpu"}, "There is no device 'gpu' here (…). Leave it out for 'cpu', or …"),
        ({"device": "cuda:77"}, "There is no device 'cuda:77' here…"),
        ({"weight_decay": "a"}, "weight_decay is 'a'; expected a number."),
        ({"max_steps": None}, "max_steps is None; expected a number."),
    ],
)
def test_wrong_arguments_of_fit_are_refused_before_training(estimator, texts, arguments, message):
    with refused(message):
        estimator.fit(texts, ["a", "b"] * 4, **arguments)
    assert not hasattr(estimator, "prompt_model_")


def test_a_device_that_is_not_here_is_refused(tmp_path, bert_folder):
    for load in (ptune.load, ptune.PromptBank.from_folder):
        with refused("There is no device 'cuda:77' here…"):
            load(tmp_path, device="cuda:77")
    with refused("There is no device 'gpu' here…"):
        PromptClassifier.zero_shot(["a", "b"], model=str(bert_folder), device="gpu")


def test_numbers_of_numpy_and_paths_are_settings(bert_folder, texts):
    grid = {"num_virtual_tokens": np.arange(2, 3)[0], "epochs": np.float32(1), "seed": np.int8(1)}
    own = PromptClassifier(Path(bert_folder), dtype="float32", label_names=np.bool_(False), **grid)
    plain = PromptClassifier(
        str(bert_folder), dtype="float32", label_names=False, num_virtual_tokens=2, epochs=1, seed=1
    )
    y = ["a", "b"] * 4
    np.testing.assert_array_equal(
        own.fit(texts, y).predict_proba(texts), plain.fit(texts, y).predict_proba(texts)
    )


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_training_does_not_depend_on_torch_s_modes_of_the_caller(estimator, texts):
    y = ["a", "b"] * 4
    expected = estimator.set_params(epochs=1).fit(texts, y).predict_proba(texts)
    modes = (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16))
    for mode in (*modes, torch.device("meta"), default_dtype(torch.bfloat16)):
        with mode:
            estimator.fit(texts, y)
        np.testing.assert_array_equal(estimator.predict_proba(texts), expected)


def test_training_leaves_the_caller_its_random_numbers(estimator, texts):
    def drawn(train):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        train()
        return random.random(), np.random.rand(), torch.rand(1).item()

    y = ["a", "b"] * 4
    expected = drawn(lambda: None)
    assert drawn(lambda: estimator.set_params(epochs=1).fit(texts, y)) == expected


def test_answers_are_those_of_a_model_in_evaluation_mode(classifier, texts):
    expected = classifier.predict_proba(texts)
    classifier.prompt_model_.train()
    np.testing.assert_array_equal(classifier.predict_proba(texts), expected)


def test_texts_and_labels_that_changed_places_are_reported(estimator, texts):
    with pytest.warns(UserWarning, match=r"8 different labels, and only 2 .* changed places"):
        estimator.set_params(epochs=1).fit(["money", "parcel"] * 4, texts)


def test_a_set_of_texts_has_no_order(estimator, classifier, texts):
    for call in (classifier.predict, lambda X: estimator.fit(X, ["a", "b"] * 4)):
        with refused("Expected …; found a set, which has no order (pass a list)."):
            call(set(texts))


def test_a_classifier_without_training_says_so(estimator):
    for change in (
        lambda: estimator.rename_label("a", "b"),
        lambda: estimator.merge_labels(["a", "b"], "c"),
        lambda: estimator.drop_label("a"),
    ):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            change()


def test_a_refused_fit_leaves_the_classifier_as_it_was(bert_folder, texts):
    table = pd.DataFrame({"number": range(len(texts)), "mail": texts})
    how = {"epochs": 1, "num_virtual_tokens": 2, "dtype": "float32"}
    classifier = PromptClassifier(str(bert_folder), **how)
    classifier.fit(table[["mail"]], ["a", "b"] * (len(texts) // 2))
    wanted = list(classifier.logits(table))
    for wrong in (table[["mail"]], texts):
        with pytest.raises(PtuneError):
            classifier.fit(wrong, [None] * len(texts))
        np.testing.assert_array_equal(list(classifier.logits(table)), wanted)


@pytest.mark.parametrize(("name", "revision"), [(None, "abc"), ("somebody/mirror", None)])
def test_a_revision_is_that_of_the_recorded_backbone_only(
    folder_of, tmp_path, monkeypatch, name, revision
):
    source = folder_of(Subject())
    adapter = Adapter.read(source / "adapter")
    config = replace(adapter.config, base_model_name_or_path="somebody/model", revision="abc")
    replace(adapter, config=config).save(tmp_path)
    asked = []

    def loads(load):
        def here(name, **how):
            asked.append((name, how["revision"]))
            return load(str(source / "backbone"), **{**how, "revision": None})

        return here

    for load in (load_backbone, load_tokenizer):
        monkeypatch.setattr(f"ptune.inference.classifier.{load.__name__}", loads(load))
    ptune.load(tmp_path, model=name)
    assert asked == [(name or "somebody/model", revision)] * 2


def test_a_model_in_place_of_its_name_is_refused():
    with pytest.raises(PtuneError, match=r"use PromptModel\.from_pretrained"):
        ptune.load("runs/mail", model=build("bert"))
