"""Handwritten digits, as scikit-learn ships them: seconds of training, yet real data."""

from pathlib import Path

import sklearn.datasets
import torch


def files():
    return {"digits.csv.gz": Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"}


def examples(name, options):
    digits = sklearn.datasets.load_digits()
    rows = list(zip(torch.tensor(digits.data / 16).float(), digits.target.tolist(), strict=True))
    return rows[:1000] if name == "train" else rows[1000:]


def batches(examples, size, generator):
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def collate(batch):
    return torch.stack([row for row, _ in batch]), torch.tensor([label for _, label in batch])
