"""A hub on loopback that the real client talks to: one or more repositories, gates, tokens, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "5f0b02c75b57c5855da9ae460ce51323ea669d8a"
ACCESS, NO_ACCESS = "hf_the_token_with_access_1234567890", "hf_the_token_without_access_123456"


@dataclass
class Repository:
    """What the hub has of one model.

    Attributes:
        files: contents by path.
        gated: whether files are given only to the token with access.
        commit: what ``main`` is.
    """

    files: dict[str, bytes]
    gated: bool = False
    commit: str = COMMIT


def is_lfs(path: str) -> bool:
    """Large files are stored apart, under their sha256; the others in git, under its sha1."""
    return path.endswith((".safetensors", ".bin", ".pth"))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs(path) else git_sha1(content)


@dataclass
class Asked:
    """One request."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Fault:
    """What goes wrong with a request.

    Attributes:
        what: ``close``, ``reset`` or ``stall`` once ``after`` bytes of a file are sent; ``truncate`` it or ``flip`` a bit of it;
            ``ignore range``; or a status to answer with.
        path: of which requests, as a pattern.
        times: how often.
        after: bytes of the file that are sent before.
        headers: of the answer, where ``what`` is a status.
    """

    what: str | int
    path: str = r".*\.safetensors"
    times: int = 1_000
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """Serves ``repositories``; ``asked`` has every request in order, ``stalled`` is set when one hangs."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.stalled, self.closing = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files_sent(self) -> list[str]:
        """The names of the files that were asked for, in order; a file asked for in parts as often as that."""
        return [asked.path.rpartition("/")[2] for asked in self.asked if asked.method == "GET" and "/resolve/" in asked.path]

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def running(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """A hub for as long as the block runs."""
    with Hub(repositories) as hub:
        threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
        yield hub
        hub.closing.set()
        hub.shutdown()


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        authorization = self.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        path = unquote(self.path)
        self.server.asked.append(Asked(self.command, path, self.headers.get("Range"), token))
        if (fault := self._fault(path)) and isinstance(fault.what, int):
            return self._refuse(fault.what, **fault.headers)
        if token not in (None, ACCESS, NO_ACCESS):
            return self._refuse(401, X_Error_Message="Invalid credentials in Authorization header")
        if info := re.fullmatch(r"/api/models/(.+)/revision/([^/?]+)", path):
            return self._info(info[1], info[2])
        if tree := re.fullmatch(r"/api/models/(.+)/tree/([^/?]+)(\?.*)?", path):
            return self._tree(tree[1], tree[2])
        if file := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            return self._file(file[1], file[2], file[3], token, fault)
        return self._refuse(404)

    def _fault(self, path: str) -> Fault | None:
        for fault in self.server.faults:
            counted = isinstance(fault.what, int) or self.command == "GET"
            if counted and fault.times and re.fullmatch(fault.path, path):
                fault.times -= 1
                return fault
        return None

    def _repository(self, model: str, revision: str) -> Repository | None:
        found = self.server.repositories.get(model)
        if found is None:
            self._refuse(404 if self.headers.get("Authorization") else 401, X_Error_Code="RepoNotFound")
        elif revision not in ("main", "v1", found.commit):
            self._refuse(404, X_Error_Code="RevisionNotFound")
            return None
        return found

    def _info(self, model: str, revision: str) -> None:
        """What the revision is; only the client's own ``snapshot_download`` asks."""
        if repository := self._repository(model, revision):
            about = {"id": model, "sha": repository.commit, "siblings": [{"rfilename": path} for path in repository.files]}
            self._send(json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _tree(self, model: str, revision: str) -> None:
        """The list of files, which is public even where the files are gated."""
        if (repository := self._repository(model, revision)) is None:
            return
        entries = []
        for path, content in repository.files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if is_lfs(path):
                entry["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._send(json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _file(self, model: str, revision: str, path: str, token: str | None, fault: Fault | None) -> None:
        if (repository := self._repository(model, revision)) is None:
            return None
        if repository.gated and token != ACCESS:
            return self._refuse(401 if token is None else 403, X_Error_Code="GatedRepo")
        if path not in repository.files:
            return self._refuse(404, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.commit)
        content = repository.files[path]
        headers = {"ETag": f'"{etag(path, content)}"', "X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        what = fault.what if fault else None
        if what == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if what == "truncate":
            content = content[: len(content) // 2]
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and what != "ignore range":
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._send(content[start:], headers, status, fault if what in ("close", "reset", "stall") else None)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200, fault: Fault | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: fault.after] if fault else body)
        self.wfile.flush()
        if fault:
            self.close_connection = True
            if fault.what == "stall":
                self.server.stalled.set()
                self.server.closing.wait()
            elif fault.what == "reset":
                # Closed with the timer at zero, a socket sends RST and not FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    def _refuse(self, status: int, **headers: str) -> None:
        self._send(b"", {name.replace("_", "-"): value for name, value in headers.items()}, status)

    def log_message(self, format: str, *args: object) -> None:
        pass
