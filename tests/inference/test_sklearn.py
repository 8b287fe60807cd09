"""A classifier of texts in the hands of scikit-learn."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from ptune import PromptClassifier, PtuneError


@pytest.fixture
def estimator(bert_folder):
    return PromptClassifier(
        str(bert_folder), num_virtual_tokens=2, encoder="NONE", epochs=1, dtype="float32"
    )


@pytest.fixture(scope="module")
def labelled(texts):
    rows = [f"{text} {i}" for i in range(2) for text in texts]
    return rows, ["money" if "money" in r or "parcel" in r else "other" for r in rows]


# scikit-learn's own checks.


class OnNumbers(PromptClassifier):
    """Takes a row of numbers as a text, so that scikit-learn's checks can run.

    They pass arrays of numbers, and skip an estimator whose tags say that it takes only texts.
    """

    folder = None

    def fit(self, X, y, sample_weight=None):
        # A path in the constructor's arguments would need a fixture where tests are collected.
        known = self.model
        self.model = str(OnNumbers.folder)
        try:
            return super().fit(words(X), y, sample_weight)
        finally:
            self.model = known

    def predict(self, X):
        return super().predict(words(X))

    def predict_proba(self, X):
        return super().predict_proba(words(X))

    def score(self, X, y, sample_weight=None):
        return super().score(words(X), y, sample_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.string = False
        tags.no_validation = True  # numbers of features, sparse matrices: texts have none
        tags.classifier_tags.poor_score = True  # one epoch on a random backbone
        return tags


def words(X):
    X = np.asarray(X)
    return [" ".join(f"{v:.3f}" for v in row) for row in X] if X.ndim == 2 else X


EXEMPT = {
    "check_array_api_input": "texts are not arrays of numbers on a device",
    "check_methods_subset_invariance": "batches of other sizes differ by float32 rounding",
    "check_sample_weight_equivalence_on_dense_data": "the head's dropout differs; without it, "
    "test_a_weight_counts_as_so_many_copies_of_a_text",
    "check_estimators_dtypes": "texts have no number format",
    "check_f_contiguous_array_estimator": "texts have no memory layout",
    "check_readonly_memmap_input": "texts are not in a memory map",
    "check_estimator_sparse_array": "texts are not sparse",
    "check_estimator_sparse_matrix": "texts are not sparse",
    "check_positive_only_tag_during_fit": "texts are not positive",
    "check_fit2d_1feature": "texts have no features",
    "check_n_features_in_after_fitting": "texts have no features",
}


@pytest.fixture
def numbers_as_texts(bert_folder, monkeypatch):
    monkeypatch.setattr(OnNumbers, "folder", bert_folder)


@pytest.mark.usefixtures("numbers_as_texts")
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [OnNumbers(num_virtual_tokens=2, encoder="NONE", epochs=1, dtype="float32")]
)
def test_scikit_learns_checks(estimator, check):
    if (name := getattr(check, "func", check).__name__) in EXEMPT:
        pytest.skip(EXEMPT[name])
    check(estimator)


def test_tags_tell_that_it_takes_texts_and_several_labels(estimator):
    tags = get_tags(estimator)
    assert tags.estimator_type == "classifier"
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert tags.classifier_tags.multi_label
    assert tags.target_tags.required
    with pytest.raises(PtuneError, match="requires y to be passed, but the target y is None"):
        estimator.fit(["a text"], None)


# Its tools.


def test_a_pipeline_cleans_texts_first(estimator, labelled):
    rows, y = labelled
    lower = FunctionTransformer(lambda X: [text.lower() for text in X])
    pipeline = make_pipeline(lower, estimator).fit([r.upper() for r in rows], y)
    cleaned = [r.lower() for r in rows]
    alone = clone(estimator).fit(cleaned, y)
    np.testing.assert_array_equal(pipeline.predict_proba(rows), alone.predict_proba(cleaned))
    assert pipeline.score(rows, y) == alone.score(cleaned, y)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_a_pipeline_may_pass_frames(estimator, labelled, container):
    rows, y = labelled
    frame = pd.DataFrame({"text": rows})
    keep = FunctionTransformer(feature_names_out="one-to-one")
    pipeline = make_pipeline(keep, estimator).set_output(transform=container).fit(frame, y)
    assert list(pipeline[-1].feature_names_in_) == ["text"]
    np.testing.assert_array_equal(
        pipeline.predict_proba(frame), clone(estimator).fit(rows, y).predict_proba(rows)
    )


def test_a_grid_search_finds_the_better_setting(estimator, labelled):
    rows, y = labelled
    # A name tells nothing to a backbone that knows no words.
    estimator.set_params(learning_rate=0.05, batch_size=4, label_names=False, loss="labels")
    search = GridSearchCV(estimator, {"epochs": [0.1, 12]}, cv=2).fit(rows, y)
    assert search.best_params_ == {"epochs": 12}
    assert set(search.predict(rows)) <= {"money", "other"}


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_cross_val_predict_answers_every_text_once(estimator, labelled, method):
    rows, y = labelled
    found = cross_val_predict(estimator, pd.Series(rows), y, cv=2, method=method)
    assert len(found) == len(rows)
    assert found.shape[1:] == ((2,) if method == "predict_proba" else ())


def test_cross_val_predict_returns_a_row_for_several_labels(estimator, texts):
    y = pd.DataFrame({"late": [1, 0] * 4, "rude": [0, 1, 1, 1] * 2})
    assert cross_val_predict(estimator, texts, y, cv=2).shape == (8, 2)


def test_probabilities_are_calibrated(estimator, labelled):
    rows, y = labelled
    calibrated = CalibratedClassifierCV(estimator, cv=2).fit(rows, y)
    np.testing.assert_allclose(calibrated.predict_proba(rows).sum(axis=1), 1)
    assert list(calibrated.classes_) == ["money", "other"]


def test_one_versus_rest_trains_a_classifier_for_each_label(estimator, texts):
    y = ["a", "b", "c", "a"] * 2
    several = OneVsRestClassifier(estimator).fit(texts, y)
    assert len(several.estimators_) == 3
    assert several.predict_proba(texts).shape == (8, 3)
    assert set(several.predict(texts)) <= {"a", "b", "c"}


def test_a_clone_of_a_fitted_classifier_trains_alike(estimator, labelled):
    rows, y = labelled
    first = estimator.fit(rows, y)
    again = clone(first)
    assert not hasattr(again, "prompt_model_")
    np.testing.assert_array_equal(again.fit(rows, y).predict_proba(rows), first.predict_proba(rows))


def test_metadata_is_routed_to_fit_and_score(estimator, labelled):
    rows, y = labelled
    weights = [1.0 if label == "money" else 0.0 for label in y]
    with sklearn.config_context(enable_metadata_routing=True):
        weighed = clone(estimator).set_params(epochs=4, learning_rate=0.05)
        weighed.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scores = cross_validate(weighed, rows, y, cv=2, params={"sample_weight": weights})
        # Only texts about money count, in training and in the score.
        assert scores["test_score"].tolist() == [1.0, 1.0]
        pipeline = make_pipeline(
            FunctionTransformer(), clone(estimator).set_fit_request(eval_set=True)
        )
        pipeline.fit(rows, y, eval_set=(rows, y))
    assert [record["epoch"] for record in pipeline[-1].history_] == [1.0]


@pytest.mark.slow
def test_other_processes_predict_with_a_fitted_classifier(estimator, labelled):
    rows, y = labelled
    fitted = estimator.fit(rows, y)
    halves = Parallel(n_jobs=2, backend="loky")(
        delayed(fitted.predict_proba)(half) for half in (rows[:8], rows[8:])
    )
    np.testing.assert_allclose(np.concatenate(halves), fitted.predict_proba(rows), atol=1e-5)


# Tables.


def test_a_table_may_have_more_columns_than_in_training(estimator, labelled, tmp_path):
    rows, y = labelled
    table = pd.DataFrame({"label": y, "text": rows, "id": range(len(rows))})
    fitted = estimator.fit(table[["text"]], table["label"])
    assert fitted.feature_names_in_.tolist() == ["text"]
    expected = fitted.predict_proba(rows)
    np.testing.assert_array_equal(fitted.predict_proba(table), expected)
    assert fitted.score(table, table["label"]) == fitted.score(rows, y)
    fitted.save(tmp_path)
    loaded = PromptClassifier.from_pretrained(tmp_path, dtype="float32")
    assert loaded.feature_names_in_.tolist() == ["text"]
    np.testing.assert_array_equal(loaded.predict_proba(table), expected)
    fitted.fit(rows, y, eval_set=(rows, y))
    assert not hasattr(fitted, "feature_names_in_")
    with pytest.raises(PtuneError, match="found the columns 'label', 'text', 'id'"):
        fitted.predict(table)


def test_pairs_have_the_order_of_the_columns_in_training(estimator, texts):
    table = pd.DataFrame({"first": texts, "second": texts[::-1]})
    fitted = estimator.fit(table, ["a", "b"] * 4)
    pairs = list(zip(texts, texts[::-1], strict=True))
    np.testing.assert_array_equal(
        fitted.predict_proba(table[["second", "first"]]), fitted.predict_proba(pairs)
    )
