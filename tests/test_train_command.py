"""`highroad train` around a script: what it refuses, what it records, and how a run ends whatever ends the command."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli import call, environment, highroad_bin  # noqa: F401

# A script of the starter's shape that computes nothing: real options, real torchrun, a run's files.
SCRIPT = '''
import os, time
from pathlib import Path
from highroad import training  # what `highroad train` looks for
options = training.options(__doc__)
output = Path(options.output)
output.mkdir(parents=True, exist_ok=True)
if options.resume and not (output / "last").exists():
    raise SystemExit("nothing to resume")
if os.environ.get("FAIL"):
    raise ValueError("the key is " + os.environ["FAIL"])
last = options.max_steps or 400
for step in range(1, last + 1):
    print(f"step {step}/{last} loss={1 / step}", flush=True)
    (output / "last").write_text(str(step))
    time.sleep(options.pause)
(output / "model.safetensors").write_text(str(options.max_steps))
'''
STANDARD = """
[model]
name = "m"
kind = "custom"
owner = "o"
licence = "MIT"
[environment]
python = ">=3.11"
[training]
max_steps = 3
pause = 0.0
[tracking]
price_per_hour = 3600.0
[evaluation]
golden = "g"
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "highroad.toml").write_text(STANDARD)
    (folder / "requirements.txt").write_text("")
    (folder / ".gitignore").write_text(".highroad/\nruns/\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    return folder


def show(repo, call, run="latest"):
    return json.loads(call("runs", "show", run, "--json", cwd=repo).stdout)


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        (("pause = 0.0", "puase = 0.0\npause = 0.0"), [], "nothing reads the key `puase`"),
        (("max_steps = 3", "learning_rat = 3e-3"), [], "did you mean `learning_rate`?"),
        (("max_steps = 3", 'learning_rate = "fast"'), [], 'is "fast": it needs a number above 0'),
        (("", ""), ["--micro_batch", "-1"], "--micro_batch is -1"),
        (("", ""), ["--clip_norm", "-1"], "--clip_norm is -1.0"),
        (("", ""), ["--warmup", "7"], "from 0 to below 1"),
        (("", ""), ["--learning_rat", "1"], "did you mean `--learning_rate`?"),
        (("", ""), ["--epochs", "0"], "at least 1 pass"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_starts(repo, tmp_path, call, change, arguments, told):
    (tmp_path / "train.py").write_text((repo / "train.py").read_text())
    (tmp_path / "highroad.toml").write_text(STANDARD.replace(*change))
    done = call("train", "--", *arguments, cwd=tmp_path, code=2)
    assert told in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "runs").exists()


def test_doctor_finds_what_training_would_refuse(repo, tmp_path, call):
    (tmp_path / "train.py").write_text((repo / "train.py").read_text())
    for text, level in ((STANDARD, "ok"), (STANDARD.replace("max_steps", "max_step"), "error")):
        (tmp_path / "highroad.toml").write_text(text)
        findings = json.loads(call("doctor", "--json", cwd=tmp_path, code=2).stdout)
        (found,) = [finding for finding in findings if finding["check"] == "training"]
        assert found["level"] == level, found
    assert "did you mean `max_steps`?" in found["found"]


def test_a_run_goes_on_unread_and_is_what_it_was_at_last(repo, call, highroad_bin):
    # Nobody reads what it prints.
    reader, writer = os.pipe()
    os.close(reader)
    command = [highroad_bin, "train", "--output", "runs"]
    trained = subprocess.run(command, cwd=repo, env=environment(repo), stdout=subprocess.PIPE, stderr=writer, text=True, check=False)
    os.close(writer)
    assert trained.returncode == 0
    first = show(repo, call)
    assert first["id"] == trained.stdout.strip() and first["status"] == "FINISHED"
    seconds, cost = (float(first["tags"][f"highroad.{name}"]) for name in ("duration_seconds", "cost_estimate"))
    # All of the processes' lives, of which this script's own is little.
    took = (first["end_ms"] - first["start_ms"]) / 1000
    assert 0.5 * took < seconds < took + 0.1 and cost == pytest.approx(seconds, abs=1e-3)

    refused = call("train", "--resume", "--", "--max_steps", "5", "--seed", "-8", cwd=repo, code=2)
    assert "--seed is -8" in refused.stderr
    (repo / "runs/last").rename(repo / "elsewhere")
    refused = call("train", "--resume", "--", "--max_steps", "5", cwd=repo, code=1)
    (repo / "elsewhere").rename(repo / "runs/last")
    assert "nothing to resume" in refused.stderr
    assert show(repo, call) == first, "a refused resume leaves the run as it was"

    call("train", "--resume", "--", "--max_steps", "5", cwd=repo)
    again = show(repo, call)
    assert json.loads(again["tags"]["highroad.arguments"])[-2:] == ["--max_steps", "5"]
    (earlier,) = json.loads(again["tags"]["highroad.earlier_starts"])
    assert json.loads(earlier["highroad.arguments"])[-1] == "--"
    assert float(again["tags"]["highroad.duration_seconds"]) > seconds + 0.5

    done = call("reproduce", "latest", "--environment", "current", cwd=repo)
    assert done.stdout.startswith("reproduced: the weights are bit for bit the same")
    escape = call("reproduce", again["id"], "--output", "../../../escape", cwd=repo, code=2)
    assert "leads out of the checkout" in escape.stderr


def test_a_failed_run_says_why_and_no_secret(repo, call):
    secret = "hunter2-hunter2"
    done = call("train", "--output", "runs/failed", cwd=repo, code=1, FAIL=secret, HIGHROAD_TEST_TOKEN=secret)
    assert secret in done.stderr, "the screen shows what the script said"
    failed = show(repo, call)
    assert failed["status"] == "FAILED" and float(failed["tags"]["highroad.duration_seconds"]) > 0
    assert failed["tags"]["highroad.error"].endswith("ValueError: the key is ***")
    assert "ValueError: the key is ***" in call("runs", "show", "latest", cwd=repo).stdout


def test_what_a_killed_command_started_ends_with_it(repo, call, highroad_bin):
    arguments = ["train", "--output", "runs/killed", "--", "--max_steps", "100000", "--pause", "0.05"]
    training = subprocess.Popen([highroad_bin, *arguments], cwd=repo, env=environment(repo), stderr=subprocess.DEVNULL)
    last = repo / "runs/killed/last"
    while not last.exists():
        assert training.poll() is None
        time.sleep(0.05)
    assert show(repo, call)["status"] == "RUNNING"
    training.send_signal(signal.SIGKILL)
    training.wait()
    patience = time.monotonic() + 30
    while (before := last.stat().st_mtime_ns) and time.sleep(1) is None and last.stat().st_mtime_ns != before:
        assert time.monotonic() < patience, "the script goes on"
    killed = show(repo, call)
    assert killed["status"] == "KILLED" and "was killed" in killed["tags"]["highroad.error"]
    assert [path for path in Path(repo, ".highroad/running").iterdir()] == []
