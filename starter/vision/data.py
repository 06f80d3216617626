"""The data: Fashion-MNIST (MIT licence), 28 x 28 pictures of clothes, from Debian's package `dataset-fashion-mnist`.

A picture is 784 bytes of grey, row by row. To train on your own pictures, give ``pictures`` theirs.
"""

import gzip
import os
from pathlib import Path

import torch

LABELS = ["t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
SIZE, N_VALIDATION = 28, 5_000
# How a picture becomes the model's input, in training here and in production.
MEAN, STD = 0.286, 0.353
IMAGE = {
    "height": SIZE,
    "width": SIZE,
    "resize": "exact",
    "interpolation": "bilinear",
    "channels": "grey",
    "mean": [MEAN],
    "std": [STD],
}

_FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))

Example = tuple[torch.Tensor, int]


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    names = [f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    return {f"fashion-mnist/{name}": _FOLDER / name for name in names}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {name: "test" if "/t10k-" in name else "train" for name in files()}


def examples(name: str, options) -> list[Example]:
    """Pictures, ``uint8 [784]``, and labels of ``train`` or ``validation``."""
    return split(name)[: round(options.fraction * 60_000)]


def split(name: str) -> list[Example]:
    if name == "test":
        return pictures("t10k")
    train = pictures("train")
    return train[N_VALIDATION:] if name == "train" else train[:N_VALIDATION]


def pictures(part: str) -> list[Example]:
    if not _FOLDER.is_dir():
        raise SystemExit(f"there is no {_FOLDER}: `apt-get install dataset-fashion-mnist`, or set FASHION_MNIST")
    # Headers of 16 and 8 bytes come before the pixels and the labels.
    pixels = torch.frombuffer(_read(f"{part}-images-idx3-ubyte.gz")[16:], dtype=torch.uint8).view(-1, SIZE * SIZE)
    return list(zip(pixels, _read(f"{part}-labels-idx1-ubyte.gz")[8:], strict=True))


def batches(examples: list[Example], size: int, generator: torch.Generator) -> list[list[Example]]:
    order = torch.randperm(len(examples), generator=generator).tolist()
    return [[examples[i] for i in order[start : start + size]] for start in range(0, len(order), size)]


def collate(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """``pixel_values``, float32 ``[B, 1, 28, 28]``, and ``labels`` ``[B]``."""
    pixels = torch.stack([picture for picture, _ in batch]).view(-1, 1, SIZE, SIZE)
    return (pixels.float() / 255 - MEAN) / STD, torch.tensor([label for _, label in batch])


def _read(name: str) -> bytearray:
    with gzip.open(_FOLDER / name) as file:
        return bytearray(file.read())
