"""The starter's training loop on handwritten digits: interrupted, spread over processes, averaged, stopped early.

Each run is the starter's own train.py with the toy model of tests/toy.
"""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from highroad.training import profile_train
from training_run import Run

ROOT = Path(__file__).resolve().parent.parent
# What a run may differ by when its sums are taken in another order.
TOLERANCE = 2e-5
STEPS = 30


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "repo"
    shutil.copytree(ROOT / "tests" / "toy", folder)
    shutil.copy(ROOT / "starter" / "trained" / "train.py", folder)
    return folder


def train(repo, *args, processes=1, code=0, **variables):
    """Runs to the end and gives what was printed."""
    run = Run(repo, *args, processes=processes, **variables)
    assert run.wait() == code, run.output
    return run.output


def metrics(repo, output, name="train/loss"):
    lines = map(json.loads, (repo / output / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def checkpoints(repo, output):
    return sorted(int(path.name.split("-")[1]) for path in (repo / output / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def plain(repo):
    """The run that others are compared with: one process, whole batches."""
    train(repo, "--output", "plain", "--max_steps", STEPS)
    return metrics(repo, "plain")


# All that a step can draw and keep: dropout, the average, two best checkpoints, a checkpoint every third step.
EVERYTHING = ["--ema", "0.9", "--keep_best", "2", "--checkpoint_every", "3", "--max_steps", str(STEPS)]


@pytest.fixture(scope="module")
def uninterrupted(repo):
    train(repo, "--output", "uninterrupted", *EVERYTHING, TOY_DROPOUT=0.2)
    return repo / "uninterrupted"


def interrupt(repo, output, number, after_step, *args):
    """Starts a run, sends it a signal once it has logged ``after_step``, and gives its exit code."""
    run = Run(repo, "--output", output, *EVERYTHING, *args, TOY_DROPOUT=0.2, TOY_SLEEP=0.02)
    while f"step {after_step}/" not in run.output:
        assert run.alive(), run.output
        time.sleep(0.005)
    run.send(number)
    return run.wait()


def test_a_run_killed_twice_gives_every_bit_of_the_uninterrupted_one(repo, uninterrupted):
    steps = random.Random(time.time_ns())
    first, second = steps.randint(4, 14), steps.randint(15, STEPS - 1)
    print(f"killed after steps {first} and {second}")
    assert interrupt(repo, "killed", signal.SIGKILL, first) == -signal.SIGKILL
    # What a process that dies while it writes leaves behind is neither read nor kept.
    half = repo / "killed" / "checkpoints" / ".partial-00000099"
    half.mkdir()
    (half / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert interrupt(repo, "killed", signal.SIGKILL, second, "--resume") == -signal.SIGKILL
    assert not half.exists()
    train(repo, "--output", "killed", "--resume", *EVERYTHING, TOY_DROPOUT=0.2)
    assert (repo / "killed/metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert (repo / "killed/model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_sigterm_saves_at_the_next_step_and_the_exit_code_says_so(repo, uninterrupted):
    assert interrupt(repo, "stopped", signal.SIGTERM, 10) == 128 + signal.SIGTERM
    at = len(metrics(repo, "stopped"))
    assert 10 <= at < STEPS and checkpoints(repo, "stopped")[-1] == at
    train(repo, "--output", "stopped", "--resume", *EVERYTHING, TOY_DROPOUT=0.2)
    assert (repo / "stopped/metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


def test_the_last_and_the_best_checkpoints_stay(repo, uninterrupted):
    losses = metrics(repo, "uninterrupted", "validation/loss")
    # Twice an epoch of 16 steps, and at the end.
    by_loss = sorted(zip(losses, [8, 16, 24, 30], strict=True))
    assert checkpoints(repo, "uninterrupted") == sorted({STEPS, *(step for _, step in by_loss[:2])})


def test_a_run_goes_on_with_more_or_fewer_processes(repo, plain):
    train(repo, "--output", "moved", "--max_steps", 10, "--strategy", "ddp", processes=2)
    train(repo, "--output", "moved", "--max_steps", 20, "--resume")
    output = train(repo, "--output", "moved", "--max_steps", STEPS, "--resume", "--strategy", "fsdp2", processes=2)
    assert "resumed on 2 processes, saved on 1" in output
    assert metrics(repo, "moved") == pytest.approx(plain, abs=TOLERANCE)
    assert metrics(repo, "moved", "train/grad_norm") == pytest.approx(metrics(repo, "plain", "train/grad_norm"), abs=1e-4)


def test_accumulated_parts_equal_the_whole_batch(repo, plain):
    # Seven examples at a time: 64 do not divide, and 1000 are no multiple of 64.
    train(repo, "--output", "parts", "--max_steps", STEPS, "--micro_batch", 7)
    assert metrics(repo, "parts") == pytest.approx(plain, abs=TOLERANCE)


def test_precision_and_processes_meet_the_scaler_and_the_average(repo, plain):
    train(repo, "--output", "fp16", "--max_steps", 16, "--precision", "fp16", "--ema", "0.5", "--strategy", "fsdp2", processes=2)
    assert metrics(repo, "fp16") == pytest.approx(plain[:16], abs=2e-2)
    train(repo, "--output", "fp16", "--max_steps", 18, "--precision", "fp16", "--ema", "0.5", "--resume")
    assert metrics(repo, "fp16") == pytest.approx(plain[:18], abs=2e-2)


def test_training_stops_where_validation_no_longer_gains(repo):
    train(repo, "--output", "early", "--patience", 1, "--evals_per_epoch", 16, "--learning_rate", "1.0", "--clip_norm", 0)
    losses = metrics(repo, "early", "validation/loss")
    assert losses[-1] >= min(losses) and len(losses) < 48
    assert checkpoints(repo, "early")[-1] == len(metrics(repo, "early"))


def test_a_run_is_not_resumed_as_another(repo, plain):
    output = train(repo, "--output", "plain", "--resume", "--batch_size", 32, code=1)
    assert "was made with --batch_size 64" in output
    assert "nothing to resume" in train(repo, "--output", "nothing", "--resume", code=1)


def test_a_script_started_by_hand_refuses_what_cannot_be(repo):
    assert "error: --epochs is 0: it needs at least 1" in train(repo, "--epochs", 0, code=2)


@pytest.fixture(scope="module")
def profile(repo):
    train(repo, "--output", "profile", "--profile", 4, processes=2)
    return json.loads((repo / "profile/profile.json").read_text())


def test_profiling_tells_where_a_step_goes(repo, profile):
    parts = {part["part"]: part for part in profile["parts"]}
    assert set(parts) == {"data", "forward", "backward", "optimizer", "other"}
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1.0)
    assert profile["n_steps"] == 4 and profile["n_processes"] == 2 and profile["communication_ms"] > 0
    assert all(json.loads((repo / "profile" / name).read_text())["traceEvents"] for name in ("trace.json", "trace-1.json"))


def test_the_parts_of_a_profile_add_up_to_its_step(profile):
    assert sum(part["ms"] for part in profile["parts"]) == pytest.approx(profile["step_mean_ms"])
    # The batch between two steps is no part of a step.
    assert profile["between_ms"] > 0


def test_a_training_that_ends_before_its_profile_reports_the_steps_it_had(repo):
    train(repo, "--output", "short", "--profile", 1000, "--max_steps", 8)
    profile = json.loads((repo / "short/profile.json").read_text())
    assert profile["n_steps"] == 5 and (repo / "short/trace.json").is_file()
    # Validation, which comes after every eighth step, lies between steps.
    assert profile["between_ms"] > 0


def test_the_profile_is_a_table_that_says_whether_compiling_pays(profile):
    table = profile_train.table(profile, Path("runs/profile"))
    assert "ms a step, 2 process(es) on " in table and "forward" in table
    eager = {"step_ms": 30.0, "warm_up_s": 1.0}
    gain = profile_train.payoff(eager, {"step_ms": 20.0, "warm_up_s": 11.0})
    assert profile_train.verdict(gain) == "torch.compile wins 10.0 ms a step and costs 10 s: it pays after 1000 steps"
    assert "does not pay" in profile_train.verdict(profile_train.payoff(eager, {"step_ms": 31.0, "warm_up_s": 11.0}))
