"""Requests that no well-meaning client sends. For `ptune serve` on this machine only.

`wrong` yields requests that must be refused with a status of 4xx. `mutated` yields requests that
may be right by chance. `generated` lets schemathesis make wrong requests from the server's own
description of its API.
"""

import collections
import contextlib
import json
import random
import re
import socket

from serve import ADMIN

PREDICT = "/tasks/task0/predict"
AS_ADMIN = f"Authorization: Bearer {ADMIN}"
JSON = "Content-Type: application/json"
GOOD = b'{"inputs":"a"}'


def raw(method, path, body=b"", *headers):
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def post(body, *headers):
    """The bytes of a request to classify."""
    data = body if isinstance(body, bytes) else body.encode()
    return raw("POST", PREDICT, data, *(headers or (JSON,)))


def chunked(size, count):
    """A request whose body comes in chunks."""
    body = (f"{size:x}\r\n".encode() + b"a" * size + b"\r\n") * count + b"0\r\n\r\n"
    return post(body, "Transfer-Encoding: chunked", JSON)


def wrong(rng):
    """Yield requests without end, each with its description; all must be refused with 4xx."""
    while True:
        yield from wrong_names()
        yield from ((what, post(body)) for what, body in wrong_bodies(rng))
        yield from wrong_heads(rng)
        yield from wrong_paths()
        yield from wrong_tokens()
        yield from wrong_http(rng)


def wrong_names():
    """Tasks that do not exist, or must not be reached."""
    names = [
        "..%2f..%2fetc%2fpasswd", "%2e%2e", "..%5c..%5cwindows", "a%00b", "%00", "-x", ".hidden",
        "a" * 129, "a" * 5000, "%ff%fe", "task0%2f..%2ftask1", "%F0%9F%92%A9", "task0%20", "link",
        "linked", "none", "..;", "%252e%252e%252f", "con:", "task0%0d%0aX:%20y", "~root",
    ]  # fmt: skip
    for name in names:
        yield f"PUT {name[:20]}", raw("PUT", f"/tasks/{name}", b"", AS_ADMIN)
        yield f"DELETE {name[:20]}", raw("DELETE", f"/tasks/{name}", b"", AS_ADMIN)
        yield f"GET {name[:20]}", raw("GET", f"/tasks/{name}")
        yield f"POST {name[:20]}", raw("POST", f"/tasks/{name}/predict", GOOD, JSON)
        body = json.dumps({"model": name, "input": "a"}).encode()
        yield f"moderation by {name[:20]}", raw("POST", "/v1/moderations", body, JSON)


def wrong_bodies(rng):
    """Bodies that are not a request to classify, or too much of one."""
    deep = 10 ** rng.randint(2, 5)
    return [
        ("nothing", ""), ("no JSON", "{"), ("a word", "inputs"), ("null", "null"), ("[]", "[]"),
        ("true", "true"), ("a text", '"a"'), ("no inputs", "{}"), ("NaN", '{"inputs":NaN}'),
        ("Infinity", '{"inputs":-Infinity}'), ("null inputs", '{"inputs":null}'),
        ("a number", '{"inputs":1e999}'), ("an object", '{"inputs":{"a":"b"}}'),
        ("an empty text", '{"inputs":""}'), ("spaces", '{"inputs":" \\t\\n\\u2003"}'),
        ("no texts", '{"inputs":[]}'), ("a batch of none", '{"inputs":[[]]}'),
        ("two texts or a pair", '{"inputs":["a","b"]}'),
        ("a row of three", '{"inputs":[["a","b","c"]]}'),
        ("a null in a pair", '{"inputs":["a",null]}'), ("mixed", '{"inputs":[["a"],"b"]}'),
        ("an empty half", '{"inputs":[["a",""]]}'), ("numbers", '{"inputs":[[1,2]]}'),
        ("an unknown field", '{"inputs":"a","parameter":{}}'),
        ("an unknown parameter", '{"inputs":"a","parameters":{"k":1}}'),
        ("no labels", '{"inputs":"a","parameters":{"top_k":0}}'),
        ("too large a number", '{"inputs":"a","parameters":{"top_k":-%s}}' % ("9" * deep)),
        ("a wrong flag", '{"inputs":"a","raw_scores":"yes"}'),
        ("a wrong flag", '{"inputs":"a","truncate":1}'),
        ("a wrong side", '{"inputs":"a","truncation_direction":"up"}'),
        ("a surrogate", '{"inputs":"\\ud800"}'), ("two surrogates", '{"inputs":"\\udc00\\ud800"}'),
        ("a surrogate as bytes", b'{"inputs":"\xed\xa0\x80"}'),
        ("no UTF-8", b'{"inputs":"\xff\xfe"}'), ("Latin-1", '{"inputs":"é"}'.encode("latin-1")),
        ("UTF-16", '{"inputs":"a"}'.encode("utf-16")),
        ("UTF-32", '{"inputs":"a"}'.encode("utf-32")),
        ("a byte order mark", b'\xef\xbb\xbf{"inputs":"a"}'),
        ("a raw control", b'{"inputs":"\x01"}'),
        ("zeros", b"\x00" * 100), ("two values", '{"inputs":"a"}{"inputs":"b"}'),
        ("a comma too many", '{"inputs":"a",}'), ("single quotes", "{'inputs':'a'}"),
        ("deep lists", '{"inputs":' + "[" * deep + "]" * deep + "}"),
        ("deep objects", '{"inputs":' + '{"a":' * deep + "1" + "}" * deep + "}"),
        ("deep options", '{"b":1,"inputs":"a","options":' + "[" * deep + "]" * deep + "}"),
        ("only brackets", "[" * deep), ("a long number", '{"inputs":' + "9" * deep + "}"),
        ("many texts", json.dumps({"inputs": [["a"]] * rng.randint(65, 2000)})),
        ("a long text", json.dumps({"inputs": "a" * rng.randint(20_001, 900_000)})),
        ("a long pair", json.dumps({"inputs": [["a" * 15_000, "b" * 15_000]]})),
        ("many fields", json.dumps({f"f{i}": i for i in range(2000)})),
        ("a long field", json.dumps({"f" * 100_000: 1})),
        ("a large body", b'{"inputs":"' + b"a" * rng.randint(1_000_001, 3_000_000) + b'"}'),
        ("random bytes", rng.randbytes(rng.randint(1, 5000))),
    ]  # fmt: skip


def wrong_heads(rng):
    """Content types, lengths and methods that the route does not take."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", ""):
        yield f"Content-Type {kind}", post(GOOD, f"Content-Type: {kind}")
    yield "no Content-Type", raw("POST", PREDICT, GOOD)
    yield "chunks beyond the limit", chunked(50_000, rng.randint(25, 60))
    yield "a gzipped body", post(b"\x1f\x8b\x08", JSON, "Content-Encoding: gzip")
    yield "a length too large", post(GOOD, JSON, "Content-Length: 99999999999")
    for method in ("GET", "HEAD", "OPTIONS", "PATCH", "DELETE", "TRACE", "PUT", "FOO", "CONNECT"):
        yield f"{method} predict", raw(method, PREDICT)
        yield f"{method} moderations", raw(method, "/v1/moderations")
    for method in ("OPTIONS", "POST", "PATCH"):
        yield f"{method} a task", raw(method, "/tasks/task0")
        yield f"{method} tasks", raw(method, "/tasks")
        yield f"{method} the page", raw(method, "/")
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1",
                 "0.0.0.0", "192.0.2.1:8080", "localhost@evil.example"):  # fmt: skip
        head = f"GET /tasks HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        yield f"Host {host}", head.encode()


def wrong_paths():
    """Paths that lead out of the server's files, or nowhere."""
    for path in ("/../../etc/passwd", "/web/..%2f..%2fserver.py", "/web/%00", "/web/" + "a" * 3000,
                 "/static-offline-docs/..%2fcore.py", "//tasks", "/tasks/", "/tasks//predict",
                 "/tasks/task0/predict/", "/%", "/v1/", "/v1/moderations/", "/v1/../tasks",
                 "/" + "%2e%2e%2f" * 50, "/" + "a/" * 500):  # fmt: skip
        yield f"GET {path[:30]}", raw("GET", path)


def wrong_tokens():
    """Attempts to add and remove tasks without the right token."""
    yield "PUT without a token", raw("PUT", "/tasks/task0")
    for sent in ("Bearer wrong", "Bearer", "Basic YTpi", "Bearer \xff\xfe", "Bearer " + "a" * 9000,
                 f"Bearer {ADMIN}x", f"Bearer {ADMIN[:-1]}", f"Basic {ADMIN}"):  # fmt: skip
        yield "a wrong token", raw("PUT", "/tasks/task0", b"", f"Authorization: {sent}")
        yield "a wrong token", raw("DELETE", "/tasks/task0", b"", f"Authorization: {sent}")


def wrong_http(rng):
    """Bytes that are not HTTP."""
    yield "no HTTP", b"hello\r\n\r\n"
    yield "no HTTP", rng.randbytes(200) + b"\r\n\r\n"
    yield "a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "a bad header", b"GET / HTTP/1.1\r\nHost x\r\n\r\n"
    yield "no Host", b"GET / HTTP/1.1\r\n\r\n"
    yield "a header too large", raw("GET", "/tasks/x", b"", "X: " + "a" * 70_000)
    many = [f"X{i}: {'a' * 90}" for i in range(900)]
    yield "headers too many", raw("GET", "/tasks/x", b"", *many)
    yield "a bad length", post(GOOD, JSON, "Content-Length: -1")
    yield "two lengths", post(GOOD, JSON, "Content-Length: 5", "Content-Length: 14")
    yield "a bad chunk", post(b"zz\r\n", JSON, "Transfer-Encoding: chunked")
    yield "an unknown encoding", post(GOOD, JSON, "Transfer-Encoding: gzip")


def smuggled():
    """Yield requests with a second one inside, which a proxy may not see.

    The server must answer at most once and close the connection.
    """
    inner = b"GET /tasks HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunk = b"e\r\n" + GOOD + b"\r\n0\r\n\r\n"
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n".encode()
    length, chunks = b"Content-Length: 14\r\n", b"Transfer-Encoding: chunked\r\n"
    yield "length and chunks", head + length + chunks + b"\r\n" + chunk + inner
    yield "chunks and length", head + chunks + length + b"\r\n" + chunk + inner
    short = b"Content-Length: 4\r\n"
    yield "short length and chunks", head + short + chunks + b"\r\n" + chunk + inner
    for spelling in (b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked",
                     b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity",
                     b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: chunked\x00",
                     b"X: y\rTransfer-Encoding: chunked"):  # fmt: skip
        yield spelling.decode("latin-1"), head + length + spelling + b"\r\n\r\n" + GOOD + inner
    for spelling in (b"+14", b"0xe", b"14, 15", b"1 4", b"-1", b"14abc", b""):
        field = b"Content-Length: " + spelling + b"\r\n\r\n"
        yield f"length {spelling.decode()}", head + field + GOOD + inner
    yield "different lengths", head + length + short + b"\r\n" + GOOD + inner
    for size in (b"0xe", b"+e", b"e ;\x00", b"-1", b"fffffffffffffffff", b"e\n"):
        body = size + b"\r\n" + GOOD + b"\r\n0\r\n\r\n" + inner
        yield f"chunk size {size.decode()!r}", head + chunks + b"\r\n" + body


def mutated(rng):
    """Yield right requests with a few bytes changed, without end."""
    ask = b'{"inputs":[["a","b"]],"parameters":{"top_k":1},"truncation_direction":"left"}'
    moderation = b'{"model":"task0","input":["a","b"]}'
    right = [
        post(ask),
        raw("POST", "/v1/moderations", moderation, JSON),
        raw("GET", "/tasks/task1"),
        chunked(20, 2),
        raw("GET", "/metrics"),
    ]
    while True:
        data = bytearray(rng.choice(right))
        for _ in range(rng.randint(1, 6)):
            at, kind = rng.randrange(len(data)), rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randint(1, 8)]
            elif kind == 2:
                data[at:at] = rng.choice([b"\r\n", b"\x00", b"\xff", b" ", b"{", b'"', b"9" * 30])
            else:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            if not data:
                break
        yield bytes(data)


def exchange(server, data, *, whole=False, timeout=30):
    """What the server answers to these bytes: the first line; or everything until it closes.

    With `whole`, the client says that it will send no more.
    """
    assert server.host == "127.0.0.1", "attack nobody else"
    answer = b""
    with socket.create_connection((server.host, server.port), timeout=timeout) as connection:
        with contextlib.suppress(OSError):  # it may have answered and closed before it read all
            connection.sendall(data)
            if whole:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while (whole or b"\r\n" not in answer) and (more := connection.recv(65_536)):
                answer += more
    return answer


def status_of(answer):
    """The status of an answer; 0: there is none."""
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(found[1]) if found else 0


def generated(server, examples):
    """Send wrong requests made by schemathesis.

    Returns:
        How often each status was answered, and descriptions of answers that are not 4xx.
    """
    import hypothesis
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses, failures = collections.Counter(), []
    how = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def ask_all(operation, *, known_task):
        @how
        @hypothesis.given(
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        def ask(case):
            if known_task:
                case.path_parameters["task"] = "task0"
            status = case.call(headers={"Authorization": f"Bearer {ADMIN}"}).status_code
            if known_task and status == 200:
                return  # only the name was wrong
            statuses[status] += 1
            if not 400 <= status < 500:
                failures.append(f"{operation.label} {case.path_parameters}: {status}")

        ask()

    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path_parameters:  # otherwise nothing can be wrong
            ask_all(operation, known_task=False)
        if operation.body:
            ask_all(operation, known_task=True)
    return statuses, failures


def send_wrong(server, count, seed=0):
    """Send `count` wrong requests; returns statuses, and descriptions of answers but 4xx."""
    statuses, failures = collections.Counter(), []
    for _, (what, data) in zip(range(count), wrong(random.Random(seed)), strict=False):
        status = status_of(exchange(server, data))
        statuses[status] += 1
        if not 400 <= status < 500:
            failures.append(f"{what}: {status}")
    return statuses, failures
