"""Who made a package: signatures that the OpenSSF's `model_signing` verifies, and packages refused without one."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli import ROOT, call, highroad_bin  # noqa: F401
from conftest import serving
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from model_signing import hashing

MODEL_SIGNING = Path(sys.executable).with_name("model_signing")
GOLDEN = "".join(
    json.dumps({"id": f"c{n}", "input": {"text": f"w{n} w{n + 1}"}, "expected": ("benign", "injection")[n % 2]}) + "\n" for n in range(20)
)


def model_signing(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MODEL_SIGNING, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def bench(call, tmp_path):  # noqa: F811
    """A folder with two packages, `a` and `b`, and two key pairs, `release.key` (Ed25519) and `ec.key` (ECDSA P-256)."""
    for name in "ab":
        call("pack", ROOT / "conformance" / "packages" / f"classify-{name}", "-o", name, cwd=tmp_path)
    call("keys", "generate", "release.key", cwd=tmp_path)
    call("keys", "generate", "ec.key", "--algorithm", "ecdsa-p256", cwd=tmp_path)
    return tmp_path


def digest_of(package: Path) -> str:
    return "sha256:" + hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()


def writable(package: Path, name: str) -> Path:
    (package / name).chmod(0o644)
    return package / name


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def standard(folder: Path, *keys: str) -> None:
    """A repo in `folder` that asks for a signature by one of `keys`."""
    trusted = json.dumps(list(keys))
    rest = """
[model]
name = "m"
kind = "classifier"
owner = "us"
licence = "MIT"
[environment]
python = ">=3.11"
torch = ">=2.9"
lock = "requirements.txt"
[training]
script = "train.py"
output = "runs/latest"
[evaluation]
golden = "golden.jsonl"
"""
    (folder / "highroad.toml").write_text(f"{rest}[packaging]\nrequire_signature = true\ntrusted_keys = {trusted}\n")


def shown(call, bench: Path, key: str) -> str:  # noqa: F811
    return call("keys", "show", key, cwd=bench).stdout.strip()


def test_the_openssf_tool_verifies_what_highroad_signed(bench, call):  # noqa: F811
    call("sign", "a", "--key", "ec.key", cwd=bench)
    verify = ("verify", "key", "a", "--signature", "a.sig", "--public_key", "ec.key.pub")
    done = model_signing(*verify, cwd=bench)
    assert done.returncode == 0, done.stderr
    change_one_byte(writable(bench / "a", "tokenizer.json"))
    done = model_signing(*verify, cwd=bench)
    assert done.returncode != 0 and "tokenizer.json" in done.stderr + done.stdout


def test_highroad_verifies_what_the_openssf_tool_signed(bench, call):  # noqa: F811
    done = model_signing("sign", "key", "a", "--signature", "theirs.sig", "--private_key", "ec.key", cwd=bench)
    assert done.returncode == 0, done.stderr
    told = call("keys", "verify", "a", "--signature", "theirs.sig", "--key", "ec.key.pub", cwd=bench).stdout
    assert told.startswith(f"{digest_of(bench / 'a')} is signed by ")
    other = call("keys", "verify", "b", "--signature", "theirs.sig", "--key", "ec.key.pub", cwd=bench, code=1)
    assert "the signature is not over this package's `manifest.json`" in other.stderr


def test_an_ed25519_signature_has_the_same_form(bench, call):  # noqa: F811
    """`model_signing verify key` takes no Ed25519 keys, so its own manifest is compared and the signature checked by hand."""
    call("sign", "a", "--key", "release.key", cwd=bench)
    bundle = json.loads((bench / "a.sig").read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    kind = b"application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    pem = (bench / "release.key.pub").read_bytes()
    load_pem_public_key(pem).verify(base64.b64decode(bundle["dsseEnvelope"]["signatures"][0]["sig"]), signed)
    assert bundle["verificationMaterial"]["publicKey"]["hint"] == hashlib.sha256(pem).hexdigest()
    expected = [(r.identifier, r.digest.digest_hex) for r in hashing.hash(bench / "a").resource_descriptors()]
    statement = json.loads(payload)
    assert [(r["name"], r["digest"]) for r in statement["predicate"]["resources"]] == expected
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in expected)).hexdigest()
    assert statement["subject"] == [{"name": "tiny-classify-a", "digest": {"sha256": root}}]


def test_signing_changes_no_digest(bench, call):  # noqa: F811
    before = digest_of(bench / "a")
    call("sign", "a", "--key", "release.key", cwd=bench)
    assert digest_of(bench / "a") == before and not (bench / "a" / "a.sig").exists()


def test_openssl_keys_sign_and_keys_that_others_may_read_do_not(bench, call):  # noqa: F811
    for algorithm in (["-algorithm", "ed25519"], ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]):
        made = subprocess.run(["openssl", "genpkey", *algorithm, "-out", "theirs.key"], cwd=bench, capture_output=True)
        assert made.returncode == 0, made.stderr
        (bench / "theirs.key").chmod(0o600)
        call("sign", "a", "--key", "theirs.key", cwd=bench)
        call("keys", "verify", "a", "--key", shown(call, bench, "theirs.key"), cwd=bench)
    (bench / "theirs.key").chmod(0o644)
    refused = call("sign", "a", "--key", "theirs.key", cwd=bench, code=2).stderr
    assert "its mode is 0644" in refused and "chmod 600" in refused
    assert (bench / "release.key").stat().st_mode & 0o777 == 0o600
    assert "exists" in call("keys", "generate", "release.key", cwd=bench, code=2).stderr


def test_only_packages_of_trusted_keys_are_loaded(bench, call):  # noqa: F811
    standard(bench, shown(call, bench, "release.key") + " release team")
    (bench / "golden.jsonl").write_text(GOLDEN)
    evaluate = ("eval", "a", "--golden", "golden.jsonl", "--json")
    unsigned = call(*evaluate, cwd=bench, code=2).stderr
    assert f"package {digest_of(bench / 'a')} has no signature" in unsigned and "release team" in unsigned

    call("sign", "a", "--key", "ec.key", cwd=bench)
    untrusted = call(*evaluate, cwd=bench, code=2).stderr
    assert "is not signed by a trusted key (trusted: release team)" in untrusted and "is not trusted" in untrusted

    call("sign", "b", "--key", "release.key", cwd=bench)
    shutil.copy(bench / "b.sig", bench / "a.sig")
    assert "not over this package's `manifest.json`" in call(*evaluate, cwd=bench, code=2).stderr

    call("sign", "a", "--key", "release.key", cwd=bench)
    call(*evaluate, cwd=bench)
    bundle = json.loads((bench / "a.sig").read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"][0]["digest"] = "0" * 64
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (bench / "a.sig").write_text(json.dumps(bundle))
    assert "it or what it signed was changed" in call(*evaluate, cwd=bench, code=2).stderr


def spoil(package: Path, how: str) -> str:
    """Spoils the package; gives what must be named."""
    if how == "one byte":
        change_one_byte(writable(package, "program.pt2"))
        return "`program.pt2` was changed"
    if how == "missing":
        (package / "tokenizer.json").unlink()
        return "`tokenizer.json` is missing"
    if how == "extra":
        (package / "weights.bin").write_bytes(b"x")
        return "`weights.bin` is in the package's directory but not in its manifest"
    shutil.copy(package.with_name("b") / "parity.safetensors", writable(package, "parity.safetensors"))
    return "`parity.safetensors`"


@pytest.mark.parametrize("how", ["one byte", "missing", "extra", "swapped"])
def test_a_signed_package_that_was_changed_is_refused_by_file(how, bench, call):  # noqa: F811
    call("sign", "a", "--key", "release.key", cwd=bench)
    standard(bench, shown(call, bench, "release.key"))
    (bench / "golden.jsonl").write_text(GOLDEN)
    named = spoil(bench / "a", how)
    for command in (["eval", "a", "--golden", "golden.jsonl"], ["push", "a", "router"], ["keys", "verify", "a"]):
        assert named in call(*command, cwd=bench, code=2).stderr


def test_a_signature_travels_with_the_version_and_guards_every_load(bench, call, tracking_uri, tmp_path_factory):  # noqa: F811
    """Push, promote, serve and replay's store: each refuses what nobody trusted signed."""
    key = shown(call, bench, "release.key")
    guarded = {"HIGHROAD_TRACKING_URI": tracking_uri, "HIGHROAD_REQUIRE_SIGNATURE": "1", "HIGHROAD_TRUSTED_KEYS": key}
    open_to_all = {"HIGHROAD_TRACKING_URI": tracking_uri}
    assert "has no signature" in call("push", "a", "signed", cwd=bench, code=2, **guarded).stderr
    unsigned = json.loads(call("push", "b", "signed", "--json", cwd=bench, **open_to_all).stdout)
    call("sign", "a", "--key", "release.key", cwd=bench)
    signed = json.loads(call("push", "a", "signed", "--json", cwd=bench, **guarded).stdout)

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    pulled = call("pull", f"signed:{signed['version']}", cwd=elsewhere, **guarded).stdout.strip()
    assert pulled == digest_of(bench / "a")
    refused = call("pull", f"signed:{unsigned['version']}", cwd=elsewhere, code=2, **guarded).stderr
    assert "has no signature" in refused
    refused = call("promote", "signed", unsigned["version"], cwd=elsewhere, code=2, **guarded).stderr
    assert "has no signature" in refused
    # The store of this machine is no way around it.
    call("pull", f"signed:{unsigned['version']}", cwd=elsewhere, **open_to_all)
    assert "has no signature" in call("push", unsigned["package"], "x", cwd=elsewhere, code=2, **guarded).stderr
    # Signing what is in the store is enough.
    key_file = bench / "release.key"
    call("sign", unsigned["package"], "--key", key_file, cwd=elsewhere, **open_to_all)
    call("push", unsigned["package"], "signed", cwd=elsewhere, **guarded)


def test_a_server_does_not_serve_what_nobody_trusted_signed(bench, call, highroad_bin, monkeypatch):  # noqa: F811
    import urllib.request

    monkeypatch.setenv("HIGHROAD_REQUIRE_SIGNATURE", "1")
    monkeypatch.setenv("HIGHROAD_TRUSTED_KEYS", shown(call, bench, "release.key"))
    monkeypatch.setenv("HIGHROAD_HOME", str(bench / "state"))
    command = [str(highroad_bin), "serve", str(bench / "a"), "--development", "--listen", "127.0.0.1:0"]

    def ready(log: str) -> int:
        with serving(command, bench / log, cwd=bench) as uri:
            try:
                return urllib.request.urlopen(f"{uri}/v2/health/ready", timeout=10).status
            except urllib.error.HTTPError as error:
                return error.code

    try:
        assert ready("refused.log") != 200
    except RuntimeError as not_started:
        assert "has no signature" in str(not_started)
    assert "has no signature" in (bench / "refused.log").read_text()
    call("sign", "a", "--key", "release.key", cwd=bench)
    assert ready("served.log") == 200
