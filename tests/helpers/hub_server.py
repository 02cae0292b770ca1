"""A Hugging Face Hub on this machine: the part of its HTTP API that uploading and loading a model uses.

Uploads are those without Xet (`HF_HUB_DISABLE_XET=1`): small files within the commit, weights by Git LFS before it.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlparse

import pytest


LFS_SUFFIXES = (".safetensors",)
START = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
USER, TOKEN = "me", "hf_writes"
READER, READING_TOKEN = "reader", "hf_reads"


@dataclass
class Repository:
    """Branches, and the files of each commit."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or a hash stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer(ThreadingHTTPServer):
    """The Hub; `room` is how many LFS objects it still takes, `received` counts them by their hash."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.received: Counter[str] = Counter()
        self.room: float = float("inf")
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo_id: str, files: dict[str, bytes] | None = None, private: bool = False) -> Repository:
        """A repository as if it had been there before."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.commit("main", START | (files or {}))
        return repository

    def add_folder(self, repo_id: str, folder: Path) -> Repository:
        files = [file for file in folder.rglob("*") if file.is_file()]
        return self.add(repo_id, {file.relative_to(folder).as_posix(): file.read_bytes() for file in files})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[str(repository.resolve(revision))]


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def content_hash(path: str, content: bytes) -> str:
    """As Git LFS names a file, or Git a blob."""
    if is_lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refusal(Exception):
    """An answer with a status that tells of an error, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """One method for each endpoint."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("GET", r"/api/whoami-v2", "send_user"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", "send_info"),
        ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", "send_tree"),
        ("POST", r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", "make_branch"),
        ("POST", r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", "choose_modes"),
        ("POST", r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "offer_lfs"),
        ("PUT", r"/lfs/(\w+)", "receive_lfs"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "send_file"),
    )

    def answer(self, method: str) -> None:
        path = urlparse(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        try:
            for kind, pattern, name in self.ROUTES:
                found = re.fullmatch(pattern, path)
                if found and kind == method:
                    with self.server.lock:
                        getattr(self, name)(*(group and unquote(group) for group in found.groups()))
                    return
            raise Refusal(404, f"No endpoint {method} {path}")
        except Refusal as refusal:
            code = {"X-Error-Code": refusal.code} if refusal.code else {}
            self.send_json({"error": str(refusal)}, refusal.status, code | {"X-Error-Message": str(refusal)})

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def read_chunks(self) -> bytes:
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {}), status)

    def send_bytes(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def user(self) -> str | None:
        """Who asks; a token that nobody has is refused."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        users = {f"Bearer {TOKEN}": USER, f"Bearer {READING_TOKEN}": READER}
        if given not in users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return users[given]

    def repository(self, repo_id: str) -> Repository:
        """A repository that the user may see."""
        found = self.server.repositories.get(repo_id)
        if found is None or (found.private and self.user != USER):
            raise Refusal(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        return found

    def tree(self, repo_id: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(repo_id)
        oid = repository.resolve(revision or "main")
        if oid is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repository.commits[oid]

    def require_writer(self, repo_id: str) -> None:
        if self.user != USER or repo_id.split("/")[0] not in (USER, "lab"):
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")

    def send_user(self) -> None:
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        self.send_json({"type": "user", "name": self.user, "orgs": [{"name": "lab"}] if self.user == USER else []})

    def create(self) -> None:
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
        self.require_writer(repo_id)
        if repo_id in self.server.repositories:
            raise Refusal(409, "You already created this model repo")
        self.server.add(repo_id, private=asked.get("private") or asked.get("visibility") == "private")
        self.send_json({"url": f"{self.server.url}/{repo_id}"})

    def validate(self) -> None:
        self.send_json({"errors": [], "warnings": []})

    def send_info(self, repo_id: str, revision: str | None) -> None:
        oid, files = self.tree(repo_id, revision)
        config = json.loads(files.get("config.json", b"{}"))
        info = {"id": repo_id, "sha": oid, "private": self.repository(repo_id).private, "tags": []}
        info |= {"siblings": [{"rfilename": path} for path in files], "config": config}
        self.send_json(info)

    def send_tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        _, files = self.tree(repo_id, revision)
        inside = {path: content for path, content in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if not inside:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self.send_json([self.describe(path, content) for path, content in inside.items()])

    def describe(self, path: str, content: bytes) -> dict[str, Any]:
        described = {"type": "file", "path": path, "size": len(content), "oid": content_hash(path, content)}
        if is_lfs(path):
            described["lfs"] = {"oid": described["oid"], "size": len(content), "pointerSize": 130}
        return described

    def make_branch(self, repo_id: str, branch: str) -> None:
        self.require_writer(repo_id)
        repository = self.repository(repo_id)
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.send_json({})

    def choose_modes(self, repo_id: str, revision: str) -> None:
        self.require_writer(repo_id)
        _, files = self.tree(repo_id, revision)
        modes = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            oid = content_hash(path, files[path]) if path in files else None
            mode = "lfs" if is_lfs(path) else "regular"
            modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": modes})

    def offer_lfs(self, repo_id: str) -> None:
        self.require_writer(repo_id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.server.objects:  # one that is there has no action
                wanted["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            objects.append(wanted)
        self.send_json({"transfer": "basic", "objects": objects})

    def receive_lfs(self, oid: str) -> None:
        if self.server.room < 1:
            raise Refusal(403, "Storage limit reached")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(422, "The content has another hash")
        self.server.room -= 1
        self.server.received[oid] += 1
        self.server.objects[oid] = self.body
        self.send_json({})

    def commit(self, repo_id: str, branch: str) -> None:
        self.require_writer(repo_id)
        _, before = self.tree(repo_id, branch)
        files = dict(before)
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        oid = self.repository(repo_id).commit(branch, files)
        url = f"{self.server.url}/{repo_id}/commit/{oid}"
        self.send_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def send_file(self, repo_id: str, revision: str, path: str) -> None:
        oid, files = self.tree(repo_id, revision)
        if path not in files:
            raise Refusal(404, f"{path} does not exist", "EntryNotFound")
        headers = {"ETag": f'"{content_hash(path, files[path])}"', "X-Repo-Commit": oid}
        self.send_bytes(files[path], headers)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """The server while it runs, reached without a proxy."""
    with HubServer() as server, pytest.MonkeyPatch.context() as environment:
        environment.setenv("NO_PROXY", "127.0.0.1")
        thread = Thread(target=partial(server.serve_forever, 0.02))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
