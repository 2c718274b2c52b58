"""Whether the Hub answers: asked for real, of servers on this machine that answer well, badly or never."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from contextlib import contextmanager
from unittest import mock

import pytest
from huggingface_hub import constants

from peftlib.errors import UserError
from peftlib.hub import Account, is_public, signed_in
from tests.launching import run_python
from tests.local_hub import local_hub

# Prints what `hub_access` says, as a user's command would see it.
ASK = """
import time
import huggingface_hub.errors
from peftlib.errors import UserError
from peftlib.hub import hub_access
start = time.monotonic()
try:
    print(hub_access("owner/name", repo_type="model", flag="--flag", ways_out="the way out"))
except UserError as error:
    print(f"UserError {error}")
print(time.monotonic() - start)
"""
UNREACHABLE = "UserError --flag: the Hugging Face Hub cannot be reached"


def ask(folder, endpoint="http://127.0.0.1:9", offline="0"):
    """Return the output, and the seconds that the question took, imports excluded; nobody listens at the default."""
    changes = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HOME": str(folder / "hf")}
    done = run_python("-c", ASK, cwd=folder, seconds=30, **changes)
    assert done.returncode == 0, done.stderr
    said, seconds = done.stdout.strip().rsplit("\n", 1)
    return said, float(seconds)


@contextmanager
def hub(status, content, error_code=None):
    """A server that gives every request the same answer."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(content).encode()
            self.send_response(status)
            if error_code is not None:
                self.send_header("X-Error-Code", error_code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def cache_a_copy(folder):
    """The layout of `huggingface_hub`'s cache, with one file of one model."""
    repo = folder / "hf" / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (repo / "snapshots" / ("0" * 40) / "config.json").write_text("{}")


def test_an_answer_is_an_answer(tmp_path):
    with hub(200, {"id": "owner/name"}) as endpoint:
        assert ask(tmp_path, endpoint)[0] == "True"


def test_an_unknown_name_says_so(tmp_path):
    with hub(404, {"error": "not found"}, "RepoNotFound") as endpoint:
        said, _ = ask(tmp_path, endpoint)
    assert said.startswith("UserError --flag: the Hub has no model owner/name")
    assert "the way out" in said


def test_a_gated_name_says_how_to_get_in(tmp_path):
    with hub(403, {"error": "gated"}, "GatedRepo") as endpoint:
        said, _ = ask(tmp_path, endpoint)
    assert said.startswith("UserError --flag: owner/name is gated")
    assert "hf auth login" in said


def test_a_server_in_trouble_is_an_unreachable_one(tmp_path):
    with hub(500, {"error": "trouble"}) as endpoint:
        assert ask(tmp_path, endpoint)[0].startswith(UNREACHABLE)


@pytest.mark.parametrize(
    ("endpoint", "offline"),
    [("http://127.0.0.1:9", "0"), ("http://no-such-host.invalid", "0"), ("http://127.0.0.1:9", "1")],
    ids=["refused", "no such name", "told to be offline"],
)
def test_no_connection_is_one_error_with_the_way_out(tmp_path, endpoint, offline):
    said, seconds = ask(tmp_path, endpoint, offline)
    assert said.startswith(UNREACHABLE)
    assert said.endswith("use the way out")
    assert seconds < 10


def test_what_can_be_no_name_is_not_called_unreachable(tmp_path):
    done = run_python("-c", ASK.replace("owner/name", "my model"), cwd=tmp_path, HF_HUB_OFFLINE="0")
    assert done.stdout.startswith("UserError --flag: no such folder, and not a valid name on the Hub; use the way out")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_an_answer_a_cached_copy_will_do(tmp_path, offline):
    cache_a_copy(tmp_path)
    changes = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline, "HF_HOME": str(tmp_path / "hf")}
    done = run_python("-c", ASK, cwd=tmp_path, seconds=30, **changes)
    assert done.stdout.startswith("False\n")
    assert re.fullmatch(r"warning: the Hub does not answer \(\w+\); reading owner/name from the cache\n", done.stderr)


def test_an_answer_counts_more_than_a_cached_copy(tmp_path):
    cache_a_copy(tmp_path)
    with hub(404, {"error": "not found"}, "RepoNotFound") as endpoint:
        assert ask(tmp_path, endpoint)[0].startswith("UserError --flag: the Hub has no model")


@pytest.mark.launch
def test_a_host_that_never_answers_is_given_up_in_under_ten_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said, seconds = ask(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert said.startswith(UNREACHABLE)
    assert said.endswith("use the way out")
    assert seconds < 10


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_hub_says_whose_token_it_is():
    with local_hub():
        assert signed_in("--flag") == Account("me", ("acme",), "write")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "--flag: no token for the Hub on this machine; run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "--flag: the Hub rejects this machine's token; set another HF_TOKEN"),
    ],
)
def test_a_token_that_is_missing_or_wrong_names_the_way_to_one(token, message):
    with local_hub(), mock.patch.dict("os.environ", HF_TOKEN=token):
        assert refusal(signed_in, "--flag") == message


def test_a_stored_token_that_is_wrong_is_replaced_by_signing_in(tmp_path):
    (tmp_path / "token").write_text("hf_wrong")
    stored = mock.patch.object(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with local_hub(), mock.patch.dict("os.environ", HF_TOKEN=""), stored:
        assert refusal(signed_in, "--flag").endswith("run `hf auth login --force`")


def test_offline_nobody_is_asked():
    with local_hub() as hub, mock.patch.object(constants, "HF_HUB_OFFLINE", True):
        assert refusal(signed_in, "--flag") == "--flag: HF_HUB_OFFLINE is set, and this needs the Hub; unset it"
    assert hub.requests == []


def test_a_hub_in_trouble_says_nothing():
    with local_hub() as hub:
        hub.broken = "whoami-v2"
        assert refusal(signed_in, "--flag").startswith("--flag: the Hugging Face Hub cannot be reached (HfHubHTTPError")
        hub.broken = "me/reviews"
        assert refusal(is_public, "me/reviews", "--flag").startswith("--flag: the Hugging Face Hub cannot be reached")


def test_who_may_read_a_model():
    with local_hub() as hub:
        hub.repositories = {"me/open": {}, "me/closed": {}}
        hub.public = {"me/open"}
        assert [is_public(f"me/{name}", "--flag") for name in ("open", "closed", "none")] == [True, False, False]
