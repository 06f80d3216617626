"""Facts every repo relies on; no training. Run with `python -m pytest`."""

import itertools
import json
from pathlib import Path

import data
import model as models
import pytest
import torch
from cases import cases
from highroad import training


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.pretrained(training.options(args=[])).eval()


def test_batches_hold_every_example_once_in_an_order_the_seed_decides():
    examples = [([[7] * (1 + i % 5)], [i]) for i in range(23)]
    order = lambda seed: data.batches(examples, 4, torch.Generator().manual_seed(seed))  # noqa: E731
    assert sorted(number for batch in order(1) for _, (number,) in batch) == list(range(23))
    assert [len(batch) for batch in order(1)].count(4) == 5
    assert order(1) == order(1) != order(2)


def test_weights_survive_saving(model, tmp_path):
    training.save_weights(training.full_weights(model), tmp_path / "model.safetensors")
    loaded = training.load_weights(models.fresh(), tmp_path / "model.safetensors")
    for inputs in models.parity_cases():
        with torch.no_grad():
            assert torch.equal(model(*inputs), loaded(*inputs))


def test_golden_cases_are_named_once_and_the_same_each_time():
    first, again = (list(itertools.islice(cases(), 300)) for _ in range(2))
    assert first == again
    assert len({case["id"] for case in first}) == len(first)


def test_must_pass_cases_are_named_once():
    lines = Path("golden/must_pass.jsonl").read_text(encoding="utf-8").splitlines()
    named = [json.loads(line) for line in lines]
    assert all(case["must_pass"] for case in named)
    assert len({case["id"] for case in named}) == len(named)
