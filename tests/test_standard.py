"""The standard and the starter's updates: real git repositories, the real MLflow client."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile

import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from mlflow import MlflowClient

BASE = ".highroad-template/base.tar.gz"
RECORD = ".highroad-template/record.toml"


def git(repo, *args):
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(["git", *identity, *args], cwd=repo, check=True, capture_output=True, text=True).stdout


def commit(repo):
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "change")


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def repo(tmp_path, call):
    call("new", "moderation", "--kind", "classifier", "--owner", "safety team", cwd=tmp_path)
    repo = tmp_path / "moderation"
    git(repo, "init", "-q")
    commit(repo)
    return repo


def make_older(repo, change):
    """The repo as an older starter would have made it: ``change`` takes and gives files by path."""
    with tarfile.open(repo / BASE) as archive:
        new = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
    old = change(dict(new))
    for path in new.keys() - old.keys():
        (repo / path).unlink()
    for path, content in old.items():
        (repo / path).write_bytes(content)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in sorted(old.items()):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (repo / BASE).write_bytes(gzip.compress(packed.getvalue()))
    listing = "".join(f"{digest(content)} {path}\n" for path, content in sorted(old.items()))
    record = f'highroad = "0.0.9"\ndigest = "{digest(listing.encode())}"\n'
    record += '[values]\nkind = "classifier"\nname = "moderation"\nowner = "safety team"\n[files]\n'
    record += "".join(f'"{path}" = "{digest(content)}"\n' for path, content in sorted(old.items()))
    (repo / RECORD).write_text(record)
    commit(repo)
    return new


def older(files):
    files["README.md"] = b"# The old title\n" + files["README.md"].split(b"\n", 1)[1]
    files["requirements-old.txt"] = b"gone\n"
    del files["gates.toml"]
    return files


def outcomes(done) -> dict[str, str]:
    return {file["path"]: file["outcome"] for file in json.loads(done.stdout)["files"]}


def test_an_update_brings_the_new_starter_and_keeps_what_was_changed_here(repo, call):
    new = make_older(repo, older)
    title = new["README.md"].decode().split("\n")[0]
    with (repo / "README.md").open("a") as file:
        file.write("Ours.\n")
    dirty = call("update", cwd=repo, code=2)
    assert "commit or stash" in dirty.stderr
    commit(repo)
    findings = {finding["check"]: finding for finding in json.loads(call("doctor", "--json", cwd=repo, code=2).stdout)}
    assert findings["template"]["level"] == "warning" and "highroad update" in findings["template"]["help"]

    shown = call("update", "--dry-run", cwd=repo).stdout
    assert "-# The old title" in shown and f"+{title}" in shown and git(repo, "status", "--porcelain") == ""
    done = call("update", "--json", cwd=repo)
    assert outcomes(done) == {"README.md": "merged", "gates.toml": "added", "requirements-old.txt": "deleted"}
    assert (repo / "README.md").read_bytes() == new["README.md"] + b"Ours.\n"
    assert (repo / "gates.toml").read_bytes() == new["gates.toml"] and not (repo / "requirements-old.txt").exists()
    commit(repo)
    assert outcomes(call("update", "--json", cwd=repo)) == {}


@pytest.mark.parametrize("choice", ["stop", "markers", "reject"])
def test_a_conflict_loses_nothing_and_marks_only_where_asked(repo, call, choice):
    title = make_older(repo, older)["README.md"].decode().split("\n")[0]
    own = (repo / "README.md").read_text().replace("# The old title", "# Our title")
    (repo / "README.md").write_text(own)
    commit(repo)
    done = call("update", "--conflicts", choice, "--json", cwd=repo, code=1)
    assert outcomes(done)["README.md"] == "conflict"
    text = (repo / "README.md").read_text()
    if choice == "stop":
        assert git(repo, "status", "--porcelain") == ""
    elif choice == "markers":
        assert "<<<<<<< this repo" in text and "# Our title" in text and title in text
    else:
        assert text == own and f"+{title}" in (repo / "README.md.rej").read_text()


def test_doctor_fixes_what_is_safe_and_says_so(repo, call):
    subprocess.run(["rm", "-rf", ".git"], cwd=repo, check=True)
    (repo / ".gitignore").write_text("runs/")
    findings = {finding["check"]: finding for finding in json.loads(call("doctor", "--json", cwd=repo, code=2).stdout)}
    assert findings["git"]["fix"] == "git" and findings["golden"]["fix"] == "golden"
    done = call("doctor", "--fix", "--json", cwd=repo, code=2)
    assert "fix: runs `git init`" in done.stderr
    call("doctor", "--fix", cwd=repo, code=2)
    findings = {finding["check"]: finding for finding in json.loads(call("doctor", "--json", cwd=repo, code=2).stdout)}
    assert findings["git"]["found"] == "no commit yet"
    assert findings["gitignore"]["level"] == "ok"
    assert findings["golden"]["level"] == "warning" and "blessed by nobody" in findings["golden"]["found"]
    bless(call, "golden/test.jsonl", repo)
    findings = {finding["check"]: finding for finding in json.loads(call("doctor", "--json", cwd=repo, code=2).stdout)}
    assert findings["golden"]["level"] == "ok" and "blessed by tests" in findings["golden"]["found"]
    assert (repo / ".gitignore").read_text() == "runs/\n/.highroad/\n/.venv/\n"


def test_doctor_holds_a_repo_to_the_extended_standard(repo, call):
    organisation = 'locked = ["environment.python"]\nrequired = ["serving.budgets"]\n[environment]\npython = ">=3.10"\n'
    organisation += '[owners]\nknown = ["search"]\n[packaging]\nlicences = ["MIT"]\n[evaluation]\nmin_cases = 5000\n'
    (repo.parent / "standard.toml").write_text(organisation)
    declared = (repo / "highroad.toml").read_text()
    (repo / "highroad.toml").write_text('extends = "../standard.toml"\n' + declared)
    subprocess.run(["sh", "-c", "head -3 golden/must_pass.jsonl > golden/test.jsonl"], cwd=repo, check=True)
    findings = json.loads(call("doctor", "--json", cwd=repo, code=2).stdout)
    errors = {(finding["check"], finding["found"].split(" ")[0]) for finding in findings if finding["level"] == "error"}
    assert {("extends", "`environment.python`"), ("extends", "`serving.budgets`")} <= errors
    assert {check for check, _ in errors} >= {"owner", "licence", "golden"}


def test_the_report_lists_every_model_and_what_it_breaks(tmp_path, highroad_bin, call):
    command = [highroad_bin, "track", "--listen", "127.0.0.1:0"]
    environment = os.environ | {"HIGHROAD_HOME": str(tmp_path / "server")}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        uri = server.stdout.readline().strip()
        client = MlflowClient(uri, registry_uri=uri)
        client.create_registered_model("foreign", tags={"owner": "search"})
        client.create_model_version("foreign", source="mlflow-artifacts:/somewhere", run_id=None)
        client.create_registered_model("empty")
        call("pack", ROOT / "conformance/packages/classify-a", "-o", tmp_path / "package", cwd=tmp_path)
        call("new", "repo", "--kind", "classifier", "--owner", "o", cwd=tmp_path)
        standard = tmp_path / "standard.toml"
        standard.write_text('locked = ["environment.python"]\n[environment]\npython = ">=3.10"\n[packaging]\nlicences = ["LicenseRef-x"]\n')
        repo = tmp_path / "repo"
        (repo / "highroad.toml").write_text('extends = "../standard.toml"\n' + (repo / "highroad.toml").read_text())
        tracked = {"HIGHROAD_TRACKING_URI": client.tracking_uri}
        call("push", tmp_path / "package", "moderation", cwd=repo, **tracked)

        standard.write_text(standard.read_text() + "[owners]\nknown = ['search']\n")
        options = ["standard", "report", "--standard", standard]
        report = json.loads(call(*options, "--json", cwd=tmp_path, **tracked).stdout)
        rows = {row["name"]: row for row in report["models"]}
        rules = {name: {broken["rule"] for broken in row["broken"]} for name, row in rows.items()}
        assert rules["foreign"] == {"champion", "package"} and rows["foreign"]["owner"] == "search"
        assert rules["empty"] == {"champion"} and rows["empty"]["version"] is None
        assert rules["moderation"] >= {"champion", "owner", "licence", "verdict", "locked", "extends"}
        assert rows["moderation"]["package"].startswith("sha256:") and not rows["moderation"]["is_champion"]
        table = call(*options, "--fail-on", "error", cwd=tmp_path, code=1, **tracked).stdout
        assert "moderation" in table and "foreign" in table
    finally:
        server.terminate()
        server.wait(timeout=30)
