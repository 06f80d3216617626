"""The recipes of deploy/: the image is built without an engine and serves, the manifests and the unit are what their tools accept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from conftest import serving

REPO = Path(__file__).resolve().parent.parent
DEPLOY = REPO / "deploy"
MANIFEST = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "highroad.yaml").read_text()))
UNIT = DEPLOY / "systemd" / "highroad.service"
IMAGE = "highroad:test"


def named(kind: str) -> dict:
    return next(document for document in MANIFEST if document["kind"] == kind)


def container() -> dict:
    (container,) = named("Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def options_of_serve(highroad: Path) -> str:
    return subprocess.run([highroad, "serve", "--help"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def mounted(highroad: Path) -> Iterator[tuple[str, Path]]:
    """A container of the built image, and its files."""

    def run(*command: object) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    run(DEPLOY / "container" / "build", "--binary", highroad, "--tag", IMAGE)
    name = run("buildah", "from", IMAGE)
    try:
        yield name, Path(run("buildah", "mount", name))
    finally:
        run("buildah", "rm", name)
        run("buildah", "rmi", IMAGE)


def test_the_image_holds_the_binary_and_neither_a_shell_nor_python(mounted: tuple[str, Path]) -> None:
    _, root = mounted
    programs = [path.name for folder in ("bin", "sbin", "usr/bin", "usr/sbin") for path in (root / folder).iterdir()]
    assert programs == ["highroad"]
    assert not [path for path in root.rglob("*") if path.name.startswith(("python", "libpython")) or path.suffix == ".py"]
    assert "BEGIN CERTIFICATE" in (root / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert (root / "usr/share/zoneinfo/Europe/Berlin").exists()


def test_the_image_serves_as_a_user_without_rights(mounted: tuple[str, Path], highroad: Path, tmp_path: Path) -> None:
    name, root = mounted
    shutil.copytree(REPO / "conformance" / "packages" / "embed", tmp_path / "source")
    subprocess.run([highroad, "pack", "source", "-o", root / "etc/highroad/embed"], cwd=tmp_path, check=True)
    user = subprocess.run(["buildah", "inspect", "--format", "{{.OCIv1.Config.User}}", name], capture_output=True, text=True)
    assert user.stdout.strip() == "65532:65532"
    # `buildah run` would need a program that forwards ports; a change of root is what it comes down to.
    command = ["chroot", "--userspec=65532:65532", str(root), "/usr/bin/highroad", "serve", "/etc/highroad/embed"]
    command += ["--development", "--listen", "127.0.0.1:0"]
    environment = {"HIGHROAD_HOME": "/var/lib/highroad", "PATH": os.environ["PATH"]}
    with serving(command, tmp_path / "log", env=environment, cwd=tmp_path) as url:
        assert urllib.request.urlopen(f"{url}/ready", timeout=10).status == 200


@pytest.mark.parametrize("document", MANIFEST, ids=lambda document: document["kind"])
def test_kubernetes_accepts_every_manifest(document: dict) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_the_deployment_says_what_the_binary_understands(highroad: Path, tmp_path: Path) -> None:
    options = options_of_serve(highroad)
    assert container()["args"][0] == "serve"
    assert all(argument in options for argument in container()["args"] if argument.startswith("--"))
    portfolio = named("ConfigMap")["data"]["portfolio.toml"]
    assert set(tomllib.loads(portfolio)["members"]) == {"moderation", "embedder"}
    (tmp_path / "portfolio.toml").write_text(portfolio)
    command = [highroad, "serve", "--portfolio", "portfolio.toml", "--listen", "127.0.0.1:0"]
    env = os.environ | {"HIGHROAD_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    # The file is a portfolio; what it names is in no registry here.
    assert done.returncode == 2 and "not every member can serve" in done.stderr, done.stderr


def test_the_deployment_passes_the_restricted_pod_security_standard() -> None:
    pod = named("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    security = container()["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]} and security["allowPrivilegeEscalation"] is False
    assert {probe for probe in container() if probe.endswith("Probe")} == {"startupProbe", "readinessProbe", "livenessProbe"}


def test_replicas_follow_a_metric_that_exists() -> None:
    telemetry = (REPO / "crates" / "serve" / "src" / "telemetry.rs").read_text()
    pods = [metric["pods"]["metric"]["name"] for metric in named("HorizontalPodAutoscaler")["spec"]["metrics"] if "pods" in metric]
    assert pods and all(f'"{name}"' in telemetry for name in pods)


def test_systemd_accepts_the_unit_and_finds_it_well_confined(highroad: Path, tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/highroad", str(highroad)))
    verify = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    told = [line for line in verify.stderr.splitlines() if unit.name in line]
    assert verify.returncode == 0 and not told, verify.stderr
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", unit]
    security = subprocess.run(command, capture_output=True, text=True)
    assert security.returncode == 0, security.stdout[-2000:]


def test_the_unit_says_what_the_binary_understands(highroad: Path) -> None:
    (command,) = re.findall(r"^ExecStart=/usr/bin/highroad (.*)$", UNIT.read_text(), re.MULTILINE)
    options = options_of_serve(highroad)
    assert command.startswith("serve ") and all(word in options for word in command.split() if word.startswith("--"))
