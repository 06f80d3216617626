"""Facts this classifier relies on; no training."""

import data
import encoder
import judge
import model as models
import pytest
import torch


def test_no_test_text_is_trained_or_validated_on():
    test = {text.lower() for text, _ in data.split("test")}
    for name in ("train", "validation"):
        assert not test & {text.lower() for text, _ in data.split(name)}


def test_no_must_pass_text_is_trained_on():
    trained = {text.lower() for text, _ in data.split("train")}
    for case in encoder.must_pass():
        assert case["expected"] in data.LABELS
        assert case["input"]["text"].lower() not in trained, case["id"]


def test_padding_does_not_change_an_answer():
    torch.manual_seed(0)
    classifier = models.pretrained().eval()
    short, long = [101, 2129, 102], [101, 2129, 2079, 1045, 8670, 3489, 7852, 102]
    with torch.no_grad():
        alone = classifier(*data.collate([(short, 0)])[:2])
        padded = classifier(*data.collate([(short, 0), (long, 0)])[:2])[:1]
    torch.testing.assert_close(alone, padded)


def test_the_operating_point_finds_as_many_as_it_must():
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 2), torch.arange(500) % 2
    for min_recall in (0.0, 0.5, 0.9, 0.99, 1.0):
        moved = logits + torch.tensor([0.0, judge.shift(logits, labels, 1, min_recall)])
        found = (moved.argmax(1) == 1)[labels == 1].double().mean().item()
        assert found >= min_recall
        assert judge.shift(moved, labels, 1, min_recall) == pytest.approx(0.0, abs=2e-3)
