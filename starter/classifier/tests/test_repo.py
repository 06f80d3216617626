"""Facts this repo relies on; seconds, no training. Run with `python -m pytest`."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import data  # noqa: E402
import model as models  # noqa: E402
import threshold  # noqa: E402


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return models.pretrained(len(data.LABELS)).eval()


def test_no_test_text_is_trained_or_validated_on():
    test = {text.lower() for text, _ in data.split("test")}
    for name in ("train", "validation"):
        assert not test & {text.lower() for text, _ in data.split(name)}


def test_batches_hold_every_example_once_in_an_order_the_seed_decides():
    examples = [([7] * (1 + i % 5), i) for i in range(23)]
    order = lambda seed: data.batches(examples, 4, torch.Generator().manual_seed(seed))  # noqa: E731
    assert sorted(label for batch in order(1) for _, label in batch) == list(range(23))
    assert order(1) == order(1) != order(2)


def test_padding_does_not_change_an_answer(classifier):
    short, long = [101, 2129, 102], [101, 2129, 2079, 1045, 8670, 3489, 7852, 102]
    with torch.no_grad():
        alone = classifier(*data.collate([(short, 0)])[:2])
        padded = classifier(*data.collate([(short, 0), (long, 0)])[:2])[:1]
    torch.testing.assert_close(alone, padded)


def test_the_operating_point_finds_as_many_as_it_must():
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 2), torch.arange(500) % 2
    for min_recall in (0.0, 0.5, 0.9, 0.99, 1.0):
        moved = logits + torch.tensor([0.0, threshold.shift(logits, labels, 1, min_recall)])
        found = (moved.argmax(1) == 1)[labels == 1].float().mean().item()
        assert found >= min_recall
        assert threshold.shift(moved, labels, 1, min_recall) == pytest.approx(0.0, abs=2e-3)


def test_weights_survive_saving(classifier, tmp_path):
    models.save(classifier, tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors", len(data.LABELS))
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_must_pass_cases_are_named_once_and_not_in_the_training_data():
    cases = [json.loads(line) for line in (ROOT / "golden" / "must_pass.jsonl").read_text().splitlines()]
    trained = {text.lower() for text, _ in data.split("train")}
    assert len({case["id"] for case in cases}) == len(cases)
    for case in cases:
        assert case["must_pass"] and case["expected"] in data.LABELS
        assert case["input"]["text"].lower() not in trained, case["id"]
