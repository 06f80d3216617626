"""`highroad review` and `highroad gate selftest`, on tiny packages: what is decided from artifacts, and what is not evidenced."""

import hashlib
import json
import re
import subprocess

import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401

WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
N_CASES = 200


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call):  # noqa: F811
    """Packages `a` and `b` from one training file, judged on a blessed golden set that calls right what `a` answers, but for a few."""
    folder = tmp_path_factory.mktemp("review")
    training = "text,label\n" + "".join(f"a training text of its own {n},benign\n" for n in range(50))
    (folder / "train.csv").write_text(training)
    digest = "sha256:" + hashlib.sha256(training.encode()).hexdigest()
    git(folder, "init", "-q")
    git(folder, "add", "train.csv")
    git(folder, "commit", "-qm", "train", author="Ada <ada@example.com>")
    commit = git(folder, "rev-parse", "HEAD")
    for name, source in {"a": "classify-a", "b": "classify-b"}.items():
        copy = folder / f"{name}.source"
        subprocess.run(["cp", "-r", ROOT / "conformance" / "packages" / source, copy], check=True)
        text = re.split(r"\n\[provenance", (copy / "package.toml").read_text())[0]
        provenance = f'\n[provenance]\ngit_commit = "{commit}"\n[provenance.data]\n"train.csv" = "{digest}"\n'
        (copy / "package.toml").write_text(text + provenance)
        call("pack", copy, "-o", name, cwd=folder)
    texts = [" ".join(WORDS[(n // 12**place + place * n) % 12] for place in range(3 + n % 3)) + f" {n}" for n in range(N_CASES)]
    write(folder / "golden.jsonl", [{"id": f"c{n}", "input": {"text": text}, "expected": "benign"} for n, text in enumerate(texts)])
    call("eval", "a", "--golden", "golden.jsonl", "--out", "a.json", cwd=folder)
    results = json.loads((folder / "a.json").read_text())
    right = [case["value"]["class"]["label"] for case in results["cases"]]
    other = lambda label: next(name for name in results["labels"] if name != label)
    expected = [other(label) if n % 10 == 0 else label for n, label in enumerate(right)]
    cases = [{"id": f"c{n}", "input": {"text": text}, "expected": expected[n], "slices": [["even", "odd"][n % 2]]} for n, text in enumerate(texts)]
    write(folder / "golden.jsonl", cases)
    bless(call, "golden.jsonl", folder)
    (folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.1\nfloor = 0.5\n[[rule]]\nmetric = 'accuracy'\nslice = '*'\nfloor = 0.3\n")
    return folder


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def git(folder, *arguments, author=None):
    identity = {"GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.com", "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.com"}
    done = subprocess.run(["git", *arguments], cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **identity}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def lines_of(review):
    sections = review["ml_test_score"]["sections"]
    return {line["id"]: line for line in review["questions"] + [test for section in sections for test in section["tests"]]}


def review(call, desk, *more, code=0):  # noqa: F811
    done = call("review", "a", "--baseline", "b", "--golden", "golden.jsonl", "--json", *more, cwd=desk, code=code)
    return json.loads(done.stdout), done.stderr


def test_without_a_verdict_the_questions_are_not_evidenced(desk, call):  # noqa: F811
    found = lines_of(review(call, desk)[0])
    for line in ["metrics", "regressions", "traffic", "I4", "M6"]:
        assert found[line]["status"] == "not_evidenced", found[line]
    assert found["rollback"]["status"] == "pass", "the way back needs no verdict"


@pytest.fixture(scope="module")
def judged(desk, call):  # noqa: F811
    call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", cwd=desk, code=1)
    call("gate", "a", "--baseline", "b", "--golden", "golden.jsonl", cwd=desk)
    return desk


def test_artifacts_decide_and_what_does_not_exist_scores_nothing(judged, call):  # noqa: F811
    written, _ = review(call, judged, "--html", "review.html", "--markdown", "review.md")
    found = lines_of(written)
    status = lambda *ids: {line: found[line]["status"] for line in ids}
    holds = ["data", "metrics", "regressions", "rollback", "D1", "D7", "M6", "I4", "I5", "I7", "N3", "N5"]
    assert status(*holds) == dict.fromkeys(holds, "pass")
    missing = ["traffic", "M2", "M5", "I1", "I6", "N2", "N4", "N6", "N7", "D6"]
    assert status(*missing) == dict.fromkeys(missing, "not_evidenced")
    assert "better" in found["metrics"]["details"][0] and "train.csv" in str(found["data"])
    assert "all 200 golden answers came out with the bits of its verdict" in found["rollback"]["summary"]
    assert found["M1"]["status"] == "not_evidenced" and "nobody else signed it off" in found["M1"]["summary"]
    points = {section["name"]: section["points"] for section in written["ml_test_score"]["sections"]}
    assert written["ml_test_score"]["score"] == min(points.values()) > 0
    page, text = (judged / "review.html").read_text(), (judged / "review.md").read_text()
    assert "<script" not in page and "default-src 'none'" in page
    for shown in (page, text):
        assert "not evidenced" in shown and "Is there a way back" in shown
    # Every line that decides something cites something, and every citation leads to it in the same document.
    cited = {evidence for line in found.values() for evidence in line.get("evidence", [])}
    assert cited == {source["name"] for source in written["sources"]}
    assert all(found[line]["evidence"] for line in [*holds, "D3"])
    links, anchors = re.findall(r'href="([^"]+)"', page), set(re.findall(r'id="(evidence-\d+)"', page))
    assert len(links) >= len(cited) and {link.removeprefix("#") for link in links} == anchors and len(anchors) == len(cited)
    assert set(re.findall(r"\]\(#(evidence-\d+)\)", text)) == {f"evidence-{n}" for n in re.findall(r"(?m)^##### Evidence (\d+)$", text)} == anchors
    verdict = next(source for source in written["sources"] if source["name"] == f"verdict {written['verdict']}")
    assert (judged / ".highroad" / verdict["find"]).is_file() and any("accuracy" in fact for fact in verdict["facts"])


def test_required_lines_become_an_exit_code(judged, call):  # noqa: F811
    review(call, judged, "--require", "regressions,rollback,M6")
    _, said = review(call, judged, "--require", "regressions,traffic", code=1)
    assert "required: traffic" in said and "regressions" not in said
    done = call("review", "a", "--baseline", "b", "--golden", "golden.jsonl", "--require", "M99", cwd=judged, code=2)
    assert "there is no such line" in done.stderr


def test_a_person_attests_what_a_person_decides_and_nothing_else(judged, call):  # noqa: F811
    who = ["--by", "Grace", "--why", "took a day the last time"]
    found = lines_of(review(call, judged, "--attest", "D6", *who)[0])
    assert found["D6"]["status"] == "attested" and "Grace" in found["D6"]["summary"]
    done = call("review", "a", "--baseline", "b", "--golden", "golden.jsonl", "--attest", "I6", *who, cwd=judged, code=2)
    assert "artifacts decide it" in done.stderr


def test_a_golden_case_in_the_training_data_fails_the_review(judged, call, tmp_path):  # noqa: F811
    first = json.loads((judged / "golden.jsonl").read_text().splitlines()[0])
    other = tmp_path / "golden.jsonl"
    write(other, [first | {"input": {"text": "a training text of its own 7"}, "id": "seen"}])
    done = call("review", "a", "--baseline", "b", "--golden", other, "--json", cwd=judged)
    line = lines_of(json.loads(done.stdout))["data"]
    assert line["status"] == "fail" and "leaked: seen" in line["details"]


def test_a_file_that_was_held_out_is_no_training_data(judged, call, tmp_path):  # noqa: F811
    copy = tmp_path / "source"
    subprocess.run(["cp", "-r", judged / "a.source", copy], check=True)
    held_out = "text,label\nkept for the test,benign\n"
    (tmp_path / "test.csv").write_text(held_out)
    digest = "sha256:" + hashlib.sha256(held_out.encode()).hexdigest()
    roles = f'"test.csv" = "{digest}"\n[provenance.data_roles]\n"train.csv" = "train"\n"test.csv" = "test"\n'
    (copy / "package.toml").write_text((copy / "package.toml").read_text() + roles)
    call("pack", copy, "-o", tmp_path / "package", cwd=judged)
    first = json.loads((judged / "golden.jsonl").read_text().splitlines()[0])
    files = ["--training", "train.csv", "--training", tmp_path / "test.csv"]

    def data(text):
        write(tmp_path / "golden.jsonl", [first | {"input": {"text": text}, "id": "seen"}])
        done = call("review", tmp_path / "package", "--baseline", "b", "--golden", tmp_path / "golden.jsonl", "--json", *files, cwd=judged)
        return lines_of(json.loads(done.stdout))["data"]

    line = data("kept for the test")
    assert line["status"] == "pass" and "held out as test data, so not compared with the golden set: test.csv" in line["details"]
    assert data("a training text of its own 7")["status"] == "fail"


def test_a_damaged_baseline_is_no_way_back(judged, call, tmp_path):  # noqa: F811
    subprocess.run(["cp", "-r", judged / "b", tmp_path / "b"], check=True)
    program = tmp_path / "b" / "program.pt2"
    program.chmod(0o644)
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    program.write_bytes(bytes(content))
    done = call("review", "a", "--baseline", tmp_path / "b", "--golden", "golden.jsonl", cwd=judged, code=2)
    assert "program.pt2" in done.stderr


def test_the_gate_keeps_its_word_on_this_golden_set_and_broken_gates_are_caught(judged, call):  # noqa: F811
    (judged / "margins.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\n")
    done = call("gate", "selftest", "a", "--golden", "golden.jsonl", "--gates", "margins.toml", "--simulations", "200", "--json", cwd=judged)
    tested = json.loads(done.stdout)
    assert tested["outcome"] == "pass" and tested["n_simulations"] == 200
    assert {kept["promise"] for kept in tested["rules"][0]["promises"]} >= {"equal_fails", "drop_passes", "equal_passes_as_told", "flips"}
    assert [broken["fault"] for broken in tested["broken"] if "caught_by" in broken] == ["unpaired", "swapped_sides", "ignored_margin"]
    (judged / "slice.toml").write_text("[[rule]]\nmetric = 'accuracy'\nslice = 'even'\nmargin = 0.1\n")
    told = call("gate", "selftest", "a", "--golden", "golden.jsonl", "--gates", "slice.toml", "--simulations", "200", cwd=judged)
    assert told.stdout.startswith("PASS") and told.stdout.count("caught ") == 3
    (judged / "floors.toml").write_text("[[rule]]\nmetric = 'accuracy'\nfloor = 0.5\n")
    done = call("gate", "selftest", "a", "--golden", "golden.jsonl", "--gates", "floors.toml", cwd=judged, code=2)
    assert "no promise to test" in done.stderr


def test_a_signed_review_names_its_signer_and_shows_every_change(judged, call, tmp_path):  # noqa: F811
    for name in ["ours.key", "theirs.key"]:
        call("keys", "generate", tmp_path / name, cwd=judged)
    done = call("review", "a", "--baseline", "b", "--golden", "golden.jsonl", "--sign", tmp_path / "ours.key", cwd=judged)
    signature = judged / re.search(r"^signed (.+)$", done.stderr, re.M)[1]
    verify = lambda key, code: call("review", "verify", signature, "--key", tmp_path / f"{key}.key.pub", cwd=judged, code=code)
    assert "the review of sha256:" in verify("ours", 0).stdout
    assert "not signed" in verify("theirs", 1).stderr
    kept = signature.with_name(signature.name.removesuffix(".sigstore.json") + ".json")
    written = kept.read_text()
    kept.write_text(written.replace("not_evidenced", "pass", 1))
    assert "changed after it was signed" in verify("ours", 1).stderr
    kept.write_text(written)
    bundle = json.loads(signature.read_text())
    payload = bundle["dsseEnvelope"]["payload"]
    bundle["dsseEnvelope"]["payload"] = payload[:-8] + ("A" if payload[-8] != "A" else "B") + payload[-7:]
    signature.write_text(json.dumps(bundle))
    assert "not signed" in verify("ours", 1).stderr
