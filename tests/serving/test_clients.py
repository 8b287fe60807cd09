"""What clients of other servers send is understood, and answered in the form that they expect."""

import json
from functools import partial

import httpx
import pytest
from huggingface_hub import InferenceClient
from serve import Server, make_task

import ptune

LONG = "please send my money back today " * 20
# Task: what kind `make_task` makes, and whether it was trained on pairs.
TASKS = {"single": (0, False), "pair": (1, True), "unknown": (2, None), "tags": (3, False),
         "stars": (4, False)}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bert_folder):
    served = tmp_path_factory.mktemp("served")
    for name, (seed, pairs) in TASKS.items():
        make_task(served / name, seed, str(bert_folder))
        if pairs is not None:
            (served / name / "metrics.json").write_text(json.dumps({"text_pairs": pairs}))
    return served


@pytest.fixture(scope="module")
def url(folder):
    with Server(folder, "--harmless", "red") as running:
        yield running.url


def post(url, status, task, inputs, **more):
    answer = httpx.post(f"{url}/tasks/{task}/predict", json={"inputs": inputs, **more})
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
def ask(url):
    return partial(post, url, 200)


@pytest.fixture
def refused(url):
    return lambda *asked, **more: post(url, 422, *asked, **more)["error"]


@pytest.fixture
def expected(folder):
    """A text's probabilities by label, from the classifier itself."""
    loaded = {}

    def classify(task, text):
        if task not in loaded:
            loaded[task] = ptune.load(folder / task, dtype="float32")
        return pytest.approx(loaded[task](text).probabilities, abs=1e-5)

    return classify


def scores(row):
    return {found["label"]: found["score"] for found in row}


# The form of the answer.


@pytest.mark.parametrize("task", ["single", "unknown", "tags", "stars"])
def test_one_string_gets_one_list_and_with_parameters_a_list_of_lists(ask, expected, task):
    right = expected(task, "the lamp")
    assert scores(ask(task, "the lamp")) == right
    for parameters in ({}, {"top_k": None}, {"function_to_apply": None}):
        (row,) = ask(task, "the lamp", parameters=parameters)
        assert scores(row) == right
    assert scores(ask(task, "the lamp", parameters=None)) == right


@pytest.mark.parametrize("texts", [["the lamp"], ["the lamp", "a bag"], ["a", "b", "a bag"]])
@pytest.mark.parametrize("more", [{}, {"parameters": {}}])
def test_a_list_for_a_task_of_single_texts_gets_one_list_per_text(ask, expected, texts, more):
    rows = ask("single", texts, **more)
    assert [scores(row) for row in rows] == [expected("single", text) for text in texts]


def test_a_list_of_two_for_a_task_of_pairs_is_one_pair(ask, expected):
    right = expected("pair", ("it rains", "rain falls"))
    assert scores(ask("pair", ["it rains", "rain falls"])) == right
    (row,) = ask("pair", ["it rains", "rain falls"], parameters={})
    assert scores(row) == right


def test_rows_of_pairs_get_one_list_per_pair(ask, expected):
    pairs = [["it rains", "rain falls"], ["yes", "no"]]
    for task in ("pair", "unknown"):
        rows = ask(task, pairs)
        assert [scores(row) for row in rows] == [expected(task, tuple(pair)) for pair in pairs]
        assert len(ask(task, pairs[:1])) == 1


def test_rows_of_one_text_get_one_list_per_row(ask, expected):
    for task in ("single", "unknown"):
        rows = ask(task, [["it rains"], ["yes"]])
        assert [scores(row) for row in rows] == [expected(task, t) for t in ("it rains", "yes")]


def test_a_list_of_two_is_refused_while_the_task_s_kind_is_unknown(refused, ask):
    message = refused("unknown", ["a", "b"])
    assert '[["a"], ["b"]]' in message
    assert '[["a", "b"]]' in message
    assert len(ask("unknown", ["a", "b", "c"])) == 3
    assert len(ask("unknown", ["a"])) == 1


@pytest.mark.parametrize("inputs", ["a", ["a"], ["a", "b", "c"], [["a"]], [["a", "b"], ["a"]]])
def test_single_texts_are_refused_for_a_task_of_pairs(refused, inputs):
    assert "trained on pairs" in refused("pair", inputs)


def test_pairs_are_refused_for_a_task_of_single_texts(refused):
    assert "trained on single texts" in refused("single", [["a", "b"]])


@pytest.mark.parametrize("pairs", [True, False])
def test_a_classifier_that_was_saved_knows_its_kind(bert_folder, texts, tmp_path, pairs):
    X = list(zip(texts, texts, strict=True)) if pairs else texts
    classifier = ptune.PromptClassifier(str(bert_folder), epochs=1, num_virtual_tokens=2)
    classifier.fit(X, ["red", "blue"] * 4).save(tmp_path / "mine")
    bank = ptune.PromptBank(str(bert_folder))
    bank.add("mine", tmp_path / "mine")
    assert bank.task("mine").pairs is pairs
    ptune.load(tmp_path / "mine").save(tmp_path / "again")
    bank.add("again", tmp_path / "again")
    assert bank.task("again").pairs is pairs


# Options.


def test_top_k_keeps_the_highest_scores(ask):
    everything = ask("unknown", "the lamp")
    for k in (1, 2, 100):
        assert ask("unknown", "the lamp", parameters={"top_k": k}) == [everything[:k]]


def test_function_to_apply_decides_what_the_scores_are(ask, folder):
    (logits,) = ptune.load(folder / "unknown", dtype="float32").logits("the lamp")
    exponentials = [2.718281828459045**x for x in logits.tolist()]
    right = {
        "none": logits.tolist(),
        "sigmoid": [e / (1 + e) for e in exponentials],
        "softmax": [e / sum(exponentials) for e in exponentials],
    }
    for function, values in right.items():
        (row,) = ask("unknown", "the lamp", parameters={"function_to_apply": function})
        found = [score["score"] for score in row]
        assert found == pytest.approx(sorted(values, reverse=True), abs=1e-5)
    raw = ask("unknown", "the lamp", raw_scores=True)
    assert [row["score"] for row in raw] == pytest.approx(
        sorted(right["none"], reverse=True), abs=1e-5
    )


def test_contradicting_options_are_refused(refused):
    message = refused("single", "a", raw_scores=True, parameters={"function_to_apply": "softmax"})
    assert "raw_scores" in message
    assert "softmax" in message


def test_texts_are_cut_on_the_side_that_is_asked_for(ask, expected):
    beginning, end = "the lamp blinks red ", " where is my invoice"
    text = beginning + LONG + end
    right = ask("single", text, truncate=True, truncation_direction="right")
    left = ask("single", text, truncate=True, truncation_direction="Left")
    assert scores(right) == expected("single", text)
    assert scores(right) == pytest.approx(scores(ask("single", beginning + LONG)), abs=1e-5)
    assert scores(left) == pytest.approx(
        scores(ask("single", LONG + end, truncation_direction="left")), abs=1e-5
    )
    assert scores(left) != pytest.approx(scores(right), abs=1e-3)
    # A request does not change the side for the next one.
    assert scores(ask("single", text)) == expected("single", text)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"parameters": {"top_k": "1"}}, "parameters.top_k"),
        ({"parameters": {"topk": 1}}, "no field 'parameters.topk'. Use top_k, function_to_apply"),
        ({"parameters": {"function_to_apply": "argmax"}}, "parameters.function_to_apply"),
        ({"truncation_direction": "middle"}, "truncation_direction"),
    ],
)
def test_wrong_options_are_named(refused, more, part):
    assert part in refused("single", "a", **more)


# Hugging Face's client.


def test_inference_client(url, expected, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the tests are offline
    client = InferenceClient(model=f"{url}/tasks/single/predict")
    answer = client.text_classification("the lamp")
    assert {found.label: found.score for found in answer} == expected("single", "the lamp")
    (best,) = client.text_classification("the lamp", top_k=1)
    assert best.score == max(found.score for found in answer)
    raw = client.text_classification("the lamp", function_to_apply="none")
    assert sum(found.score for found in raw) != pytest.approx(1, abs=1e-3)


# OpenAI's moderation API.


def moderate(url, **body):
    return httpx.post(f"{url}/v1/moderations", json=body)


def test_moderations_have_openai_s_form(url, expected):
    answer = moderate(url, model="tags", input="the lamp").json()
    assert answer.keys() == {"id", "model", "results"}
    assert answer["model"] == "tags"
    (result,) = answer["results"]
    assert result["category_scores"] == expected("tags", "the lamp")
    assert result["categories"] == {n: s > 0.5 for n, s in result["category_scores"].items()}
    assert result["category_applied_input_types"] == {n: ["text"] for n in result["categories"]}


def test_a_text_is_flagged_unless_all_its_labels_are_harmless(url):
    texts = ["the lamp", "a bag", "thank you", "it rains", "where is my invoice", "yes", "no"]
    for task in ("single", "tags", "unknown"):
        results = moderate(url, model=task, input=texts).json()["results"]
        assert len(results) == len(texts)
        for result in results:
            chosen = {name for name, is_chosen in result["categories"].items() if is_chosen}
            assert result["flagged"] is bool(chosen - {"red"})
        if task != "tags":
            assert all(sum(result["categories"].values()) == 1 for result in results)


def test_the_parts_of_an_input_are_one_text(url):
    parts = [{"type": "text", "text": "the lamp"}, {"type": "text", "text": "is red"}]
    answer = moderate(url, model="tags", input=parts).json()
    (whole,) = moderate(url, model="tags", input=["the lamp\nis red"]).json()["results"]
    assert answer["results"] == [whole]


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"model": "nobody", "input": "a"}, 404, "There is no task 'nobody'"),
        ({"model": "stars", "input": "a"}, 422, "predicts a number"),
        ({"model": "pair", "input": "a"}, 422, "trained on pairs"),
        ({"model": "tags", "input": ""}, 422, "Text 1 is empty"),
        ({"input": "a"}, 422, "model"),
        ({"model": "tags", "input": [{"type": "image_url", "image_url": {}}]}, 422, "Images"),
    ],
)
def test_refusals_of_moderations_have_openai_s_form(url, body, status, part):
    answer = moderate(url, **body)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert part in answer.json()["error"]["message"]
