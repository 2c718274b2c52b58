"""A Hugging Face Hub on this machine: as much of its API as the real client needs to push a model."""

from __future__ import annotations

import base64
import http.server
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from huggingface_hub import constants

TOKEN = "hf_s3cr3tT0ken"


@dataclass
class LocalHub:
    """What it answers, and what it was told.

    Attributes:
        role: what the token may do.
        broken: the end of a path that is answered with 500.
        created: the bodies of requests for repositories.
        repositories: name -> the files in it, by name.
        commits: for each commit its repository, the files that it added, and the names that it deleted.
        requests: method and path of each request.
    """

    endpoint: str = ""
    role: str = "write"
    broken: str | None = None
    created: list[dict[str, Any]] = field(default_factory=list)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    commits: list[tuple[str, dict[str, bytes], list[str]]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to come here."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any]:
        """Status and content; the paths are those of https://huggingface.co/docs/hub/api."""
        self.requests.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if self.broken is not None and path.endswith(self.broken):
            return 500, {"error": "a bad day"}
        if path == "/api/whoami-v2":
            organisations = [{"name": "acme"}]
            return 200, {"name": "me", "orgs": organisations, "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if not path.startswith("/api/models/"):
            return 404, {"error": "no such page"}
        owner, name, *verb = path.removeprefix("/api/models/").split("/")
        place = f"{owner}/{name}"
        if place not in self.repositories:
            return 404, {"error": "Repository not found"}
        files = self.repositories[place]
        if verb == []:
            return 200, {"id": place, "private": place not in self.public}
        if verb == ["tree", "main"]:
            return 200, [{"type": "file", "path": name, "size": len(files[name]), "oid": "0"} for name in files]
        if verb == ["preupload", "main"]:
            asked = [one["path"] for one in json.loads(body)["files"]]
            return 200, {"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
        assert verb == ["commit", "main"], path
        return self._commit(place, [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        self.created.append(wanted)
        place = f"{wanted['organization']}/{wanted['name']}"
        known = place in self.repositories
        self.repositories.setdefault(place, {".gitattributes": b""})
        if not known and wanted.get("visibility") != "private":
            self.public.add(place)
        return (409 if known else 200), {"url": f"{self.endpoint}/{place}"}

    def _commit(self, place: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        deleted = [line["value"]["path"] for line in lines if line["key"] == "deletedFile"]
        self.commits.append((place, added, deleted))
        self.repositories[place] = {
            name: content for name, content in (self.repositories[place] | added).items() if name not in deleted
        }
        return 200, {"commitUrl": f"{self.endpoint}/{place}/commit/{'1' * 40}", "commitOid": "1" * 40}


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A running one, to which the client in this process and in those that are forked off it goes, with its token."""
    hub = LocalHub()

    class Answer(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status, content = hub.answer(self.command, path, self.headers.get("Authorization"), body)
            text = json.dumps(content).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _answer

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        # The client reads these when it is imported.
        with (
            mock.patch.object(constants, "ENDPOINT", hub.endpoint),
            mock.patch.object(constants, "HF_HUB_OFFLINE", False),
            mock.patch.object(constants, "HF_TOKEN_PATH", os.devnull),  # not that of whoever runs the tests
            mock.patch.dict("os.environ", hub.environment),
        ):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
