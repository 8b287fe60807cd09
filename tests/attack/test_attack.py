"""Attacks on `ptune serve`: what SECURITY.md promises. Run them with `make attack`.

They address only a server that they start themselves on 127.0.0.1, with bounded counts and times.
After each of them the server must still give right answers.
"""

import asyncio
import collections
import contextlib
import json
import random
import resource
import shutil
import signal
import socket
import struct
import threading
import time

import httpx2 as httpx
import pytest
from hostile import (
    GOOD,
    JSON,
    PREDICT,
    exchange,
    generated,
    mutated,
    post,
    raw,
    send_wrong,
    smuggled,
    status_of,
)
from serve import ADMIN, Load, Server, Stage, measure_load, measure_stop

from ptune.serving.access import same_token

pytestmark = [pytest.mark.attack, pytest.mark.timeout(600)]

TIMEOUT = 2  # seconds that the server gives a request
CLOSED_AFTER = 2 * TIMEOUT + 3  # when a connection without a complete exchange is closed
MAX_CONNECTIONS = 300
AS_ADMIN = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory, bert_folder):
    return Stage(tmp_path_factory.mktemp("stage"), str(bert_folder), tasks=5, texts=9)


@pytest.fixture(scope="module")
def attacked(stage):
    """A server whose limits are low enough to reach."""
    limits = ["--timeout", TIMEOUT, "--max-connections", MAX_CONNECTIONS]
    with Server(stage.served, *limits) as running:
        for _ in range(3):  # the first requests of each kind take memory
            steady(running, stage)
            send_wrong(running, 300)
        yield running


@pytest.fixture
def server(attacked, stage):
    """The attacked server; afterwards it is as it was before."""
    before, failures = attacked.memory(), attacked.log_text().count('"failure"')
    yield attacked
    eventually(lambda: connected(attacked) < 20)
    steady(attacked, stage)
    assert attacked.memory() <= 1.2 * before
    assert attacked.log_text().count('"failure"') == failures
    assert "Traceback" not in attacked.log_text()
    assert metric(attacked, "ptune_queue_texts") == 0


def steady(server, stage):
    """Well-meaning clients get right answers."""
    load = Load(server.url, {"task0": stage.answers["task0"]}, stage.texts)
    asyncio.run(load.run(4, 0.5))
    assert not load.wrong
    assert load.met["answered"] > 0
    assert set(load.met) == {"answered"}


def eventually(condition, seconds=CLOSED_AFTER + 10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def metric(server, name):
    answer = httpx.get(f"{server.url}/metrics")
    if answer.status_code == 503:
        return float("inf")  # too many clients are connected
    lines = answer.text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def connected(server):
    return metric(server, "process_open_fds") - server.idle_files


@pytest.fixture(scope="module", autouse=True)
def _count_files(attacked):
    attacked.idle_files = metric(attacked, "process_open_fds")


def connect(server):
    return socket.create_connection((server.host, server.port), timeout=30)


def is_closed(connection, seconds):
    """True if the server closes the connection in this time."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


# Malformed requests.


def test_two_thousand_wrong_requests_are_refused(server, stage):
    with contextlib.suppress(FileExistsError):
        (stage.served / "link").symlink_to("/etc")
        (stage.served / "linked").symlink_to(stage.served.parent / "moving0-0")
    statuses, failures = send_wrong(server, 2000, seed=1)
    assert failures == []
    assert sum(statuses.values()) == 2000
    statuses, failures = generated(server, 100)
    assert failures == []
    assert sum(statuses.values()) > 300


def test_changed_bytes_are_answered_or_refused(server):
    statuses = collections.Counter()
    for _, data in zip(range(5000), mutated(random.Random(2)), strict=False):
        statuses[status_of(exchange(server, data, whole=True)) // 100] += 1
    assert set(statuses) <= {0, 2, 4}, statuses
    assert statuses[4] > 1000
    assert statuses[2] > 100


@pytest.mark.parametrize(("what", "data"), smuggled())
def test_a_request_inside_another_is_not_answered(server, what, data):
    answer = exchange(server, data, whole=True)
    assert answer.count(b"HTTP/1.1 ") <= 1, answer
    assert status_of(answer) // 100 in (0, 4), answer


def test_endless_headers_are_refused(server):
    with connect(server) as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            while sent < 100_000_000:
                connection.sendall(b"X: " + b"a" * 10_000 + b"\r\n")
                sent += 10_000
        assert sent < 10_000_000
        assert is_closed(connection, 5)


@pytest.mark.parametrize("kind", ["length", "chunks"])
def test_a_body_of_100_mb_is_refused_without_reading_it_into_memory(server, kind):
    size = 100_000_000
    how = f"Content-Length: {size}" if kind == "length" else "Transfer-Encoding: chunked"
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n{how}\r\n\r\n".encode()
    piece = b"a" * 100_000
    if kind == "chunks":
        piece = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    with connect(server) as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(size // 100_000):
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            assert status_of(connection.recv(65_536)) in (0, 413)
        if kind == "length":  # the request was complete, so there may be another one
            with contextlib.suppress(ConnectionError):
                connection.sendall(post(GOOD))
                assert status_of(connection.recv(65_536)) in (0, 200)
        assert is_closed(connection, CLOSED_AFTER)


# Connections.


def dribble(connection, data, pause, stop):
    """Send one byte after the other until the server closes the connection."""
    with contextlib.suppress(OSError):
        for i in range(len(data)):
            connection.sendall(data[i : i + 1])
            if stop.wait(pause):
                return


def test_slow_clients_are_disconnected_and_others_are_served(server, stage):
    head = post(b"x" * 10_000)
    starts = [head[:30], head[:200], head[: head.index(b"\r\n\r\n") + 100]]  # in head, in body
    stop, threads = threading.Event(), []
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(60)]
        started = time.monotonic()
        for i, connection in enumerate(connections):
            connection.sendall(starts[i % 3])
            work = threading.Thread(target=dribble, args=(connection, b"a" * 1000, 0.3, stop))
            work.start()
            threads.append(work)
        steady(server, stage)
        assert all(is_closed(connection, CLOSED_AFTER) for connection in connections)
        assert time.monotonic() - started < CLOSED_AFTER + 5
        stop.set()
        for work in threads:
            work.join()


def test_silent_clients_are_disconnected(server, stage):
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(100)]
        for connection in connections[::2]:
            connection.sendall(post(GOOD)[:-3])
        steady(server, stage)
        assert all(is_closed(connection, CLOSED_AFTER) for connection in connections)


def test_clients_that_never_read_are_disconnected(server, stage):
    page = httpx.get(f"{server.url}/docs").text
    large = page.split('script src="')[1].split('"')[0]  # a script of more than a megabyte
    assert len(httpx.get(server.url + large).content) > 1_000_000
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(5)]
        for connection in connections:
            connection.sendall(raw("GET", large).replace(b"Connection: close\r\n", b"") * 20)
        steady(server, stage)
        time.sleep(CLOSED_AFTER)
        assert all(is_closed(connection, 5) for connection in connections)


def test_clients_that_disappear_are_forgotten(server):
    data = post(GOOD)
    for i in range(500):
        with connect(server) as connection:
            connection.sendall(data[: len(data) - i % 20])
            # Closing sends a reset in place of a goodbye.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_client_that_has_finished_sending_still_gets_its_answer(server, stage):
    text = next(t for t in stage.texts if isinstance(t, str))
    answer = exchange(server, post(json.dumps({"inputs": text})), whole=True)
    assert status_of(answer) == 200
    found = {row["label"]: row["score"] for row in json.loads(answer.split(b"\r\n\r\n")[1])}
    assert found == pytest.approx(stage.answers["task0"][0][stage.texts.index(text)], abs=1e-5)


async def ask_politely(server, count):
    """The statuses that well-meaning clients get, each with its own connection."""
    statuses = collections.Counter()
    async with httpx.AsyncClient(timeout=30) as client:
        for _ in range(count):
            try:
                answer = await client.post(
                    server.url + PREDICT, content=GOOD,
                    headers={"Content-Type": "application/json", "Connection": "close"},
                )  # fmt: skip
            except httpx.TransportError:
                statuses["refused"] += 1
                continue
            statuses[answer.status_code] += 1
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "1"
            await asyncio.sleep(0.05)
    return statuses


def test_ten_thousand_connections(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000 + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may open only {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))

    async def flood():
        gate, writers = asyncio.Semaphore(200), []

        async def open_one():
            async with gate:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(server.host, server.port)
                    writers.append(writer)

        asking = asyncio.create_task(ask_politely(server, 40))
        await asyncio.gather(*(open_one() for _ in range(10_000)))
        statuses = await asking
        for writer in writers:
            writer.close()
        return len(writers), statuses

    try:
        opened, statuses = asyncio.run(flood())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert opened > 9_000
    assert set(statuses) <= {200, 503, "refused"}, statuses
    assert statuses["refused"] <= 2, statuses  # the queue of the operating system was full


def test_clients_beyond_the_limit_are_told_to_try_again(server):
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(connect(server))
        time.sleep(0.3)
        answer = exchange(server, post(GOOD), whole=True)
    assert status_of(answer) == 503
    assert b"Retry-After: 1" in answer


# Who may do what.


PATHS = ["/", "/tasks", "/docs", "/openapi.json", "/metrics", "/web/page.js"]
HOSTS = ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.1", "0.0.0.0"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    "path", ["/", "/tasks", "/docs", "/openapi.json", "/metrics", "/web/page.js"]
)
def test_a_web_page_whose_name_points_here_reads_nothing(server, host, path):
    answer = httpx.get(server.url + path, headers={"Host": f"{host}:{server.port}"})
    assert (answer.status_code, answer.json()["error_type"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.9.1", "[::1]:80",
                                  "app.localhost", "localhost."])  # fmt: skip
def test_names_of_this_machine_are_served(server, host):
    assert httpx.get(f"{server.url}/tasks", headers={"Host": host}).status_code == 200


def test_any_name_is_served_with_a_token(stage):
    with Server(stage.served, "--token", "sesame") as guarded:
        headers = {"Host": "models.example", "Authorization": "Bearer sesame"}
        assert httpx.get(f"{guarded.url}/tasks", headers=headers).status_code == 200
        headers["Authorization"] = "Bearer sesam"
        assert httpx.get(f"{guarded.url}/tasks", headers=headers).status_code == 401


def test_the_time_to_compare_tokens_does_not_tell_how_much_is_right():
    token = "a" * 2_000_000
    early, late = "b" + token[1:], token[:-1] + "b"
    seconds = {early: [], late: []}
    for _ in range(30):
        for sent, found in seconds.items():
            started = time.perf_counter()
            assert not same_token(sent, token)
            found.append(time.perf_counter() - started)
    ratio = min(seconds[late]) / min(seconds[early])
    assert 0.5 < ratio < 2  # comparing with == takes a hundred times as long


# Changes, a full disk, and the end.


def test_tasks_are_reloaded_under_load_and_under_attack(server, stage):
    stop = threading.Event()

    def attack():
        seed = 10
        while not stop.is_set():
            send_wrong(server, 50, seed)
            seed += 1

    work = threading.Thread(target=attack)
    work.start()
    try:
        found = measure_load(server, stage, clients=16, seconds=10)
    finally:
        stop.set()
        work.join()
    assert found["holds"], json.dumps(found, indent=1)
    assert found["moves"]["replaced: 200"] > 0


def test_an_adapter_that_was_cut_by_a_full_disk_is_refused(server, stage):
    place = stage.served / "cut"
    url = f"{server.url}/tasks/cut"
    shutil.copytree(stage.served / "task1", place)
    assert httpx.put(url, headers=AS_ADMIN).status_code == 201
    right = httpx.post(f"{url}/predict", json={"inputs": "a"}).json()
    for file in place.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        answer = httpx.put(url, headers=AS_ADMIN)
        assert answer.status_code == 422, (file, answer.text)
        file.write_bytes(whole)
    assert httpx.post(f"{url}/predict", json={"inputs": "a"}).json() == right
    assert httpx.delete(url, headers=AS_ADMIN).status_code == 204


def test_a_server_that_cannot_write_adds_tasks_and_answers(stage):
    def full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # a little for its log

    shutil.copytree(stage.served / "task2", stage.served / "late", dirs_exist_ok=True)
    with Server(stage.served, preexec_fn=full_disk) as server:
        shutil.copytree(stage.served / "task3", stage.served / "later", dirs_exist_ok=True)
        assert httpx.put(f"{server.url}/tasks/later", headers=AS_ADMIN).status_code == 201
        for _ in range(50):
            answer = httpx.post(f"{server.url}/tasks/later/predict", json={"inputs": "a"})
            assert answer.status_code == 200
        steady(server, stage)
    for name in ("late", "later"):
        shutil.rmtree(stage.served / name)


def test_sigterm_loses_no_request_that_is_on_its_way(stage):
    with Server(stage.served, "--timeout", 5) as server, contextlib.ExitStack() as stack:
        data = post(GOOD)
        connections = [stack.enter_context(connect(server)) for _ in range(50)]
        for connection in connections:
            connection.sendall(data[:-1])  # the last byte comes after the signal
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        for connection in connections:
            connection.sendall(data[-1:])
        answers = [connection.recv(65_536) for connection in connections]
        assert all(status_of(answer) == 200 for answer in answers)
        assert server.process.wait(30) == 0


def test_sigterm_under_load_and_attack_loses_no_request(stage):
    with Server(stage.served, "--timeout", 5) as server:
        slow = [connect(server) for _ in range(50)]
        for connection in slow:
            connection.sendall(post(GOOD)[:40])
        found = measure_stop(server, stage, clients=16, seconds=2)
        for connection in slow:
            connection.close()
    assert found["holds"], json.dumps(found, indent=1)
