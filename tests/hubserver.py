"""A hub on this machine: as much of the Hugging Face hub's protocol as fetching and pushing need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants


@dataclass
class Repo:
    """Attributes:
    files: by name, in the one revision there is, "main".
    gated: its names are told and its files are not.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    @property
    def sha(self) -> str:
        said = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.files.items()))
        return hashlib.sha1(said.encode()).hexdigest()


class Hub:
    """Attributes:
    repos: by "org/name".
    sent: (method, path, Authorization) of each request.
    broken: a status that every request is answered with; 200 with what is no JSON.
    readonly: whether whoever asks may not write.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.sent: list[tuple[str, str, str | None]] = []
        self.broken: int | None = None
        self.readonly = False
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """From here on a connection is refused."""
        if self.thread.is_alive():
            self.http.shutdown()
            self.http.server_close()
            self.thread.join()

    @property
    def fetched(self) -> list[str]:
        """The files that were asked for, by name."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for how, path, _ in self.sent
            if how == "GET" and "/resolve/" in path
        ]


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.stop()


def at_home(monkeypatch, endpoint: str, home: Path, offline: bool = False) -> None:
    """This process's huggingface_hub as if it had been started with these; it reads its environment at its import."""
    huggingface_hub.close_session()
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    said = {"ENDPOINT": endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": offline}
    said |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
    for name, value in said.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply()

        def do_HEAD(self):
            self.reply()

        def do_POST(self):
            self.reply()

        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
            path = unquote(urlsplit(self.path).path)
            hub.sent.append((self.command, path, self.headers.get("Authorization")))
            status, headers, data = answer(hub, self.command, path, body)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data)), "Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
            self.close_connection = True

        def chunks(self) -> bytes:
            """A body whose length was not told."""
            found = b""
            while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
                found += self.rfile.read(size)
                self.rfile.readline()
            return found

        def log_message(self, *args):
            pass

    return Handler


Answer = tuple[int, dict[str, str], bytes]


def answer(hub: Hub, method: str, path: str, body: bytes) -> Answer:
    if hub.broken is not None:
        return hub.broken, {}, b"<html>Log in to this network</html>"
    if path.startswith("/api/"):
        return api(hub, method, path.split("/")[2:], body)
    name, _, rest = path[1:].partition("/resolve/")
    repo = hub.repos.get(name)
    if repo is None:
        return refusal(401, "RepoNotFound", "Repository not found")
    if repo.gated:
        return refusal(403, "GatedRepo", f"Access to model {name} is restricted")
    data = repo.files.get(rest.partition("/")[2])
    if data is None:
        return refusal(404, "EntryNotFound", "Entry not found")
    return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": repo.sha}, data


def api(hub: Hub, method: str, parts: list[str], body: bytes) -> Answer:
    if parts == ["validate-yaml"]:
        return said({"errors": [], "warnings": []})
    if parts[:2] == ["repos", "create"]:
        return create(hub, json.loads(body))
    repo, (verb, revision, *_) = hub.repos.get("/".join(parts[1:3])), [*parts[3:], "", ""]
    if repo is None:
        return refusal(401, "RepoNotFound", "Repository not found")
    if verb and revision not in ("main", repo.sha):
        return refusal(404, "RevisionNotFound", "Invalid rev id")
    if verb == "tree":
        return said(
            [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in repo.files.items()
            ]
        )
    if verb == "preupload":
        return said(
            {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
            }
        )
    if verb == "commit":
        return commit(hub, repo, "/".join(parts[1:3]), body)
    about = {"id": "/".join(parts[1:3]), "sha": repo.sha, "private": repo.private, "gated": repo.gated}
    return said(about | {"siblings": [{"rfilename": name} for name in repo.files]})


def create(hub: Hub, asked: dict) -> Answer:
    name = f"{asked['organization']}/{asked['name']}"
    if hub.readonly:
        return refusal(403, "", "You don't have the rights to create a model under this namespace")
    if name in hub.repos:
        return said({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
    hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
    return said({"url": f"{hub.url}/{name}"})


def commit(hub: Hub, repo: Repo, name: str, body: bytes) -> Answer:
    for line in map(json.loads, body.splitlines()):
        if line["key"] == "file":
            repo.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    url = f"{hub.url}/{name}/commit/{repo.sha}"
    return said({"success": True, "commitOid": repo.sha, "commitUrl": url, "hookOutput": ""})


def said(value: object, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def refusal(status: int, code: str, message: str) -> Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": message}, json.dumps({"error": message}).encode()
