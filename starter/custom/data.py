"""The data: websites, honest or phishing (BSD licence, from river), as nine answers of 0.0, 0.5 or 1.0 each.

The smallest whole repo there is: replace ``rows`` by your own table of words and labels, and begin.
"""

import csv
import gzip
import random
from importlib.util import find_spec
from pathlib import Path

import torch

LABELS = ["honest", "phishing"]
# What a cell may say; the number of columns is the number of tokens.
WORDS = ["0.0", "0.5", "1.0", "0", "1"]
N_COLUMNS = 9

Example = tuple[list[int], int]


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    folder = Path(find_spec("river").submodule_search_locations[0], "datasets")
    return {"river/phishing.csv.gz": folder / "phishing.csv.gz"}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {}


def examples(name: str, options) -> list[Example]:
    return split(name)


def split(name: str) -> list[Example]:
    """800 rows to train on, 150 to validate, 300 to test, in an order of their own."""
    shuffled = random.Random(0).sample(rows(), 1_250)
    return {"train": shuffled[:800], "validation": shuffled[800:950], "test": shuffled[950:]}[name]


def rows() -> list[Example]:
    with gzip.open(files()["river/phishing.csv.gz"], "rt", encoding="utf-8") as file:
        _header, *lines = csv.reader(file)
    return [([WORDS.index(cell) for cell in cells], int(label)) for *cells, label in lines]


def batches(examples: list[Example], size: int, generator: torch.Generator) -> list[list[Example]]:
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def collate(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Words as token ids, int64 ``[B, columns]``, and ``labels`` ``[B]``."""
    return torch.tensor([row for row, _ in batch]), torch.tensor([label for _, label in batch])
