"""A local W&B server, with as much as `wandb sweep`, `wandb agent` and their runs need.

It implements only the protocol: GraphQL at /graphql, and the file stream for a run's history, summary and exit code.
What it receives is kept in plain dictionaries.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY, PROJECT = "somebody", "a-project"


class WandbServer:
    """One sweep and its runs.

    Args:
        points: name -> value for each run, in the order in which agents get them.

    Attributes:
        sweep: the configuration that `wandb sweep` sent.
        runs: id -> its configuration, history, summary, state and exit code.
        given: ids in the order in which agents got them; a preempted run occurs twice.
        stop: tells which runs to stop, like hyperband or the stop button.
    """

    def __init__(self, points: list[dict[str, Any]]) -> None:
        self.points = points
        self.sweep: dict[str, Any] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.given: list[str] = []
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.stop: Callable[[str], bool] = lambda run: False
        self.url = ""

    def answer(self, query: str, variables: dict[str, Any]) -> Any:
        """Answer a GraphQL request by the name of its operation."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found.group(1) if found else query
        self.operations.append(name)
        project = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}}
        if name == "UpsertSweep":
            self.sweep = yaml.safe_load(variables["config"])
            return {"upsertSweep": {"sweep": {"name": "s1", "project": project}, "configValidationWarnings": []}}
        if name == "SweepWithRuns":
            facts = {"id": "S", "name": "s1", "state": "RUNNING", "config": yaml.safe_dump(self.sweep)}
            return {"project": {"sweep": {**facts, "method": self.sweep["method"], "runs": {"edges": []}}}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if name == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(self._commands(variables))}}
        if name == "UpsertBucket":
            run = self._run(variables["name"])
            if run["state"] == "pending":
                run["state"] = "running"
            run["config"] |= json.loads(variables.get("config") or "{}")
            run |= {key: variables[key] for key in ("sweep", "program", "groupName") if variables.get(key)}
            bucket = {"id": "b", "name": variables["name"], "displayName": variables["name"], "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "sweepName": "s1", "historyLineCount": 0}, "inserted": True}}
        if name == "RunResumeStatus":
            return {"model": {**project, "bucket": self._so_far(variables["name"])}}
        if name in ("Viewer", "ViewerFields"):
            return {"viewer": {"id": "v", "username": ENTITY, "entity": ENTITY, "flags": "{}", "teams": {"edges": []}}}
        if name == "RunStoppedStatus":
            return {"project": {"run": {"stopped": self.stop(variables["runId"])}}}
        if name == "CreateRunFiles":
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
        self.unknown.append(name)
        return None

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Receive a part of a run's history and summary."""
        run = self._run(run_id)
        for name, part in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"] if name.endswith((".jsonl", ".json"))]
            if name == "wandb-history.jsonl":
                run["history"] += lines
            elif name == "wandb-summary.json" and lines:
                run["summary"] = lines[-1]
        if body.get("preempting"):
            run["state"] = "preempting"
        if body.get("complete"):
            run["exitcode"] = body["exitcode"]
            run["state"] = _state_after(run["state"], body["exitcode"])

    def _run(self, run_id: str) -> dict[str, Any]:
        fresh = {"config": {}, "history": [], "summary": {}, "state": "pending", "exitcode": None}
        return self.runs.setdefault(run_id, fresh)

    def _so_far(self, run_id: str) -> dict[str, Any]:
        """Return what a client that resumes a run is told."""
        run = self._run(run_id)
        return {
            "id": "b", "name": run_id, "displayName": run_id, "sweepName": "s1", "tags": [],
            "historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]), "eventsTail": "[]",
            "summaryMetrics": json.dumps(run["summary"]), "config": json.dumps(run["config"]),
            "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip

    def _commands(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        alive = json.loads(variables["runState"])
        if alive:
            return [{"type": "stop", "run_id": run} for run in alive if self.stop(run)]
        for run_id, run in self.runs.items():
            if run["state"] == "preempted":
                run["state"] = "pending"
                self.given.append(run_id)
                # Its whole configuration, not only the sweep's parameters: https://github.com/wandb/wandb/issues/9143
                return [{"type": "resume", "run_id": run_id, "program": self.sweep["program"], "args": run["config"]}]
        started = len(set(self.given))
        if started == len(self.points):
            return [{"type": "exit"}]
        run_id = f"run{started}"
        point = {name: {"value": value} for name, value in self.points[started].items()}
        self.given.append(run_id)
        self._run(run_id)
        return [{"type": "run", "run_id": run_id, "program": self.sweep["program"], "args": point}]


def _state_after(state: str, exit_code: int) -> str:
    """Return the state of a run that has ended (https://docs.wandb.ai/models/sweeps/signal-handling-sweep-runs)."""
    if exit_code == 0:
        return "finished"
    if exit_code == 255:  # the client's status after a Ctrl-C
        return "killed"
    return "preempted" if state == "preempting" else "failed"


@contextmanager
def serve(points: list[dict[str, Any]]) -> Iterator[WandbServer]:
    """Serve on a free port of the loopback interface while the block runs."""
    told = WandbServer(points)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer: dict[str, Any] = {}  # for the client's telemetry
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                data = told.answer(asked["query"], asked.get("variables") or {})
                answer = {"errors": [{"message": "not known here"}]} if data is None else {"data": data}
            elif self.path.endswith("/file_stream"):
                run = self.path.split("/")[-2]
                told.stream(run, json.loads(body))
                answer = {"exitcode": None, "limits": {}, "stopped": told.stop(run)}
            self._send(answer)

        def do_GET(self) -> None:
            self._send({})

        def _send(self, answer: Any) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
