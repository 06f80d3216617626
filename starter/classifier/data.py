"""The data: labelled texts of corpus.py, split, and in batches of similar length."""

import random

import torch

import corpus
import encoder

LABELS, FLAGGED, files, roles = corpus.LABELS, corpus.FLAGGED, corpus.files, corpus.roles

Example = tuple[str, int]
Encoded = tuple[list[int], int]


def examples(name: str, options) -> list[Encoded]:
    """What training sees of a split: token ids and label."""
    encoded = encode(split(name))
    if name != "train":
        return encoded
    return random.Random(options.seed).sample(encoded, round(len(encoded) * options.fraction))


def split(name: str) -> list[Example]:
    """The examples of ``train``, ``validation`` or ``test``, each text once.

    What is also a test text is left out of the others: one trains the model, the other chooses the checkpoint.
    """
    held_out = {_key(text) for text, _ in corpus.texts("test")} if name != "test" else set()
    unique = {_key(text): (text, label) for text, label in corpus.texts(name) if _key(text) not in held_out}
    return list(unique.values())


def encode(examples: list[Example]) -> list[Encoded]:
    rows = encoder.token_ids([text for text, _ in examples])
    return [(ids, label) for ids, (_, label) in zip(rows, examples, strict=True)]


def batches(examples: list[Encoded], size: int, generator: torch.Generator) -> list[list[Encoded]]:
    return encoder.by_length(examples, size, generator, length=lambda example: len(example[0]))


def collate(batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[B, S]`` and ``labels`` ``[B]``."""
    return *encoder.padded([ids for ids, _ in batch]), torch.tensor([label for _, label in batch])


def _key(text: str) -> str:
    return " ".join(text.lower().split())
