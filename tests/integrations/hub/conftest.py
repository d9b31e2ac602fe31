"""A hub on this machine: the few addresses that its client asks for, repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Hub:
    """Repositories by name, each with its files at every revision.

    Attributes:
        files: Contents by `(repository, revision)` and name.
        asked: Methods and paths of all requests.
        address: Where it listens.
    """

    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add files on top of the newest; the new commit, which `main` then is."""
        whole = {**self.files.get((name, "main"), {}), **files}
        commit = hashlib.sha1(repr(sorted(whole.items())).encode()).hexdigest()
        self.files[name, "main"] = self.files[name, commit] = whole
        return commit


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, status: int, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            name, _, rest = self.path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            if (name, "main") not in hub.files:
                return self.reply(404, b"", X_Error_Code="RepoNotFound")
            if (name, revision) not in hub.files:
                return self.reply(404, b"", X_Error_Code="RevisionNotFound")
            held = hub.files[name, revision]
            newest = next(
                c for (n, c), f in hub.files.items() if n == name and c != "main" and f == held
            )
            if file not in held:
                return self.reply(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=newest)
            etag = f'"{hashlib.sha1(held[file]).hexdigest()}"'
            return self.reply(200, held[file], ETag=etag, X_Repo_Commit=newest)

        def do_POST(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("authorization") != "Bearer hf_test":
                return self.reply(401, b"{}")
            if self.path == "/api/repos/create":
                data = json.loads(body)
                name = f"{data['organization']}/{data['name']}"
                hub.files.setdefault((name, "main"), {})
                return self.answer({"url": f"{hub.address}/{name}"})
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                files = [
                    {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for each in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            commit = hub.commit(name, files)
            url = f"{hub.address}/{name}/commit/{commit}"
            return self.answer({"commitUrl": url, "commitOid": commit})

        def answer(self, data: dict[str, Any]) -> None:
            self.reply(200, json.dumps(data).encode(), Content_Type="application/json")

    return Handler


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(found))
    server.daemon_threads = True
    found.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield found
    server.shutdown()
    server.server_close()
    thread.join()
