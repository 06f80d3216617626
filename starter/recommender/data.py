"""The data: MovieLens-100K, which film 943 people saw after which, as it ships with RecBole.

A history is the films a person rated, oldest first; the label is the next one. GroupLens asks to be cited and not to be resold
(see the README of MovieLens). To train on your own data, give ``histories`` yours.
"""

import csv
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

# Films that fewer people saw are left out, as too little can be learned about them.
MIN_RATINGS, N_LAST = 50, 20

_FOLDER = Path(find_spec("recbole").submodule_search_locations[0], "dataset_example", "ml-100k")

Example = tuple[list[int], int]


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {f"movielens/{name}": _FOLDER / name for name in ("ml-100k.inter", "ml-100k.item")}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {}


@cache
def histories() -> tuple[list[str], list[list[int]]]:
    """The films' numbers, and each person's films as positions among them, oldest first."""
    rows = sorted(_rows("ml-100k.inter"), key=lambda row: (int(row[0]), int(row[3]), int(row[1])))
    seen = Counter(film for _, film, *_ in rows)
    films = sorted((film for film, n in seen.items() if n >= MIN_RATINGS), key=int)
    position = {film: i for i, film in enumerate(films)}
    people: dict[str, list[int]] = {}
    for person, film, *_ in rows:
        if film in position:
            people.setdefault(person, []).append(position[film])
    return films, [history for history in people.values() if len(history) >= 5]


def labels() -> list[str]:
    """The films' titles, each once."""
    titles = {film: f"{title} ({year})" for film, title, year, *_ in _rows("ml-100k.item")}
    named = [titles[film] for film in histories()[0]]
    twice = {title for title, n in Counter(named).items() if n > 1}
    return [f"{title} [{film}]" if title in twice else title for title, film in zip(named, histories()[0], strict=True)]


def examples(name: str, options) -> list[Example]:
    return split(name)


def split(name: str) -> list[Example]:
    """The last film of each person is the test, the one before it the validation, all earlier ones train."""
    people = histories()[1]
    if name == "train":
        return [example(history, end) for history in people for end in range(1, len(history) - 2)]
    return [example(history, len(history) - (1 if name == "test" else 2)) for history in people]


def example(history: list[int], end: int) -> Example:
    return history[max(0, end - N_LAST) : end], history[end]


def batches(examples: list[Example], size: int, generator: torch.Generator) -> list[list[Example]]:
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def collate(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[B, S]``, padded with 0, and the next film ``[B]``."""
    width = max(len(history) for history, _ in batch)
    input_ids = torch.tensor([history + [0] * (width - len(history)) for history, _ in batch])
    attention_mask = torch.tensor([[1] * len(history) + [0] * (width - len(history)) for history, _ in batch])
    return input_ids, attention_mask, torch.tensor([film for _, film in batch])


def _rows(name: str) -> list[list[str]]:
    with (_FOLDER / name).open(encoding="utf-8", newline="") as file:
        _header, *rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return rows
