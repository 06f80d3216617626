"""Keys, tenants, rates and TLS, as real clients meet them: the openai SDK, MLflow's client, `requests` and `highroad` itself."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import mlflow
import openai
import pytest
import requests
import trustme
from conftest import serving

REPO = Path(__file__).resolve().parent.parent
MUST_BE_SEEN_WITHIN_S = 20


class Site:
    """`highroad up` with keys and a certificate."""

    def __init__(self, binary: Path, home: Path) -> None:
        self.binary, self.home, self.url, self.authority = binary, home, "", trustme.CA()
        self.ca, self.access = home / "ca.pem", home / "access.toml"
        self.authority.cert_pem.write_to_path(self.ca)
        self.certify("localhost")

    def certify(self, *names: str) -> None:
        certificate = self.authority.issue_cert(*names, "127.0.0.1")
        certificate.private_key_pem.write_to_path(self.home / "key.pem")
        (self.home / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))

    def env(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.endswith("TRACKING_URI")}
        return kept | {"HIGHROAD_HOME": str(self.home / "state"), "HIGHROAD_ACCESS": str(self.access)} | more

    def run(self, *arguments: object, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, env=self.env(**env), cwd=self.home, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def key(self, *arguments: object) -> str:
        return self.run("access", "add", *arguments).stdout.strip()

    def openai(self, key: str) -> openai.OpenAI:
        http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(self.ca)))
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, http_client=http, max_retries=0)

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(self.url + path, verify=str(self.ca), timeout=10, **options)


def soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + MUST_BE_SEEN_WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def site(highroad: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("access")
    site = Site(highroad, home)
    for name in ("classify-a", "embed"):
        site.run("pack", REPO / "conformance" / "packages" / name, "-o", home / name)
    (home / "portfolio.toml").write_text(
        '[members.moderation]\nmodel = "./classify-a"\nthreads = 1\n[members.embedder]\nmodel = "./embed"\nthreads = 1\n'
    )
    site.key("ops", "--scope", "observe", "--scope", "track", "--scope", "deploy")
    command = [str(highroad), "up", "--development", "--portfolio", "portfolio.toml", "--listen", "127.0.0.1:0"]
    command += ["--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    with serving(command, home / "up.log", env=site.env(), cwd=home) as site.url:
        assert site.url.startswith("https://")
        yield site


def test_a_key_asks_what_it_may_and_nothing_else(site: Site) -> None:
    key = site.key("search-web", "--member", "embedder", "--days", 30)
    assert key.startswith("hr_") and key not in site.access.read_text()
    client = site.openai(key)
    soon(lambda: known(client))
    assert len(client.embeddings.create(model="embedder", input="hello").data) == 1
    assert [model.id for model in client.models.list()] == ["embedder"]
    with pytest.raises(openai.PermissionDeniedError, match="may not ask `moderation`"):
        client.moderations.create(model="moderation", input="hello")
    with pytest.raises(openai.PermissionDeniedError, match="no scope `observe`"):
        client.get("/highroad/status", cast_to=object)
    for stranger in (site.openai("hr_nobody"), site.openai(key[:-1])):
        with pytest.raises(openai.AuthenticationError, match="not known"):
            stranger.embeddings.create(model="embedder", input="hello")


def known(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


def test_records_are_shown_to_keys_that_may_ask_the_member(site: Site) -> None:
    reader = site.key("reader", "--scope", "infer", "--scope", "observe", "--member", "moderation")
    both = site.key("both", "--scope", "infer", "--scope", "observe")
    soon(lambda: known(site.openai(reader)) and known(site.openai(both)))
    raw = site.openai(both).embeddings.with_raw_response.create(model="embedder", input="hello")
    path = f"/v1/highroad/requests/{raw.headers['x-request-id']}"
    assert site.get(path, headers={"authorization": f"Bearer {both}"}).json()["member"] == "embedder"
    assert site.get(path, headers={"authorization": f"Bearer {reader}"}).status_code == 404


def test_an_id_that_comes_again_takes_nobodys_answer_away(site: Site, tmp_path: Path) -> None:
    scopes = ("--scope", "infer", "--scope", "observe")
    keys = {name: site.key(f"{name}-web", "--tenant", name, *scopes) for name in ("acme", "beta")}
    keys["watcher"] = site.key("watcher", "--scope", "observe")
    soon(lambda: all(site.get("/v1/highroad/status", headers={"x-api-key": key}).status_code == 200 for key in keys.values()))

    def call(who: str, path: str, body: object = None, **more: str) -> requests.Response:
        headers = {"x-api-key": keys[who]} | {name.replace("_", "-"): value for name, value in more.items()}
        method = "GET" if body is None else "POST"
        return requests.request(method, site.url + path, json=body, headers=headers, verify=str(site.ca), timeout=20)

    def embed(who: str, text: str) -> str:
        reply = call(who, "/v1/embeddings", {"model": "embedder", "input": text}, x_request_id="shared-1")
        assert reply.status_code == 200 and reply.headers["x-request-id"] == "shared-1", reply.text
        return reply.headers["x-highroad-request-id"]

    def replay(who: str, id: str, text: str) -> requests.Response:
        return call(who, "/v1/highroad/replay", {"request_id": id, "case": {"text": text}})

    asked = {"acme": embed("acme", "of acme"), "beta": embed("beta", "of beta")}
    for who, other in [("acme", "beta"), ("beta", "acme")]:
        record = call(who, "/v1/highroad/requests/shared-1").json()
        assert [record[key] for key in ("unique_id", "tenant", "key")] == [asked[who], who, f"{who}-web"]
        assert replay(who, "shared-1", f"of {who}").json()["same_bits"] is True
        assert replay(who, "shared-1", f"of {other}").json()["answers"] is None
        for path in (f"requests/{asked[other]}", f"requests/{asked[other]}/chain"):
            assert call(who, f"/v1/highroad/{path}").status_code == 404
        assert replay(who, asked[other], f"of {other}").status_code == 404
        label = {"request_id": asked[other], "label": "x"}
        assert call(who, "/v1/highroad/labels", label).json()["results"][0]["outcome"] == "unknown"

    later = embed("acme", "again of acme")
    several = call("acme", "/v1/highroad/requests/shared-1")
    assert several.status_code == 409 and several.json()["error"]["message"].count("by `embedder`, asked by `acme`") == 2
    assert asked["acme"] in several.text and later in several.text and asked["beta"] not in several.text
    assert replay("acme", asked["acme"], "of acme").json()["same_bits"] is replay("acme", later, "again of acme").json()["same_bits"] is True
    label = {"request_id": "shared-1", "label": "x"}
    assert call("acme", "/v1/highroad/labels", label).json()["results"][0]["outcome"] == "ambiguous"
    assert "is the id of 3 requests" in call("watcher", "/v1/highroad/requests/shared-1").json()["error"]["message"]

    assert "acme-web" in site.run("access", "list", "--access", site.access).stdout
    case = tmp_path / "case.json"
    case.write_text('{"text": "of acme"}')
    told = site.run("replay", "shared-1", "--input", case, code=2).stderr
    assert "`shared-1` is the id of 3 requests; name one by its own:" in told and all(id in told for id in [*asked.values(), later])
    assert site.run("replay", asked["acme"], "--input", case).stdout.startswith("the same bits\n")


def test_probes_are_open_and_a_browser_is_asked_for_the_key(site: Site) -> None:
    assert site.get("/health").status_code == 200
    assert site.get("/ready").status_code == 200
    refused = site.get("/metrics")
    assert refused.status_code == 401
    # What is refused before any route says too that members may be unverified here.
    assert refused.headers["x-highroad-development"] == "members may serve without a verdict"
    page = site.get("/ui", headers={"accept": "text/html"})
    assert page.status_code == 401 and page.headers["www-authenticate"].startswith("Basic")
    key = site.key("person", "--scope", "track")
    soon(lambda: site.get("/ui", auth=("anyone", key)).status_code == 200)


def test_the_openapi_document_says_where_a_key_is_needed_and_how_it_is_refused(site: Site) -> None:
    key = site.key("reads")
    soon(lambda: known(site.openai(key)))
    document = site.get("/openapi.json", headers={"x-api-key": key}).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer" and schemes["api-key"]["name"] == "x-api-key"
    n_refused = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = requests.request(method, site.url + re.sub(r"\{.*?\}", "x", path), verify=str(site.ca), timeout=10)
            if operation.get("security") == []:
                assert answer.status_code != 401, path
            elif refusal := operation["responses"].get("401"):
                assert answer.status_code == 401, path
                [_, _, kind, name] = refusal["$ref"].split("/")
                told = document["components"][kind][name]["content"]["application/json"]["schema"]
                jsonschema.validate(answer.json(), told | {"components": document["components"]})
                n_refused += 1
            else:
                assert path.startswith("/inference.GRPCInferenceService/"), path
    assert n_refused > 60


def test_the_mlflow_client_tracks_with_a_token_and_moves_no_alias(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    token = site.key("trainer", "--scope", "track")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(site.ca))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    soon(lambda: site.get("/version", headers={"authorization": f"Bearer {token}"}).status_code == 200)
    client = mlflow.MlflowClient(site.url, site.url)
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "loss", 0.5)
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
    client.create_registered_model("free")
    client.create_model_version("free", "mlflow-artifacts:/x", run.info.run_id)
    with pytest.raises(mlflow.MlflowException, match="no scope `deploy`"):
        client.set_registered_model_alias("free", "champion", "1")


def test_a_rate_is_told_as_the_openai_client_reads_it(site: Site) -> None:
    client = site.openai(site.key("slow", "--requests-per-minute", 2))
    soon(lambda: known_and_unused(site, client))
    told = [client.embeddings.with_raw_response.create(model="embedder", input="a") for _ in range(1)]
    assert told[0].headers["x-ratelimit-limit-requests"] == "2"
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(3):
            client.embeddings.create(model="embedder", input="a")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30


def known_and_unused(site: Site, client: openai.OpenAI) -> bool:
    """Whether the server knows the key, asked of what costs nothing of its rate: a key that lacks the scope."""
    try:
        client.get("/highroad/status", cast_to=object)
    except openai.PermissionDeniedError:
        return True
    except openai.AuthenticationError:
        return False
    raise AssertionError("a key for models reads the status")


def test_a_revoked_key_is_refused_and_a_wrong_edit_changes_nothing(site: Site) -> None:
    client = site.openai(site.key("short"))
    soon(lambda: known(client))
    text = site.access.read_text()
    site.access.write_text(text + "\n[keys.broken]\n")
    assert site.run("access", "list", code=2).stderr.count("sha256") == 1
    soon(lambda: "keys stay as they were" in (site.home / "up.log").read_text())
    assert known(client)
    site.access.write_text(text)
    site.run("access", "revoke", "short")
    soon(lambda: not known(client))
    listed = json.loads(site.run("access", "list", "--json").stdout)
    assert "short" not in listed["keys"] and listed["keys"]["ops"]["scopes"] == ["observe", "track", "deploy"]
    assert site.run("access", "revoke", "short", code=2).stderr.startswith("error: ")
    assert client.api_key not in (site.home / "up.log").read_text()


def test_a_renewed_certificate_is_served_without_a_restart(site: Site) -> None:
    def serial() -> str:
        host, port = site.url.removeprefix("https://").split(":")
        return ssl.get_server_certificate((host, int(port)), ca_certs=None)

    before = serial()
    (site.home / "cert.pem").write_text("half a certifi")
    soon(lambda: "certificate stays as it was" in (site.home / "up.log").read_text())
    assert serial() == before
    site.certify("localhost", "new.example")
    soon(lambda: serial() != before)


def test_pages_of_named_origins_may_call(site: Site) -> None:
    origin = "https://app.example.com"
    ask = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}

    def allowed() -> str | None:
        response = requests.options(f"{site.url}/v1/embeddings", headers=ask, verify=str(site.ca), timeout=10)
        return response.headers.get("access-control-allow-origin")

    assert allowed() is None
    site.access.write_text(site.access.read_text() + f'\n[cors]\norigins = ["{origin}"]\n')
    soon(lambda: allowed() == origin)


def test_without_a_client_certificate_nobody_is_let_in_where_one_is_asked_for(highroad: Path, tmp_path: Path) -> None:
    site = Site(highroad, tmp_path)
    command = [str(highroad), "track", "--listen", "127.0.0.1:0", "--home", "state", "--tls-cert", "cert.pem"]
    command += ["--tls-key", "key.pem", "--tls-client-ca", "ca.pem"]
    env = site.env()
    del env["HIGHROAD_ACCESS"]
    with serving(command, tmp_path / "log", env=env, cwd=tmp_path) as site.url:
        with pytest.raises(requests.exceptions.ConnectionError):
            site.get("/health")
        site.authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
        assert site.get("/health", cert=str(tmp_path / "client.pem")).status_code == 200
