"""A team's own `mlflow server` as the registry: push, promote, override, roll back, serve and review, with verdicts that travel with
the package and count at load whoever moved the alias."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import serving
from mlflow import MlflowClient

WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
N_CASES = 80
WAIT_LIMIT_S = 30


@pytest.fixture(scope="module")
def server(mlflow_server: str) -> Iterator[str]:
    yield mlflow_server
    client = MlflowClient(mlflow_server, registry_uri=mlflow_server)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return MlflowClient(server, registry_uri=server)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call, server) -> Path:  # noqa: F811
    """`a` with a verdict that passes as `router:1`, `b` with one that fails as `router:2`, on MLflow's server."""
    folder = tmp_path_factory.mktemp("desk")
    for name in "ab":
        call("pack", ROOT / "conformance" / "packages" / f"classify-{name}", "-o", name, cwd=folder)
    texts = [" ".join(WORDS[(n // 12**at + at * n) % 12] for at in range(3 + n % 3)) + f" {n}" for n in range(N_CASES)]
    cases = [{"id": f"c{n}", "input": {"text": text}, "expected": "benign"} for n, text in enumerate(texts)]
    write(folder / "golden.jsonl", cases)
    call("eval", "a", "--golden", "golden.jsonl", "--out", "a.json", cwd=folder)
    right = [case["value"]["class"]["label"] for case in json.loads((folder / "a.json").read_text())["cases"]]
    write(folder / "golden.jsonl", [case | {"expected": label} for case, label in zip(cases, right, strict=True)])
    bless(call, "golden.jsonl", folder)
    (folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nfloor = 0.5\n")
    call("gate", "a", "--baseline", "b", "--golden", "golden.jsonl", cwd=folder)
    call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", cwd=folder, code=1)
    for name, version in {"a": "router:1", "b": "router:2"}.items():
        pushed = call("push", name, "router", cwd=folder, HIGHROAD_TRACKING_URI=server)
        assert pushed.stdout.strip() == version
    return folder


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(call, desk, server) -> Callable:  # noqa: F811
    return lambda *args, **options: call(*args, **({"cwd": desk, "HIGHROAD_TRACKING_URI": server} | options))


def champion(client: MlflowClient) -> int:
    return int(client.get_model_version_by_alias("router", "champion").version)


def ask(url: str) -> dict[str, str]:
    body = json.dumps({"input": "what is this"}).encode()
    request = urllib.request.Request(f"{url}/v1/moderations", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return {name: reply.headers[f"x-highroad-{name}"] for name in ["version", "evidence", "override"]}


def failure(url: str) -> dict | None:
    with urllib.request.urlopen(f"{url}/v1/highroad/status", timeout=30) as reply:
        return json.loads(reply.read())["members"][0]["failure"]


def wait(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_verdict_counts_on_a_server_that_knows_nothing_of_verdicts(
    run: Callable, client: MlflowClient, server: str, desk: Path, highroad: Path, tmp_path: Path
) -> None:
    assert json.loads(run("promote", "router", 1, "--by", "ann", "--why", "first", "--json").stdout)["action"] == "promote"
    assert champion(client) == 1
    refused = run("promote", "router", 2, code=1).stderr
    assert "`router:2` may not go to production: the verdict is fail" in refused and champion(client) == 1

    command = [str(highroad), "serve", "router@champion", "--listen", "127.0.0.1:0"]
    env = os.environ | {"HIGHROAD_HOME": str(tmp_path / "state"), "HIGHROAD_TRACKING_URI": server}
    with serving(command, tmp_path / "serve.log", env=env, cwd=tmp_path) as url:
        assert ask(url) == {"version": "router:1", "evidence": "bit-exact", "override": None}
        # By hand, past every check: nothing but the load is left to refuse it.
        client.set_registered_model_alias("router", "champion", "2")
        wait(lambda: failure(url))
        told = failure(url)
        assert told["version"] == "router:2" and "the verdict is fail" in told["reason"]
        assert ask(url)["version"] == "router:1", "the last good one goes on"
        back = json.loads(run("rollback", "router", "--by", "bob", "--why", "moved by hand", "--json").stdout)
        assert (back["from"], back["to"], champion(client)) == (2, 1, 1)
        wait(lambda: failure(url) is None)

        named = ["--override", "--by", "eve", "--why", "an outage", "--expires", "1d"]
        moved = json.loads(run("promote", "router", 2, *named, "--json").stdout)
        assert (moved["action"], moved["override"]["missing"]["outcome"]) == ("override", "fail")
        wait(lambda: ask(url)["version"] == "router:2")
        assert ask(url)["evidence"] == "override" and ask(url)["override"] == f"until {moved['override']['expires_at']}"
        assert run("rollback", "router").stdout.strip() == "router@champion -> router:1"
        wait(lambda: ask(url)["version"] == "router:1")

    actions = [move["action"] for move in json.loads(run("audit", "router", "--json").stdout)]
    assert actions == ["rollback", "override", "rollback", "promote"]
    assert "eve overrode the gate until" in run("audit").stdout
    assert json.loads(run("rollback", "router", "--json").stdout)["to"] is None, "a first version is taken away"
    assert "router" not in [model.name for model in client.search_registered_models() if model.aliases]
    assert "not in the registry" in run("rollback", "router", code=2).stderr

    # Another machine, which ran no gate: verdict and override come with the package.
    review = run("review", "router:2", "--baseline", "router:1", "--golden", desk / "golden.jsonl", "--json", home=tmp_path / "other")
    lines = {line["id"]: line for line in json.loads(review.stdout)["questions"]}
    assert lines["regressions"]["status"] == "fail", lines["regressions"]
    assert "router@champion: eve overrode the gate until" in str(lines["regressions"]["details"])


def test_a_rollout_is_held_by_tags_and_moves_the_alias_on_its_own(
    run: Callable, client: MlflowClient, server: str, desk: Path, highroad: Path, tmp_path: Path
) -> None:
    source = desk / "source"
    source.mkdir()
    for file in (ROOT / "conformance" / "packages" / "classify-a").iterdir():
        told = file.read_bytes()
        (source / file.name).write_bytes(told.replace(b"highroad tests", b"highroad tests, again") if file.suffix == ".toml" else told)
    run("pack", source, "-o", "same")
    run("gate", "same", "--baseline", "a", "--golden", "golden.jsonl")
    version = run("push", "same", "router").stdout.strip().removeprefix("router:")
    run("promote", "router", 1)
    command = [str(highroad), "serve", "router@champion", "--listen", "127.0.0.1:0"]
    env = os.environ | {"HIGHROAD_HOME": str(tmp_path / "state"), "HIGHROAD_TRACKING_URI": server}
    with serving(command, tmp_path / "serve.log", env=env, cwd=tmp_path) as url:
        rules = ["--max-differ", "30%", "--max-errors", "30%"]
        rollout = run("deploy", "router", version, "--shadow", "100%", *rules, "--by", "ann", "--why", "the same").stdout.strip()
        wait(lambda: ask(url)["version"] == f"router:{version}")
        tag = f"highroad.rollout-end.{rollout}.champion"
        wait(lambda: tag in client.get_registered_model("router").tags)
        assert json.loads(client.get_registered_model("router").tags[tag])["outcome"] == "promoted"
        assert str(champion(client)) == version
    moved = json.loads(run("audit", "router", "--json").stdout)[0]
    assert moved["by"] == "ann" and moved["rehearsal"]["passed"] and moved["why"] == f"rollout {rollout}: the same"
    # The review takes the record of it; `a` never met traffic beside another.
    for reviewed, baseline, status in [(f"router:{version}", "router:1", "pass"), ("router:1", f"router:{version}", "not_evidenced")]:
        written = json.loads(run("review", reviewed, "--baseline", baseline, "--golden", "golden.jsonl", "--json").stdout)
        tests = {line["id"]: line for section in written["ml_test_score"]["sections"] for line in section["tests"]}
        assert tests["I6"]["status"] == status, tests["I6"]
        if status == "pass":
            assert "shadow of 100 % passed" in tests["I6"]["summary"] and tests["I6"]["evidence"] == [f"rollout {rollout}"]


@pytest.mark.parametrize("registry", ["mlflow_server", "tracking_uri"])
def test_what_was_promoted_serves_on_after_a_later_verdict_that_fails(
    registry: str, request: pytest.FixtureRequest, run: Callable, desk: Path, highroad: Path, tmp_path: Path
) -> None:
    uri, name = request.getfixturevalue(registry), f"judged-{registry.split('_')[0]}"
    on = {"HIGHROAD_TRACKING_URI": uri}
    passing = run("gate", "a", "--baseline", "b", "--golden", "golden.jsonl").stderr.strip().splitlines()[-1]
    run("push", "a", name, "--verdict", passing, **on)
    run("promote", name, 1, **on)
    (tmp_path / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nslice = 'all'\nfloor = 0.999\n[slice]\nall = 'words > 0'\n")
    home = tmp_path / "later"
    judged = run("gate", "a", "--baseline", "b", "--golden", "golden.jsonl", "--gates", tmp_path / "gates.toml", home=home, code=None)
    assert judged.returncode in (1, 3), judged.stdout
    told = run("push", "a", name, home=home, **on).stderr
    assert f"warning: `{name}:1` may not be promoted: the verdict is " in told and 'slice "all": at least 99.9 %' in told, told
    assert f"`{name}@champion` is `{name}:1` and goes on serving" in told
    assert "the newest verdict on" in run("status", name, code=1, **on).stdout
    refused = run("promote", name, 1, code=1, **on).stderr
    assert "the verdict is " in refused and 'slice "all": at least 99.9 %' in refused

    command = [str(highroad), "serve", f"{name}@champion", "--listen", "127.0.0.1:0"]
    env = os.environ | {"HIGHROAD_HOME": str(tmp_path / "state"), "HIGHROAD_TRACKING_URI": uri}
    for _ in range(2):  # From the registry, then beside what was kept of it.
        with serving(command, tmp_path / "serve.log", env=env, cwd=tmp_path) as url:
            assert ask(url) == {"version": f"{name}:1", "evidence": "bit-exact", "override": None}
            assert failure(url) is None


def test_a_version_without_a_verdict_is_not_served_though_the_alias_names_it(
    run: Callable, client: MlflowClient, server: str, tmp_path: Path
) -> None:
    run("push", "b", "bare", home=tmp_path / "no verdicts")
    assert "it has no verdict" in run("promote", "bare", 1, code=1).stderr
    client.set_registered_model_alias("bare", "champion", "1")
    told = run("serve", "bare@champion", "--listen", "127.0.0.1:0", home=tmp_path / "state", code=2).stderr
    assert "has no verdict" in told
    assert "nothing records where `bare@champion` was before" in run("rollback", "bare", code=2).stderr
