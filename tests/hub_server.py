"""A small Hub on this machine: the endpoints that `huggingface_hub` uses, and faults on demand.

Answers and headers follow the client's source (huggingface_hub 2.4) and the documentation of the
real Hub. Large files are on another host name (`localhost` instead of `127.0.0.1`), as on the real
Hub, so that tests notice a token that leaks there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

import yaml

# Files that the Hub's .gitattributes sends to large-file storage.
LARGE = (".safetensors", ".bin", ".png")


# The word after a model's id, and the method that answers.
ENDPOINTS = {
    "preupload": "preupload",
    "commit": "commit",
    "branch": "branch",
    "revision": "revision",
    "tree": "listing",
    "paths-info": "paths_info",
    "refs": "refs",
}


@dataclass(frozen=True)
class File:
    content: bytes
    large: bool = False

    @property
    def oid(self):
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    pull_requests: int = 0

    def commit(self, ref, files, title, parent=None, deleted=()):
        tree = dict(self.commits.get(self.refs.get(parent or ref), {}))
        tree.update(files)
        for name in deleted:
            del tree[name]
        text = f"{title}{len(self.commits)}{sorted((n, f.oid) for n, f in tree.items())}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = tree
        self.refs[ref] = sha
        self.titles.append(title)
        return sha

    def at(self, ref):
        sha = self.refs.get(ref, ref)
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class Fault:
    """A fault of requests of `method` with `where` in their path, a number of `times`.

    Either the answer is `status`, or the connection breaks after `cut` bytes of the body.
    """

    method: str
    where: str
    status: int | None = None
    code: str | None = None
    cut: int | None = None
    times: float = float("inf")


class HubServer:
    """The server and its repositories; `with HubServer() as hub: … hub.url`."""

    def __init__(self):
        self.users = {"hf_alice": "alice", "hf_bob": "bob"}
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.tokens_seen_by_storage: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://localhost:{self.port}/storage"

    def __enter__(self):
        serve = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        serve.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def add_repo(self, name, private=False):
        repo = self.repos[name] = Repo(private)
        repo.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n")}, "initial")
        return repo

    def add_folder(self, name, folder, *, under="", ref="main", private=False):
        """Add the files of a folder to a repository, as a push does."""
        repo = self.repos.get(name) or self.add_repo(name, private)
        files = {
            under + file.name: self._file(file.name, file.read_bytes())
            for file in folder.iterdir()
            if file.is_file()
        }
        return repo.commit(ref, files, "by hand", parent="main" if ref not in repo.refs else None)

    def _file(self, name, content):
        file = File(content, name.endswith(LARGE))
        if file.large:
            self.large[file.oid] = content
        return file

    def file(self, repo, name, ref="main"):
        return self.repos[repo].at(ref)[1][name].content

    def files(self, repo, ref="main"):
        return {n for n in self.repos[repo].at(ref)[1] if n != ".gitattributes"}

    def go_wrong(self, method, where, **fault):
        self.faults.append(Fault(method, where, **fault))

    def fault_for(self, method, path):
        for fault in self.faults:
            if fault.method == method and fault.where in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Refused(Exception):
    def __init__(self, status, message, code=None, **headers):
        self.status, self.message, self.code, self.headers = status, message, code, headers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    # One request

    def answer(self):
        path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        self.hub.requests.append((self.command, unquote(path)))
        self.fault = self.hub.fault_for(self.command, unquote(path))
        if self.fault and self.fault.cut is not None and self.command != "GET":
            self.rfile.read(min(self.fault.cut, int(self.headers["Content-Length"])))
            self.hang_up()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        try:
            if self.fault and self.fault.status is not None:
                messages = {401: "Invalid username or password.", 403: "You may not do this."}
                message = messages.get(self.fault.status, "Out of order.")
                raise _Refused(self.fault.status, message, self.fault.code)
            self.route(path)
        except _Refused as refused:
            self.send(
                refused.status,
                {"error": refused.message},
                **{
                    "X-Error-Message": refused.message,
                    **({"X-Error-Code": refused.code} if refused.code else {}),
                    **refused.headers,
                },
            )

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def hang_up(self):
        self.close_connection = True
        self.connection.close()

    def send(self, status, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.cut is not None:
            self.wfile.write(content[: self.fault.cut])
            self.wfile.flush()
            self.hang_up()
        else:
            self.wfile.write(content)

    def send_bytes(self, content, **headers):
        """Send the content, or the part that `Range` asks for."""
        span = self.headers.get("Range", "")
        if span.startswith("bytes=") and span.endswith("-"):
            start = int(span[6:-1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(206, content[start:], **headers)
        else:
            self.send(200, content, **headers)

    # Permissions

    @property
    def user(self):
        header = self.headers.get("Authorization", "")
        if not header:
            return None
        user = self.hub.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return user

    def known_user(self):
        if self.user is None:
            raise _Refused(401, "Invalid username or password.")
        return self.user

    def readable(self, name):
        """The repository. One that the user may not see is reported as missing."""
        repo, user = self.hub.repos.get(name), self.user
        if repo is None or (repo.private and name.split("/")[0] != user):
            raise _Refused(404 if user else 401, "Repository Not Found", "RepoNotFound")
        return repo

    def writable(self, name):
        repo, user = self.readable(name), self.known_user()
        if name.split("/")[0] != user:
            raise _Refused(403, f"{user} must have write permission on {name}")
        return repo

    def tree(self, name, ref):
        repo = self.readable(name)
        if (found := repo.at(ref)) is None:
            raise _Refused(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        return found

    # Endpoints

    def route(self, path):
        if path.startswith("/storage/"):
            return self.stored(path.removeprefix("/storage/"))
        if path == "/api/whoami-v2":
            return self.send(200, {"type": "user", "name": self.known_user(), "orgs": []})
        if path == "/api/validate-yaml":
            return self.validate_card(json.loads(self.body)["content"])
        if path == "/api/repos/create":
            return self.create_repo(json.loads(self.body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.large_files(path.removesuffix(".git/info/lfs/objects/batch")[1:])
        if "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            ref, _, file = rest.partition("/")
            return self.resolve(name, unquote(ref), unquote(file))
        if path.startswith(("/api/models/", "/api/datasets/")):
            # An id of one or two parts, then the endpoint. Data sets are called `datasets/…`.
            parts = path.removeprefix("/api/").removeprefix("models/").split("/")
            for at, verb in enumerate(parts[1:4], start=1):
                if verb in ENDPOINTS:
                    name, rest = "/".join(parts[:at]), [unquote(p) for p in parts[at + 1 :]]
                    endpoint = getattr(self, ENDPOINTS[verb])
                    return endpoint(name, rest[0] if rest else "main", "/".join(rest[1:]))
            return self.revision("/".join(parts), "main", "")
        raise _Refused(404, f"Not found: {path}")

    def validate_card(self, content):
        try:
            metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)[1])
            for model in metadata.get("model-index", []):
                for result in model["results"]:
                    assert result["task"]["type"]
                    assert result["dataset"]["type"]
                    assert all({"type", "value"} <= set(m) for m in result["metrics"])
        except (yaml.YAMLError, KeyError, TypeError, AttributeError, AssertionError) as error:
            return self.send(400, {"errors": [{"message": f"metadata: {error!r}"}], "warnings": []})
        return self.send(200, {"errors": [], "warnings": []})

    def create_repo(self, body):
        user = self.known_user()
        name = f"{body.get('organization') or user}/{body['name']}"
        if name.split("/")[0] != user:
            raise _Refused(403, f"You don't have the rights to create a model under {name}")
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return self.send(409, {**answer, "error": "You already created this model repo"})
        self.hub.add_repo(name, body.get("visibility") == "private")
        return self.send(200, answer)

    def branch(self, name, branch, _rest):
        repo = self.writable(name)
        if branch in repo.refs:
            raise _Refused(409, f"Reference already exists: {branch}")
        repo.refs[branch] = repo.refs["main"]
        return self.send(200, {})

    def refs(self, name, _ref, _rest):
        repo = self.readable(name)
        branches = [
            {"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.refs.items()
        ]
        return self.send(200, {"branches": branches, "tags": [], "converts": []})

    def revision(self, name, ref, _rest):
        sha, tree = self.tree(name, ref)
        answer = {"_id": name, "id": name, "modelId": name, "sha": sha, "tags": [], "downloads": 0}
        siblings = [{"rfilename": file} for file in tree]
        return self.send(
            200, {**answer, "private": self.hub.repos[name].private, "siblings": siblings}
        )

    def listing(self, name, ref, folder):
        sha, tree = self.tree(name, ref)
        inside = {n: f for n, f in tree.items() if not folder or n.startswith(f"{folder}/")}
        if folder and not inside:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound", **_commit(sha))
        return self.send(
            200,
            [
                {"type": "file", "path": n, "size": len(f.content), "oid": f.oid}
                for n, f in inside.items()
            ],
        )

    def paths_info(self, name, ref, _rest):
        _, tree = self.tree(name, ref)
        paths = (
            parse_qs(self.body.decode())["paths"]
            if self.body[:1] != b"{"
            else (json.loads(self.body)["paths"])
        )
        return self.send(
            200,
            [
                {"type": "file", "path": p, "size": len(tree[p].content), "oid": tree[p].oid}
                for p in paths
                if p in tree
            ],
        )

    def preupload(self, name, ref, _rest):
        self.known_user()
        if "create_pr" not in self.query:
            self.writable(name)
        _, tree = self.tree(name, ref)
        return self.send(
            200,
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        **({"oid": tree[file["path"]].oid} if file["path"] in tree else {}),
                    }
                    for file in json.loads(self.body)["files"]
                ]
            },
        )

    def large_files(self, name):
        self.known_user()
        self.readable(name)
        objects = []
        for item in json.loads(self.body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.large:
                href = f"{self.hub.storage}/{item['oid']}"
                answer["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(answer)
        return self.send(200, {"transfer": "basic", "objects": objects})

    def stored(self, oid):
        if token := self.headers.get("Authorization"):
            self.hub.tokens_seen_by_storage.append(token)
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise _Refused(400, "The content is not what its name says")
            self.hub.large[oid] = self.body
            return self.send(200, ETag=f'"{oid}"')
        return self.send_bytes(self.hub.large[oid], ETag=f'"{oid}"')

    def commit(self, name, ref, _rest):
        is_pull_request = "create_pr" in self.query
        repo = self.readable(name) if is_pull_request else self.writable(name)
        self.known_user()
        self.tree(name, ref)
        title, files, deleted = "", {}, []
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif item["key"] == "deletedFile":
                deleted.append(value["path"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Refused(400, f"{value['path']} was never uploaded")
                files[value["path"]] = File(self.hub.large[value["oid"]], large=True)
        answer = {"success": True, "hookOutput": ""}
        if is_pull_request:
            repo.pull_requests += 1
            number = repo.pull_requests
            oid = repo.commit(f"refs/pr/{number}", files, title, parent=ref, deleted=deleted)
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        else:
            oid = repo.commit(ref, files, title, deleted=deleted)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        return self.send(200, {**answer, "commitUrl": url, "commitOid": oid})

    def resolve(self, name, ref, path):
        sha, tree = self.tree(name, ref)
        if path not in tree:
            raise _Refused(404, "Entry not found", "EntryNotFound", **_commit(sha))
        file = tree[path]
        if not file.large:
            return self.send_bytes(file.content, ETag=f'"{file.oid}"', **_commit(sha))
        return self.send(
            302,
            b"",
            Location=f"{self.hub.storage}/{file.oid}",
            **_commit(sha),
            **{"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))},
        )


def _commit(sha):
    return {"X-Repo-Commit": sha}
