"""The model: three convolutions and one linear layer, 100,000 weights."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import data


class Vision(nn.Module):
    """Logits ``[B, labels]`` for ``pixel_values``, float32 ``[B, 1, 28, 28]``."""

    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in _CHANNELS]
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(_CHANNELS[-1][1] * (data.SIZE // 4) ** 2, len(data.LABELS))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        first, second, third = self.blocks
        features = third(self.pool(second(self.pool(first(pixel_values)))))
        return self.head(self.dropout(features.flatten(1)))


_CHANNELS = ((1, 16), (16, 32), (32, 64))


def fresh() -> Vision:
    """The model without trained weights."""
    return Vision()


def pretrained(options) -> Vision:
    """Nothing is pretrained here: the pictures are few and small enough to begin anew."""
    return fresh()


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    pixels, labels = batch
    return cross_entropy(model(pixels), labels)


def package() -> dict:
    """What the package says about the model: any PNG, JPEG or WebP is made what it was trained on."""
    return {"task": "classify", "labels": data.LABELS, "image": data.IMAGE}


def parity_cases() -> list[tuple[torch.Tensor, ...]]:
    """Inputs the runtime must answer as PyTorch does: black, white, noise."""
    size = (1, data.SIZE, data.SIZE)
    noise = torch.rand((3, *size), generator=torch.Generator().manual_seed(0))
    pixels = [torch.zeros(1, *size), torch.ones(1, *size), noise]
    return [((values - data.MEAN) / data.STD,) for values in pixels]
