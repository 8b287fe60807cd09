"""`ptune serve`: a real server process on a free port of this machine."""

import asyncio
import http.client
import importlib
import json
import re
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from conftest import call
from hostile import generated, send_wrong
from serve import ADMIN, Server, Stage, make_task, measure_load, measure_stop

import ptune
from ptune import PromptBank, PtuneError
from ptune.serving.access import task_folder
from ptune.serving.app import build_app
from ptune.serving.batching import Batcher, Job, TooLong
from ptune.serving.metrics import Metrics
from ptune.serving.middleware import RequestLog
from ptune.serving.process import load_bank
from ptune.serving.settings import ServeSettings

AS_ADMIN = {"Authorization": f"Bearer {ADMIN}"}
LONG = "the parcel never came and nobody answers the phone " * 20


@pytest.fixture(scope="module")
def stage(tmp_path_factory, bert_folder):
    """Five tasks of all three problem types, two tasks that change, and the right answers."""
    return Stage(tmp_path_factory.mktemp("stage"), str(bert_folder), tasks=5, texts=9)


@pytest.fixture(scope="module")
def server(stage):
    with Server(stage.served) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(stage):
    """A server with a token and low limits."""
    limits = ["--queue", 3, "--max-texts", 2, "--batch-size", 1, "--max-body", 5000]
    with Server(stage.served, "--token", "open-sesame", *limits) as running:
        yield running


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as c:
        yield c


def scores(answer):
    return {row["label"]: row["score"] for row in answer}


def close(answer, expected):
    return scores(answer) == pytest.approx(expected, abs=1e-5)


# Answers.


def test_texts_and_pairs_get_the_classifier_s_answers(client, stage):
    pair, text = stage.texts[0], stage.texts[1]
    for task in ("task0", "task1", "task3", "task4"):
        right = stage.answers[task][0]
        url = f"/tasks/{task}/predict"
        assert close(client.post(url, json={"inputs": text}).json(), right[1])
        (answer,) = client.post(url, json={"inputs": [pair]}).json()
        assert close(answer, right[0])
        rows = [[text], pair, [text]]
        found = client.post(url, json={"inputs": rows}).json()
        assert len(found) == 3
        assert all(map(close, found, [right[1], right[0], right[1]]))


def test_the_highest_score_comes_first(client, stage):
    answer = client.post("/tasks/task2/predict", json={"inputs": stage.texts[1]}).json()
    assert [row["score"] for row in answer] == sorted(scores(answer).values(), reverse=True)
    assert len(answer) == 4


def test_raw_scores_are_the_logits(client, stage):
    classifier = ptune.load(stage.served / "task2", dtype="float32")
    (logits,) = classifier.logits(stage.texts[1])
    answer = client.post(
        "/tasks/task2/predict", json={"inputs": stage.texts[1], "raw_scores": True}
    ).json()
    assert close(answer, dict(zip(classifier.labels, logits.tolist(), strict=True)))


def test_several_tasks_answer_for_each_text_in_one_request(client, stage):
    names = ["task2", "reader0", "task0", "reader1"]
    for i in range(2):
        folder = stage.served / f"reader{i}"
        make_task(folder, i, stage.model, depth="reader")
        assert client.put(f"/tasks/reader{i}", headers=AS_ADMIN).status_code == 201
    own = {name: ptune.load(stage.served / name, dtype="float32") for name in names}
    (one, *more) = [text for text in stage.texts if isinstance(text, str)][:3]
    found = client.post("/predict", json={"inputs": one, "tasks": names}).json()
    assert list(found) == names
    assert all(close(found[name], own[name](one).probabilities) for name in names)
    found = client.post("/predict", json={"inputs": [[t] for t in more], "tasks": names}).json()
    assert len(found) == len(more)
    for text, by_task in zip(more, found, strict=True):
        assert all(close(by_task[name], own[name](text).probabilities) for name in names)
    found = client.post("/predict", json={"inputs": one, "tasks": ["*"]}).json()
    assert list(found) == sorted(task["name"] for task in client.get("/tasks").json())
    for i in range(2):
        assert client.delete(f"/tasks/reader{i}", headers=AS_ADMIN).status_code == 204


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"tasks": ["nothing"]}, 404, "There is no task 'nothing'. GET /tasks lists all tasks."),
        (
            {"tasks": ["*", "nothing"]},
            404,
            "There is no task 'nothing'. GET /tasks lists all tasks.",
        ),
        (
            {"tasks": []},
            422,
            'tasks must be a list of names of tasks, or ["*"] for all of them.',
        ),
        (
            {},
            422,
            'The body lacks tasks: tasks must be a list of names of tasks, or ["*"] for all of '
            "them.",
        ),
        (
            {"tasks": ["task0", "task1"], "inputs": [["a"]] * 2},
            413,
            "The request asks 2 tasks about 2 texts; at most 3 answers are allowed, and these are "
            "4. Send several requests.",
        ),
    ],
)
def test_a_wrong_request_for_several_tasks_is_refused(guarded, body, status, error):
    headers = {"Authorization": "Bearer open-sesame"}
    answer = httpx.post(f"{guarded.url}/predict", json={"inputs": "a", **body}, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (status, error)


def test_a_long_text_is_cut_or_with_truncate_false_refused(client, stage):
    url = "/tasks/task0/predict"
    classifier = ptune.load(stage.served / "task0", dtype="float32")
    cut = client.post(url, json={"inputs": LONG, "truncate": True})
    assert close(cut.json(), classifier(LONG).probabilities)
    whole = client.post(url, json={"inputs": LONG, "truncate": False})
    assert whole.status_code == 413
    assert "tokens longer than the task reads" in whole.json()["error"]
    assert client.post(url, json={"inputs": "short", "truncate": False}).status_code == 200


@pytest.mark.parametrize("pairs", [True, False])
def test_a_task_of_pairs_refuses_single_texts_and_vice_versa(client, stage, pairs):
    name = f"pairs{pairs}"
    shutil.copytree(stage.served / "task1", stage.served / name)
    (stage.served / name / "metrics.json").write_text(json.dumps({"text_pairs": pairs}))
    assert client.put(f"/tasks/{name}", headers=AS_ADMIN).json()["pairs"] is pairs
    inputs = {True: [["a", "b"]], False: "a"}
    right, wrong = (
        client.post(f"/tasks/{name}/predict", json={"inputs": inputs[kind]})
        for kind in (pairs, not pairs)
    )
    assert (right.status_code, wrong.status_code) == (200, 422)
    assert "trained on" in wrong.json()["error"]
    assert client.delete(f"/tasks/{name}", headers=AS_ADMIN).status_code == 204


def test_tasks_of_pairs_and_of_single_texts_are_asked_in_two_requests(client, stage):
    for name, pairs in (("one", False), ("two", True)):
        shutil.copytree(stage.served / "task1", stage.served / name)
        (stage.served / name / "metrics.json").write_text(json.dumps({"text_pairs": pairs}))
        client.put(f"/tasks/{name}", headers=AS_ADMIN)
    for inputs in ("a", [["a", "b"]]):
        found = client.post("/predict", json={"inputs": inputs, "tasks": ["one", "two"]})
        assert found.status_code == 422
        assert "Name tasks of one kind" in found.json()["error"]
    for name in ("one", "two"):
        client.delete(f"/tasks/{name}", headers=AS_ADMIN)


def test_tasks_are_listed(client):
    found = client.get("/tasks").json()
    assert [t["name"] for t in found] == [
        *(f"moving{i}" for i in (0, 1)),
        *map("task{}".format, range(5)),
    ]
    assert found[2] == client.get("/tasks/task0").json()
    assert found[2]["labels"] == ["red", "green"]
    assert {t["problem_type"] for t in found} == {
        "single_label_classification",
        "multi_label_classification",
        "regression",
    }
    assert client.get("/tasks/none").status_code == 404


# Adding and removing tasks.


def test_an_admin_adds_replaces_and_removes_tasks(client, stage):
    shutil.copytree(stage.served / "task1", stage.served / "later")
    url = "/tasks/later"
    ask = {"inputs": stage.texts[1]}
    assert client.post(f"{url}/predict", json=ask).status_code == 404
    assert client.put(url, headers=AS_ADMIN).status_code == 201
    assert close(client.post(f"{url}/predict", json=ask).json(), stage.answers["task1"][0][1])

    shutil.rmtree(stage.served / "later")
    shutil.copytree(stage.served / "task2", stage.served / "later")
    replaced = client.put(url, headers=AS_ADMIN)
    assert (replaced.status_code, replaced.json()["labels"][3]) == (200, "grey")
    assert close(client.post(f"{url}/predict", json=ask).json(), stage.answers["task2"][0][1])

    assert client.delete(url, headers=AS_ADMIN).status_code == 204
    assert client.post(f"{url}/predict", json=ask).status_code == 404
    assert client.delete(url, headers=AS_ADMIN).status_code == 404
    assert (stage.served / "later" / "adapter_config.json").is_file()


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_only_an_admin_adds_or_removes_tasks(client, headers):
    for ask in (client.put, client.delete):
        answer = ask("/tasks/task0", headers=headers)
        assert (answer.status_code, answer.json()["error_type"]) == (401, "unauthorized")
    assert client.get("/tasks/task0").status_code == 200


def test_a_damaged_adapter_is_refused_and_the_old_one_stays(client, stage):
    url = "/tasks/frail"
    shutil.copytree(stage.served / "task3", stage.served / "frail")
    assert client.put(url, headers=AS_ADMIN).status_code == 201
    weights = stage.served / "frail" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    answer = client.put(url, headers=AS_ADMIN)
    assert answer.status_code == 422
    assert "damaged" in answer.json()["error"]
    still = client.post(f"{url}/predict", json={"inputs": stage.texts[1]}).json()
    assert close(still, stage.answers["task3"][0][1])
    assert client.delete(url, headers=AS_ADMIN).status_code == 204


@pytest.mark.parametrize(
    "task", ["..", ".", ".hidden", "-x", "a/b", "a\\b", "a\0b", "a\n", "", "ä"]
)
def test_dangerous_task_names_are_refused(stage, task):
    with pytest.raises(PtuneError, match="name"):
        task_folder(stage.served, task)


def test_files_outside_the_folder_are_not_served(stage, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(stage.served / "task0", served / "inside")
    (served / "around").symlink_to("inside")
    (served / "out").symlink_to(stage.served / "task1")
    shutil.copytree(stage.served / "task2", served / "half")
    (served / "half" / "adapter_config.json").unlink()
    (served / "half" / "adapter_config.json").symlink_to(
        stage.served / "task2" / "adapter_config.json"
    )
    shutil.copytree(stage.served / "task3", served / "two words")
    bank = load_bank(ServeSettings(served))
    assert sorted(bank) == ["around", "inside"]
    assert bank.refused.keys() == {"out", "half", "two words"}
    assert "outside the served folder" in bank.refused["out"]
    for task in ("inside", "around"):
        (served / task).rename(served / f".{task}")
    with pytest.raises(PtuneError, match=r"No task in .*served can be served\. .*outside"):
        load_bank(ServeSettings(served))
    assert not len(load_bank(ServeSettings(served, admin_token="x")))  # which can add some
    assert "outside the adapter's folder" in bank.refused["half"]


# Who may use the server.


def test_a_server_with_a_token_refuses_clients_without_it(guarded):
    with httpx.Client(base_url=guarded.url) as c:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "open-sesame"}):
            for path in ("/tasks", "/tasks/task0", "/metrics"):
                answer = c.get(path, headers=headers)
                assert (answer.status_code, answer.json()["error_type"]) == (401, "unauthorized")
                assert answer.headers["www-authenticate"] == "Bearer"
            answer = c.post("/tasks/task0/predict", json={"inputs": "a"}, headers=headers)
            assert answer.status_code == 401
        for path in ("/health", "/ready", "/", "/docs", "/openapi.json"):
            assert c.get(path).status_code == 200
        for token in ("open-sesame", ADMIN):
            known = {"Authorization": f"Bearer {token}"}
            assert c.get("/tasks", headers=known).status_code == 200
        known = {"Authorization": "Bearer open-sesame"}
        assert c.put("/tasks/task0", headers=known).status_code == 401


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--host", "0.0.0.0"], ["0.0.0.0", "PTUNE_TOKEN"]),
        (["--host", "::"], ["token"]),
        (["--token", "two words"], ["The token", "ASCII"]),
        (["--queue", "1"], ["--queue", "--max-texts"]),
        (["--batch-size", "0"], ["batch_size is 0"]),
        (["--timeout", "0"], ["timeout is 0"]),
        (["--port", "70000"], ["port is 70000"]),
        (["--host", "a..b", "--token", "x"], ["Cannot listen on a..b", "--host"]),
        (["--host", "192.0.2.1", "--token", "x"], ["Cannot listen on 192.0.2.1", "--host"]),
        ([], ["no folder", "nowhere"]),
    ],
)
def test_wrong_settings_are_refused(capsys, words, parts):
    assert call("serve", "nowhere", *(words or ["--port", "0"])) == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: ")
    assert not [part for part in parts if part not in message]


def test_a_port_in_use_is_refused(capsys, server):
    assert call("serve", "nowhere", "--port", server.port) == 2
    assert f"port {server.port}" in capsys.readouterr().err


def test_the_message_says_how_to_install_the_server(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "ptune.serving.process")
    with pytest.raises(PtuneError, match=r"uvicorn is not .*pip install 'ptune\[serve\]'"):
        importlib.import_module("ptune.serving.process")


# Limits.


def test_a_full_queue_refuses_requests_and_answers_those_it_accepted(guarded, stage):
    headers = {"Authorization": "Bearer open-sesame"}

    def ask(_):
        with httpx.Client(base_url=guarded.url, headers=headers, timeout=60) as c:
            return c.post("/tasks/task0/predict", json={"inputs": [stage.texts[0]] * 2})

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(96)))
    statuses = {a.status_code for a in answers}
    assert statuses == {200, 429}
    for answer in answers:
        if answer.status_code == 200:
            assert close(answer.json()[1], stage.answers["task0"][0][0])
        else:
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error_type"] == "overloaded"


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"inputs": [["a"]] * 3}, 413, "3 texts; at most 2"),
        ({"inputs": "a" * 5001}, 413, "5,000 bytes"),
        ({"inputs": [["a", " "]]}, 422, "Text 1 is empty"),
        ({"inputs": ["a", "b"]}, 422, "two texts or one pair"),
        ({"inputs": [["a", "b", "c"]]}, 422, "inputs must be"),
        ({"inputs": "a", "parameter": {}}, 422, "no field 'parameter'"),
        ({"inputs": "a", "tasks": ["task0"]}, 422, "no field 'tasks'"),
        ({"text": "a"}, 422, "There is no field 'text'. Use inputs, "),
        ({}, 422, "The body lacks inputs: inputs must be a text, a list of texts, "),
        ([], 422, "inputs"),
    ],
)
def test_wrong_requests_are_refused_with_a_message(guarded, body, status, part):
    headers = {"Authorization": "Bearer open-sesame"}
    answer = httpx.post(f"{guarded.url}/tasks/task0/predict", json=body, headers=headers)
    assert answer.status_code == status
    assert part in answer.json()["error"]


def test_a_text_with_too_many_characters_is_refused(client):
    answer = client.post("/tasks/task0/predict", json={"inputs": "a" * 20_001})
    assert answer.status_code == 413
    assert "20,001 characters" in answer.json()["error"]


@pytest.mark.parametrize("where", ["/tasks/task0/predict", "/nowhere"])
def test_a_client_that_wants_to_close_reads_why_its_large_body_is_refused(server, where):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=20)
    headers = {"Content-Type": "application/json", "Connection": "close"}
    connection.request("POST", where, b" " * 20_000_000, headers)
    answer = connection.getresponse()
    assert answer.status == (404 if where == "/nowhere" else 413)
    assert "error" in json.loads(answer.read())


@pytest.mark.parametrize(
    ("content", "headers", "status", "part"),
    [
        (b'{"inputs": "caf\xe9"}', {}, 400, "The body is not UTF-8"),
        (json.dumps({"inputs": "a"}).encode("utf-16"), {}, 400, "The body is not UTF-8"),
        (b"{'inputs': 'a'}", {}, 400, "Invalid JSON"),
        (b"\x1f\x8b", {"Content-Encoding": "gzip"}, 415, "has the Content-Encoding 'gzip'"),
        (b'\xef\xbb\xbf{"inputs": "a"}', {}, 400, "begins with a byte-order mark"),
    ],
)
def test_the_encoding_of_a_body_is_named_if_it_is_wrong(client, content, headers, status, part):
    headers = {"Content-Type": "application/json", **headers}
    answer = client.post("/tasks/task0/predict", content=content, headers=headers)
    assert answer.status_code == status
    assert part in answer.json()["error"]


def ask_without_batches(stage, body):
    """The answer of an application that computes no batches, with a timeout of 0.2 seconds."""
    bank = PromptBank.from_folder(stage.served, dtype="float32")
    transport = httpx.ASGITransport(build_app(bank, ServeSettings(stage.served, timeout=0.2)))

    async def ask():
        headers = {"Content-Type": "application/json"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as c:
            return await c.post("/tasks/task1/predict", content=body, headers=headers)

    return asyncio.run(ask())


def test_a_request_that_takes_too_long_is_refused(stage):
    answer = ask_without_batches(stage, b'{"inputs": "a"}')
    assert (answer.status_code, answer.json()["error_type"]) == (503, "timeout")
    assert answer.headers["retry-after"] == "1"


def test_a_body_that_never_ends_is_refused(stage):
    async def dribble():
        yield b"{"
        await asyncio.sleep(60)

    answer = ask_without_batches(stage, dribble())
    assert (answer.status_code, answer.json()["error_type"]) == (408, "timeout")
    assert answer.headers["connection"] == "close"


def test_a_client_that_disconnects_causes_no_failure(server):
    with socket.create_connection((server.host, server.port), timeout=20) as connection:
        head = ["POST /tasks/task1/predict HTTP/1.1", "Host: localhost", "Content-Length: 14"]
        head += ["Content-Type: application/json"]
        connection.sendall(("\r\n".join(head) + "\r\n\r\n{").encode())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (
        gone := [r for r in server.records() if r.get("status") == 499]
    ):
        time.sleep(0.05)
    assert gone
    assert not [r for r in server.records() if r["message"] == "failure"]


# Batches.


@pytest.fixture
def batcher(stage):
    bank = PromptBank.from_folder(stage.served, dtype="float32")
    made = Batcher(bank, ServeSettings(stage.served, queue=64), Metrics())
    yield made
    made.stop()


def test_a_failing_request_does_not_fail_the_rest_of_its_batch(batcher, stage):
    tasks = ["task0", "none", "task1", "task2"]
    jobs = [Job([(task, stage.texts[1])]) for task in tasks]
    jobs.append(Job([("task0", LONG)], may_cut=False))
    for job in jobs:
        batcher.submit(job)
    batcher.start()  # they form one batch
    for job in (jobs[0], jobs[2], jobs[3]):
        ((task, logits, _),) = job.answers.result(30)
        classifier = ptune.load(stage.served / task.name, dtype="float32")
        np.testing.assert_allclose(logits, *classifier.logits(stage.texts[1]), atol=1e-5)
    with pytest.raises(PtuneError, match="'none'"):
        jobs[1].answers.result(30)
    assert isinstance(jobs[4].answers.exception(30), TooLong)


def test_a_batch_holds_all_that_waits_up_to_a_number_of_characters(batcher, stage):
    text = "x " * 4096  # a quarter of the 64 * 512 characters of a batch
    jobs = [Job([("task0", text)]) for _ in range(5)]
    for job in jobs:
        batcher.submit(job)
    batcher.start()
    assert all(job.answers.result(60) for job in jobs)
    found = batcher.metrics.registry.get_sample_value
    assert found("ptune_batch_texts_bucket", {"le": "4.0"}) == 2
    assert found("ptune_batch_texts_count") == 2


def test_a_cancelled_request_is_not_computed(batcher, stage):
    jobs = [Job([("task0", stage.texts[1])]) for _ in range(3)]
    for job in jobs:
        batcher.submit(job)
    jobs[1].answers.cancel()
    batcher.start()
    assert jobs[2].answers.result(30)
    assert batcher.metrics.registry.get_sample_value("ptune_batch_texts_sum") == 2


# Operation.


def test_the_log_contains_every_request_but_no_text(server, client):
    secret = "zebra-crossing"
    url = "/tasks/task0/predict"
    client.post(url, json={"inputs": secret})
    client.post(url, json={"inputs": [secret, ""]})
    client.post(url, json={"inputs": secret, "truncate": secret})
    client.post(url, content=f'{{"inputs": "{secret}'.encode(), headers={"content-type": "x"})
    client.post(f"/tasks/{secret}/predict", json={"inputs": secret})
    client.get(f"/{secret}?text={secret}")
    time.sleep(0.2)
    assert secret not in server.log_text()
    asked = [r for r in server.records() if r["message"] == "request"][-6:]
    assert [r["status"] for r in asked] == [200, 422, 422, 415, 404, 404]
    assert (asked[0]["task"], asked[0]["texts"]) == ("task0", 1)
    assert asked[0]["seconds"] > 0
    assert asked[5]["route"] == "unmatched"


def test_an_exception_becomes_a_json_answer_and_its_message_is_not_logged(caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("the text of somebody")

    transport = httpx.ASGITransport(RequestLog(broken, Metrics(), lambda: False))

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as c:
            return await c.get("/")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
    (record,) = [r for r in caplog.records if r.message == "failure"]
    assert record.exception == "RuntimeError"
    assert Path(__file__).name in record.where[-1]
    assert "somebody" not in str(vars(record))


@pytest.mark.parametrize("path", ["/tasks", "/tasks/task0/predict"])
def test_an_exception_of_a_route_becomes_a_json_answer(stage, monkeypatch, caplog, path):
    bank = PromptBank.from_folder(stage.served, dtype="float32")
    transport = httpx.ASGITransport(build_app(bank, ServeSettings(stage.served)))

    def broken(_):
        raise RuntimeError("the text of somebody")

    monkeypatch.setattr(bank, "task", broken)

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as c:
            return await c.request("POST" if "predict" in path else "GET", path, json={})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
    assert "somebody" not in answer.text
    (record,) = [r for r in caplog.records if r.message == "failure"]
    assert "somebody" not in str(vars(record))


@pytest.fixture
def seen(client):
    def metric(name):
        found = re.findall(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[0]) if found else 0.0

    return metric


def test_metrics_are_in_prometheus_format(client, seen):
    name = 'ptune_texts_total{task="task4"}'
    before = seen(name)
    client.post("/tasks/task4/predict", json={"inputs": [["a"], ["b"]]})
    assert seen(name) == before + 2
    assert seen("ptune_tasks") == len(client.get("/tasks").json())
    assert seen("ptune_batch_seconds_count") > 0
    assert seen("process_resident_memory_bytes") > 1e6


def test_metrics_count_what_each_task_predicts(client, seen):
    ask = {"inputs": [["a"], ["where is the parcel " * 200]]}
    url, names = "/tasks/task2/predict", ["confidence_count", "truncated_texts_total"]
    own = client.get("/tasks/task2").json()["labels"]
    total = "ptune_predictions_total"
    labels = [f'{total}{{label="{label}",task="task2"}}' for label in [*own, "(none)"]]
    shown = [f'ptune_{name}{{task="task2"}}' for name in names]
    before = [seen(name) for name in shown]
    answer = client.post(url, json=ask)
    assert answer.headers["X-Truncated-Texts"] == "1"
    assert [seen(name) for name in shown] == [before[0] + 2, before[1] + 1]
    assert sum(map(seen, labels)) >= 2
    assert "X-Truncated-Texts" not in client.post(url, json={"inputs": "a"}).headers


def test_pages_load_nothing_from_other_sites(client):
    for path in ("/", "/docs", "/web/page.js", "/web/page.css"):
        page = client.get(path)
        assert page.status_code == 200
        assert not re.findall(r"""(?:src|href|url)\s*[=(:]\s*["']?(?:https?:)?//""", page.text)
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]


def test_head_answers_as_get_without_the_body(client):
    for path in ("/", "/health", "/ready", "/tasks", "/tasks/task0", "/docs"):
        answer, full = client.head(path), client.get(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == full.headers["content-length"]
    assert client.head("/tasks/none").status_code == 404
    assert client.head("/tasks/task0/predict").status_code == 405


def test_status_405_lists_the_allowed_methods(client):
    answer = client.patch("/tasks/task0")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"
    assert answer.json()["error_type"] == "method_not_allowed"
    assert answer.json()["error"] == "This path does not take PATCH. Use DELETE, GET, HEAD, PUT."
    error = client.get("/v1/moderations").json()["error"]  # in OpenAI's form
    assert error["message"] == "This path does not take GET. Use POST."
    assert error["type"] == "method_not_allowed"


def test_a_path_that_is_not_there_names_the_one_that_is(client):
    answer = client.post("/task0", json={"inputs": "a text"})
    assert answer.status_code == 404
    assert "POST /tasks/TASK/predict classifies" in answer.json()["error"]


# Under load and while stopping; `benchmarks/serve.py` does the same for longer.


def test_no_answer_is_wrong_under_load_while_tasks_are_added_and_removed(server, stage):
    found = measure_load(server, stage, clients=16, seconds=3)
    assert found["holds"], json.dumps(found, indent=1)
    assert found["moves"]["replaced: 200"] > 0


def test_a_sample_of_wrong_requests_is_refused(server, stage):
    """`make attack` sends many more."""
    (stage.served / "link").symlink_to("/etc")
    (stage.served / "linked").symlink_to(stage.served.parent / "moving0-0")
    for statuses, failures in (send_wrong(server, 250), generated(server, 30)):
        assert not failures
        assert sum(statuses.values()) >= 100
    assert "Traceback" not in server.log_text()


def test_sigterm_under_load_loses_no_request(stage):
    with Server(stage.served) as server:
        found = measure_stop(server, stage, clients=16, seconds=1)
    assert found["holds"], json.dumps(found, indent=1)
    assert found["met"].get("stopping", 0) + found["met"].get("connection refused", 0) == 16


def test_the_log_is_json(server):
    lines = server.log_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("{"))
    assert all(json.loads(line)["time"] for line in lines[start:])
