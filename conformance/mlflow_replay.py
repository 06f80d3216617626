"""What the real `mlflow server` answers, and what `highroad track` answers to the same calls.

`mlflow_scenario.py` says what is called: real client calls and hand-written edge cases. This file plays them against a
server, takes out of each answer what must differ between two servers (ids, times), and compares.

    python conformance/mlflow_replay.py --record                  start `mlflow server`, write mlflow_answers.jsonl
    python conformance/mlflow_replay.py --uri http://HOST:PORT    compare a server with the record, print what differs
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

HERE = Path(__file__).resolve().parent
ANSWERS = HERE / "mlflow_answers.jsonl"
DIFFERENCES = HERE / "mlflow_differences.json"
START_LIMIT_S = 180
LONGEST_TEXT = 300
SEE_DOCS = "See the API docs for more information about request parameters."
USUAL_CLASSES = {
    "INVALID_PARAMETER_VALUE": ["KAM00", "INVALID_PARAMETER_VALUE"],
    "BAD_REQUEST": ["KAM00", "INVALID_PARAMETER_VALUE"],
    "RESOURCE_ALREADY_EXISTS": ["KAM00", "RESOURCE_ALREADY_EXISTS"],
    "RESOURCE_DOES_NOT_EXIST": ["KAM00", "RESOURCE_NOT_FOUND"],
    "INTERNAL_ERROR": ["XXM00", "CLIENT_INTERNAL_ERROR"],
}

NEW_IDS = re.compile(r"\b(?:[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b")
EXPERIMENT = re.compile(r"(mlflow-artifacts:/|artifacts/|xperiment |xperiment with id |xperiment with id=|: ')(\d+)\b")
AN_ID = re.compile(NEW_IDS.pattern + r"|(?<=/)\d+(?=/)")
RUN_NAME = re.compile(r"^[a-z]+-[a-z]+-\d+$")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?")
NOW_MS = 1_500_000_000_000
ABOUT_THE_CLIENT = re.compile(r"^mlflow\.(user|source\.)")
"""Lists whose order says nothing, and what to order them by."""
UNORDERED = {"tags": "key", "params": "key", "metrics": "key", "aliases": "alias", "model_params": "name",
             "dataset_summaries": "digest"}  # fmt: skip


class Play:
    """Sends calls to one server and keeps the exchanges, those of real clients included."""

    def __init__(self, uri: str):
        self.uri = uri
        self.exchanges: list[dict[str, Any]] = []
        self.name = "?"
        self.names: dict[str, int] = {}
        self.session = requests.Session()

    def step(self, name: str) -> None:
        """What follows is called `name` in the record."""
        self.name = name

    def call(self, name: str, method: str, path: str, body: Any = None, query: Any = None, **more: Any) -> dict:
        """One raw call. `path` is below `/api/2.0/mlflow/` unless it begins with a slash."""
        self.step(name)
        url = self.uri + (path if path.startswith("/") else f"/api/2.0/mlflow/{path}")
        if body is not None:
            more["json"] = body
        response = self.session.request(method, url, params=query, **more)
        with contextlib.suppress(ValueError):
            return response.json()
        return {}

    def keep(self, request: requests.PreparedRequest, response: requests.Response, is_stream: bool) -> None:
        """One exchange: the `n`th of its name has the name `name #n`. Those of real clients are named by what they call:
        some calls they send at once, in any order."""
        path = request.path_url.split("?")[0]
        name = self.name
        if name.startswith("client: "):
            name = f"{name} {request.method} {AN_ID.sub('<id>', path)}"
        n = self.names[name] = self.names.get(name, 0) + 1
        name = f"{name} #{n}" if n > 1 else name
        body = "<stream>" if is_stream else body_of(response)
        self.exchanges.append(
            {"name": name, "method": request.method, "path": path, "status": response.status_code, "body": body}
        )

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Every request this process sends to the server is kept, whoever sends it."""
        send = requests.Session.send

        def kept(session: requests.Session, request: requests.PreparedRequest, **more: Any) -> requests.Response:
            response = send(session, request, **more)
            if request.url.startswith(self.uri):
                self.keep(request, response, bool(more.get("stream")))
            return response

        requests.Session.send = kept
        try:
            yield
        finally:
            requests.Session.send = send


def body_of(response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return f"<{len(response.content)} bytes>"


def play(uri: str) -> list[dict[str, Any]]:
    """The exchanges of the whole scenario with the server at `uri`, normalised."""
    import mlflow_scenario

    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
    player = Play(uri)
    with player.recording():
        mlflow_scenario.play(player)
    return Normal().exchanges(player.exchanges)


# The client sets this tag of a prompt in a thread, so that a reply holds it or does not.
SET_BESIDE = "_mlflow_experiment_ids"


class Normal:
    """Ids are told by the exchange in which they first appear, so that two servers agree on which is which; times as `<time>`."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.n_exchanges = 0
        self.n_new = 0

    def exchanges(self, exchanges: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.exchange(**each) for each in exchanges]

    def exchange(self, name: str, status: int, body: Any, **_: Any) -> dict[str, Any]:
        """What is called is told by the name; of an error only what is not told by its code is kept."""
        self.n_exchanges, self.n_new = self.n_exchanges + 1, 0
        body = self.value(body)
        usual = USUAL_CLASSES.get(body.get("error_code")) if isinstance(body, dict) else None
        if usual and [body.get("sqlstate"), body.get("error_class")] == usual:
            body = f"{body['error_code']}: {body['message'].replace(SEE_DOCS, '[docs]')}"
        return {"name": AN_ID.sub("<id>", name), "status": status, "body": body}

    def text(self, text: str) -> str:
        text = NEW_IDS.sub(lambda found: self.id(found[0]), text)
        text = EXPERIMENT.sub(lambda found: found[1] + self.experiment(found[2]), text)
        text = MOMENT.sub("<time>", text)
        if RUN_NAME.match(text):
            return "<name>"
        return text if len(text) <= LONGEST_TEXT else f"{text[:60]}… {len(text)} characters"

    def id(self, value: str) -> str:
        if value not in self.ids:
            self.n_new += 1
            self.ids[value] = f"<{self.n_exchanges}.{self.n_new}>"
        return self.ids[value]

    def experiment(self, value: str) -> str:
        return value if value in ("0", "424242") else self.id(value)

    def value(self, value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            if key == "experiment_id":
                return self.experiment(value)
            return "<token>" if key == "next_page_token" else self.text(value)
        if isinstance(value, int) and not isinstance(value, bool) and value > NOW_MS and value < 10 * NOW_MS:
            return "<time>"
        if isinstance(value, list):
            value = [each for each in value if not (isinstance(each, dict) and each.get("key") == SET_BESIDE)]
            by = UNORDERED.get(key)
            if by and all(isinstance(each, dict) for each in value):
                value = sorted(value, key=lambda each: (str(each.get(by)), each.get("step", 0), str(each.get("context", ""))))
            return [self.value(each) for each in value]
        if isinstance(value, dict):
            if ABOUT_THE_CLIENT.match(str(value.get("key"))):
                return {"key": value["key"], "value": "<client>"}
            return without_empty({name: self.value(each, name) for name, each in sorted(value.items())})
        return value


def without_empty(json_object: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty: some of it MLflow writes and some it leaves out, and clients read both alike."""
    return {name: each for name, each in json_object.items() if each not in ("", [], {})}


def differences(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, str]:
    """What differs, by the name of the exchange."""
    found = {}
    answers = {each["name"]: each for each in ours}
    for one in theirs:
        other = answers.pop(one["name"], None)
        if other is None:
            found[one["name"]] = "not called"
        elif (kind := kind_of(one, other)) != "same":
            found[one["name"]] = kind
    return found | dict.fromkeys(answers, "not in the record")


def kind_of(one: dict[str, Any], other: dict[str, Any]) -> str:
    if one["status"] != other["status"]:
        return f"status {one['status']} -> {other['status']}"
    if one["body"] == other["body"]:
        return "same"
    codes = [code_of(each) for each in (one, other)]
    if all(codes):
        return "message" if codes[0] == codes[1] else f"code {codes[0]} -> {codes[1]}"
    return "body"


def code_of(exchange: dict[str, Any]) -> str | None:
    body = exchange["body"]
    if exchange["status"] < 400 or body is None:
        return None
    return body.split(":")[0] if isinstance(body, str) else body.get("error_code")


def unexplained(found: dict[str, str], explained: list[dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """The differences that no explanation covers, and the explanations that cover none.

    An explanation covers one exchange that differs in one way, its `kind`.
    """
    of = {(each["name"], each["kind"]) for each in explained}
    unused = of - set(found.items())
    left = {}
    for name, kind in found.items():
        if (name, kind) not in of:
            left[name] = kind
    return left, sorted(f"{name} ({kind})" for name, kind in unused)


@contextlib.contextmanager
def mlflow_server() -> Iterator[str]:
    """The real server on a free port over an empty directory."""
    with tempfile.TemporaryDirectory() as home, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", f"{home}/artifacts"),
        ]
        with (Path(home) / "server.log").open("wb") as log:
            server = subprocess.Popen(command, cwd=home, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            # The server starts workers of its own, some in sessions of their own.
            for child in psutil.Process(server.pid).children(recursive=True):
                child.terminate()
            server.terminate()
            server.wait(timeout=60)


def wait_for(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.2)
    raise RuntimeError(f"`mlflow server` did not answer at {url} within {START_LIMIT_S} s")


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ANSWERS.read_text().splitlines()]


def explanations() -> list[dict[str, Any]]:
    """What `mlflow_differences.json` explains. Each names one of the reasons the file gives."""
    text = json.loads(DIFFERENCES.read_text())
    each = [{"name": name, "kind": kind, "why": text["reasons"][why]}
            for why, kinds in text["differences"].items() for kind, names in kinds.items() for name in names]
    unused = set(text["reasons"]) - set(text["differences"])
    assert not unused, f"{DIFFERENCES.name} gives reasons that nothing has: {unused}"
    return each


def report(theirs: list[dict[str, Any]], ours: list[dict[str, Any]], names: dict[str, str]) -> str:
    pairs = [{each["name"]: each for each in side} for side in (theirs, ours)]
    return "\n".join(
        f"{name}: {kind}\n  MLflow:   {short(pairs[0].get(name))}\n  Highroad: {short(pairs[1].get(name))}"
        for name, kind in names.items()
    )


def short(exchange: dict[str, Any] | None) -> str:
    if exchange is None:
        return "-"
    return f"{exchange['status']} {json.dumps(exchange['body'], ensure_ascii=False)[:1500]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="play against the real server and write the record")
    parser.add_argument("--uri", help="compare this server with the record")
    options = parser.parse_args()
    if options.record:
        with contextlib.ExitStack() as stack:
            answers = play(options.uri or stack.enter_context(mlflow_server()))
        lines = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in answers]
        ANSWERS.write_text("\n".join(lines) + "\n")
        print(f"{len(answers)} exchanges, {ANSWERS.stat().st_size // 1024} KB")
        return 0
    theirs, ours = recorded(), play(options.uri)
    left, unused = unexplained(differences(theirs, ours), explanations())
    print(report(theirs, ours, left))
    print(f"{len(theirs)} exchanges, {len(left)} unexplained differences; explanations of nothing: {unused}")
    return 1 if left or unused else 0


if __name__ == "__main__":
    sys.exit(main())
