"""Packages in other places, through the binary: Debian's `docker-registry`, an S3-compatible store, a folder; and `highroad gc`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import bcrypt
import pytest
from cli import ROOT, call, highroad_bin  # noqa: F401

PASSWORD = "s3cret-and-never-printed"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Registry:
    def __init__(self, host: str, folder: Path):
        self.host, self.folder = host, folder

    def blob(self, digest: str) -> Path:
        hexadecimal = digest.removeprefix("sha256:")
        return self.folder / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"

    def blobs(self) -> set[str]:
        found = self.folder.glob("docker/registry/v2/blobs/sha256/*/*/data")
        return {f"sha256:{path.parent.name}" for path in found}

    def manifest(self, name: str, reference: str) -> dict:
        request = urllib.request.Request(f"http://{self.host}/v2/{name}/manifests/{reference}")
        request.add_header("Accept", "application/vnd.oci.image.manifest.v1+json")
        return json.load(urllib.request.urlopen(request, timeout=10))


@contextlib.contextmanager
def docker_registry(folder: Path, auth: str = "") -> Iterator[Registry]:
    binary = shutil.which("docker-registry")
    if binary is None:
        pytest.fail("docker-registry is missing: run `make tools`")
    folder.mkdir()
    host = f"127.0.0.1:{free_port()}"
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
        f"http: {{addr: '{host}'}}\n{auth}"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, "serve", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5)
                break
            except urllib.error.HTTPError:
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield Registry(host, folder / "data")
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with docker_registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def packages(call, tmp_path: Path) -> Path:  # noqa: F811
    """A folder with the packages `a` and `b`, which share their tokenizer, and `big`, which is `a` with a long licence."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in "ab":
        call("pack", ROOT / "conformance" / "packages" / f"classify-{name}", "-o", name, cwd=folder)
    shutil.copytree(ROOT / "conformance" / "packages" / "classify-a", folder / "source")
    (folder / "source" / "LICENSE").write_bytes(os.urandom(24 << 20))
    call("pack", "source", "-o", "big", cwd=folder)
    return folder


def digest_of(package: Path) -> str:
    return "sha256:" + hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()


def file_digest(package: Path, name: str) -> str:
    files = json.loads((package / "manifest.json").read_bytes())["files"]
    return next(entry["digest"] for entry in files if entry["path"] == name)


def same(package: Path, home: Path) -> bool:
    """Whether the store of `home` has exactly the files of `package`."""
    stored = home / "store" / digest_of(package).removeprefix("sha256:")
    read = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}  # noqa: E731
    return read(stored) == read(package)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@contextlib.contextmanager
def proxy(host: str, bytes_per_s: int = 1 << 30, cut_after: int = 1 << 40) -> Iterator[tuple[str, list[str]]]:
    """A registry in front of `host` that sends slowly, or breaks the first large blob off after so many bytes.

    Gives its address and the `Range` of each request for a large blob.
    """
    ranges: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() in ("range", "accept")}
            try:
                answer = urllib.request.urlopen(urllib.request.Request(f"http://{host}{self.path}", headers=headers))
            except urllib.error.HTTPError as error:
                answer = error
            length = int(answer.headers.get("Content-Length") or 0)
            if length > 1 << 20:
                ranges.append(self.headers.get("Range") or "")
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Length", "Content-Range", "Docker-Content-Digest"):
                if answer.headers.get(name):
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            n_sent, may_send = 0, cut_after if length > 1 << 20 and len(ranges) == 1 else 1 << 40
            with contextlib.suppress(OSError):
                while content := answer.read(1 << 16):
                    self.wfile.write(content)
                    n_sent += len(content)
                    if n_sent >= may_send:
                        self.close_connection = True
                        return
                    time.sleep(len(content) / bytes_per_s)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", ranges
    finally:
        server.shutdown()


def test_a_package_goes_to_an_oci_registry_and_comes_back(registry, packages, call, tmp_path):  # noqa: F811
    address = f"oci://{registry.host}/models/router:7"
    pushed = json.loads(call("push", "a", address, "--json", cwd=packages).stdout)
    assert pushed["package"] == digest_of(packages / "a")
    artifact = registry.manifest("models/router", "7")
    assert artifact["artifactType"] == "application/vnd.highroad.package.v1"
    assert artifact["config"]["digest"] == digest_of(packages / "a")
    titles = {layer["annotations"]["org.opencontainers.image.title"]: layer["digest"] for layer in artifact["layers"]}
    assert titles == {path.name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest() for path in (packages / "a").iterdir()}

    for named in (address, pushed["address"]):
        home = tmp_path / named.rsplit(":", 1)[1][:8]
        assert call("pull", named, cwd=tmp_path, home=home).stdout.strip() == digest_of(packages / "a")
        assert same(packages / "a", home) and not list((home / "store" / "partial").iterdir())
    again = json.loads(call("pull", address, "--json", cwd=tmp_path, home=home).stdout)
    assert again["received_bytes"] == 0


def test_a_blob_that_is_there_is_not_sent_again(registry, packages, call, tmp_path):  # noqa: F811
    first = json.loads(call("push", "a", f"oci://{registry.host}/router:1", "--json", cwd=packages).stdout)
    assert len(first["sent"]) == 4 and first["already_there"] == []
    n_blobs = len(registry.blobs())
    again = json.loads(call("push", "a", f"oci://{registry.host}/router:2", "--json", cwd=packages).stdout)
    assert (again["sent"], again["sent_bytes"], again["address"]) == ([], 0, first["address"])
    assert len(registry.blobs()) == n_blobs
    second = json.loads(call("push", "b", f"oci://{registry.host}/router:3", "--json", cwd=packages).stdout)
    assert second["already_there"] == ["tokenizer.json"] and "program.pt2" in second["sent"]

    home = tmp_path / "home"
    call("pull", f"oci://{registry.host}/router:1", cwd=tmp_path, home=home)
    pulled = json.loads(call("pull", f"oci://{registry.host}/router:3", "--json", cwd=tmp_path, home=home).stdout)
    assert pulled["reused_bytes"] == (packages / "b" / "tokenizer.json").stat().st_size


def test_a_pull_that_was_killed_goes_on_where_it_broke_off(registry, packages, call, highroad_bin, tmp_path):  # noqa: F811
    call("push", "big", f"oci://{registry.host}/big:1", cwd=packages)
    home, size = tmp_path / "home", (packages / "big" / "LICENSE").stat().st_size
    partial = home / "store" / "partial" / digest_of(packages / "big").removeprefix("sha256:") / "LICENSE"
    with proxy(registry.host, bytes_per_s=4 << 20) as (host, ranges):
        environment = os.environ | {"HIGHROAD_HOME": str(home)}
        pull = subprocess.Popen([highroad_bin, "pull", f"oci://{host}/big:1"], cwd=tmp_path, env=environment)
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.stat().st_size < size // 4:
            assert pull.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        pull.send_signal(signal.SIGKILL)
        pull.wait()
    there = partial.stat().st_size
    assert size // 4 <= there < size
    # Half a package is none.
    assert "no package" in call("push", digest_of(packages / "big"), "x", cwd=tmp_path, home=home, code=2).stderr
    with proxy(registry.host) as (host, ranges):
        pulled = json.loads(call("pull", f"oci://{host}/big:1", "--json", cwd=tmp_path, home=home).stdout)
    assert ranges == [f"bytes={there}-"]
    assert pulled["received_bytes"] < size and pulled["reused_bytes"] >= there
    assert same(packages / "big", home)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(registry, packages, call, tmp_path):  # noqa: F811
    call("push", "big", f"oci://{registry.host}/big:1", cwd=packages)
    home = tmp_path / "home"
    with proxy(registry.host, cut_after=4 << 20) as (host, ranges):
        pulled = json.loads(call("pull", f"oci://{host}/big:1", "--json", cwd=tmp_path, home=home).stdout)
    assert ranges == ["bytes=0-", f"bytes={4 << 20}-"]
    assert pulled["reused_bytes"] == 0 and same(packages / "big", home)


def test_what_an_interrupted_pull_left_is_compared_too(registry, packages, call, tmp_path):  # noqa: F811
    call("push", "big", f"oci://{registry.host}/big:1", cwd=packages)
    home = tmp_path / "home"
    partial = home / "store" / "partial" / digest_of(packages / "big").removeprefix("sha256:")
    partial.mkdir(parents=True)
    half = (packages / "big" / "LICENSE").read_bytes()[: 12 << 20]
    (partial / "LICENSE").write_bytes(b"x" + half[1:])
    refused = call("pull", f"oci://{registry.host}/big:1", cwd=tmp_path, home=home, code=2).stderr
    assert "`LICENSE`" in refused
    # What was wrong was not kept.
    call("pull", f"oci://{registry.host}/big:1", cwd=tmp_path, home=home)
    assert same(packages / "big", home)


@pytest.mark.parametrize("name", ["program.pt2", "tokenizer.json", "manifest.json"])
def test_a_blob_that_was_changed_in_the_registry_is_refused_by_file(name, registry, packages, call, tmp_path):  # noqa: F811
    call("push", "a", f"oci://{registry.host}/router:1", cwd=packages)
    digest = digest_of(packages / "a") if name == "manifest.json" else file_digest(packages / "a", name)
    flip(registry.blob(digest))
    refused = call("pull", f"oci://{registry.host}/router:1", cwd=tmp_path, home=tmp_path / "home", code=2).stderr
    assert f"`{name}`" in refused and digest in refused
    assert not [path for path in (tmp_path / "home" / "store").iterdir() if len(path.name) == 64]


def test_a_blob_that_is_gone_is_named(registry, packages, call, tmp_path):  # noqa: F811
    call("push", "a", f"oci://{registry.host}/router:1", cwd=packages)
    registry.blob(file_digest(packages / "a", "program.pt2")).unlink()
    assert "`program.pt2`" in call("pull", f"oci://{registry.host}/router:1", cwd=tmp_path, code=2).stderr
    assert "router:9" in call("pull", f"oci://{registry.host}/router:9", cwd=tmp_path, code=2).stderr


def test_signatures_travel_and_are_asked_for_before_the_weights(registry, packages, call, tmp_path):  # noqa: F811
    for key in ("one.key", "two.key"):
        call("keys", "generate", key, cwd=packages)
    key = call("keys", "show", "two.key", cwd=packages).stdout.strip()
    guarded = {"HIGHROAD_REQUIRE_SIGNATURE": "1", "HIGHROAD_TRUSTED_KEYS": key}
    address = f"oci://{registry.host}/router:1"
    call("sign", "a", "--key", "one.key", cwd=packages)
    call("push", "a", address, cwd=packages)
    home = tmp_path / "home"
    refused = call("pull", address, cwd=tmp_path, home=home, code=2, **guarded).stderr
    assert "is not signed by a trusted key" in refused and not (home / "store" / "partial").exists()
    # A second signature of the same package joins the first.
    call("sign", "a", "--key", "two.key", cwd=packages)
    call("push", "a", address, cwd=packages)
    call("pull", address, cwd=tmp_path, home=home, **guarded)
    digest = digest_of(packages / "a")
    verify = ("keys", "verify", digest, "--json", "--key")
    told = json.loads(call(*verify, packages / "two.key.pub", cwd=tmp_path, home=home).stdout)
    assert len(told["signatures"]) == 2
    call(*verify, packages / "one.key.pub", cwd=tmp_path, home=home)


def test_a_login_is_used_and_never_printed(packages, call, tmp_path):  # noqa: F811
    htpasswd = tmp_path / "htpasswd"
    htpasswd.write_text(f"someone:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    auth = f"auth: {{htpasswd: {{realm: here, path: {htpasswd}}}}}\n"
    with docker_registry(tmp_path / "registry", auth) as registry:
        address = f"oci://{registry.host}/router:1"
        anonymous = call("push", "a", address, cwd=packages, code=2, DOCKER_CONFIG=str(tmp_path)).stderr
        assert registry.host in anonymous
        login = {"HIGHROAD_OCI_USERNAME": "someone", "HIGHROAD_OCI_PASSWORD": PASSWORD, "RUST_LOG": "trace"}
        pushed = call("push", "a", address, cwd=packages, **login)
        config = {"auths": {registry.host: {"auth": base64.b64encode(f"someone:{PASSWORD}".encode()).decode()}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        pulled = call("pull", address, cwd=tmp_path, DOCKER_CONFIG=str(tmp_path), RUST_LOG="trace")
        wrong = call("pull", address, cwd=tmp_path, code=2, **login | {"HIGHROAD_OCI_PASSWORD": "x" + PASSWORD})
        for done in (pushed, pulled, wrong):
            assert PASSWORD not in done.stdout + done.stderr


@pytest.fixture(params=["s3", "folder"])
def place(request, tmp_path: Path) -> tuple[str, Path]:
    """An address and the folder where its objects lie."""
    if request.param == "folder":
        return f"file://{tmp_path}/shared", tmp_path / "shared"
    s3 = request.getfixturevalue("s3")
    (s3 / "models").mkdir()
    return "s3://models/team", s3 / "models" / "team"


def test_a_bucket_keeps_blobs_once_and_gives_packages_back(place, packages, call, tmp_path):  # noqa: F811
    address, folder = place
    call("keys", "generate", "one.key", cwd=packages)
    call("sign", "big", "--key", "one.key", cwd=packages)
    first = json.loads(call("push", "big", address, "--json", cwd=packages).stdout)
    assert first["address"] == f"{address}@{digest_of(packages / 'big')}" and len(first["sent"]) == 5
    # Alone there, it needs no digest.
    home = tmp_path / "home"
    assert call("pull", address, cwd=tmp_path, home=home).stdout.strip() == digest_of(packages / "big")
    assert same(packages / "big", home)
    call("keys", "verify", digest_of(packages / "big"), "--key", packages / "one.key.pub", cwd=tmp_path, home=home)

    second = json.loads(call("push", "a", address, "--json", cwd=packages).stdout)
    assert second["sent"] == ["manifest.json"] and len(second["already_there"]) == 3
    assert "holds 2 packages" in call("pull", address, cwd=tmp_path, home=home, code=2).stderr
    pulled = json.loads(call("pull", second["address"], "--json", cwd=tmp_path, home=home).stdout)
    assert pulled["received_bytes"] == 0 and same(packages / "a", home)

    flip(folder / "blobs" / "sha256" / file_digest(packages / "big", "LICENSE").removeprefix("sha256:"))
    refused = call("pull", first["address"], cwd=tmp_path, home=tmp_path / "other", code=2).stderr
    assert "`LICENSE`" in refused


def test_a_bucket_pull_goes_on_where_it_broke_off(place, packages, call, tmp_path):  # noqa: F811
    address, _ = place
    pushed = json.loads(call("push", "big", address, "--json", cwd=packages).stdout)
    home = tmp_path / "home"
    partial = home / "store" / "partial" / digest_of(packages / "big").removeprefix("sha256:")
    partial.mkdir(parents=True)
    half = (packages / "big" / "LICENSE").read_bytes()[: 12 << 20]
    (partial / "LICENSE").write_bytes(half)
    pulled = json.loads(call("pull", pushed["address"], "--json", cwd=tmp_path, home=home).stdout)
    assert pulled["reused_bytes"] == len(half) and same(packages / "big", home)


def test_a_package_in_one_file_is_the_same_file_everywhere(packages, call, tmp_path):  # noqa: F811
    call("pack", "a", "-o", "one.tar", cwd=packages)
    call("pack", ROOT / "conformance" / "packages" / "classify-a", "-o", "two.tar", cwd=packages)
    assert (packages / "one.tar").read_bytes() == (packages / "two.tar").read_bytes()
    home = tmp_path / "home"
    pushed = json.loads(call("push", "one.tar", f"file://{tmp_path}/shared", "--json", cwd=packages, home=home).stdout)
    assert pushed["package"] == digest_of(packages / "a") and same(packages / "a", home)
    flip(packages / "two.tar")
    refused = call("push", "two.tar", f"file://{tmp_path}/shared", cwd=packages, home=tmp_path / "other", code=2).stderr
    assert "was changed" in refused


def test_a_place_that_is_none_is_not_made(call, tmp_path):  # noqa: F811
    assert f"{tmp_path}/nowhere" in call("pull", f"file://{tmp_path}/nowhere", cwd=tmp_path, code=2).stderr
    assert not (tmp_path / "nowhere").exists()
    for wrong in ("oci://router:7", "oci://h.example/router", "ftp://h.example/x", "file://x", "s3://b/p@sha256:12"):
        assert f"`{wrong}` cannot be used" in call("pull", wrong, cwd=tmp_path, code=2).stderr


def test_gc_takes_only_what_nobody_names(packages, call, tmp_path):  # noqa: F811
    home = tmp_path / "home"
    pack = lambda name: digest_of(packages / name)  # noqa: E731
    for name in ("embed", "rerank"):
        call("pack", ROOT / "conformance" / "packages" / name, "-o", name, cwd=packages)
    call("pack", ROOT / "conformance" / "packages" / "vision", "-o", "c", cwd=packages)
    for name in ("a", "b", "c", "big", "embed", "rerank"):
        address = f"file://{tmp_path}/shared-{name}"
        call("push", name, address, cwd=packages)
        call("pull", address, cwd=packages, home=home)
    call("push", "a", "router", cwd=packages, home=home)
    verdict = {"package": pack("b"), "baseline": {"kind": "package", "package": pack("embed")}}
    body = json.dumps(verdict).encode()
    folder = home / "verdicts" / pack("b").removeprefix("sha256:")
    folder.mkdir(parents=True)
    (folder / f"{hashlib.sha256(body).hexdigest()}.json").write_bytes(body)
    # What a server served last, as it writes it.
    (home / "serving").mkdir()
    (home / "serving" / "eyes.json").write_text(json.dumps({"serving": {"resolved": {"package": pack("c")}}}))
    (home / "attestations" / pack("rerank").removeprefix("sha256:")).mkdir(parents=True)
    stored = lambda: {f"sha256:{path.name}" for path in (home / "store").iterdir() if len(path.name) == 64}  # noqa: E731
    everything = stored()
    assert len(everything) == 6

    # What came a moment ago stays, and a dry run takes nothing.
    assert json.loads(call("gc", "--json", cwd=packages, home=home).stdout)["removed"] == []
    planned = json.loads(call("gc", "--keep-hours", "0", "--dry-run", "--json", cwd=packages, home=home).stdout)
    assert [entry["package"] for entry in planned["removed"]] == [pack("big")] and stored() == everything
    reasons = {entry["package"]: entry["reasons"] for entry in planned["kept"]}
    assert reasons[pack("a")] == ["version router:1"] and reasons[pack("rerank")] == ["deployed here"]
    assert reasons[pack("c")] == ["served here last"]
    assert reasons[pack("b")] == reasons[pack("embed")] and reasons[pack("b")][0].startswith("verdict ")

    # A registry that cannot be asked may name anything.
    away = {"HIGHROAD_TRACKING_URI": "http://127.0.0.1:9"}
    refused = call("gc", "--keep-hours", "0", cwd=packages, home=home, code=2, **away).stderr
    assert "nothing was taken away" in refused and stored() == everything

    done = json.loads(call("gc", "--keep-hours", "0", "--json", cwd=packages, home=home).stdout)
    assert done["freed_bytes"] >= 24 << 20 and stored() == everything - {pack("big")}
    assert json.loads(call("gc", "--keep-hours", "0", "--json", cwd=packages, home=home).stdout)["removed"] == []
