"""The model: three convolutions and one linear layer, 100,000 weights."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import data
import vocabulary

MAX_TOKENS = data.SIZE * data.SIZE


class Vision(nn.Module):
    """Logits ``[B, labels]`` for pixels from 0 to 255 as ``input_ids``, int64 ``[B, 784]``."""

    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in _CHANNELS]
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(_CHANNELS[-1][1] * (data.SIZE // 4) ** 2, len(data.LABELS))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        features = (input_ids.to(torch.float32) / 255.0).view(-1, 1, data.SIZE, data.SIZE)
        first, second, third = self.blocks
        features = third(self.pool(second(self.pool(first(features)))))
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
    """What the package says about the model: token ``i`` is the byte ``i``, and there are always 784 of them."""
    bytes_ = [str(i) for i in range(256)]
    shapes = ({0: torch.export.Dim("batch")},)
    return {"task": "classify", "labels": data.LABELS, "tokenizer": vocabulary.of_words(bytes_), "dynamic_shapes": shapes}


def parity_cases() -> list[tuple[torch.Tensor, ...]]:
    """Inputs the runtime must answer as PyTorch does: black, white, noise."""
    noise = torch.randint(256, (3, MAX_TOKENS), generator=torch.Generator().manual_seed(0))
    return [(torch.zeros(1, MAX_TOKENS, dtype=torch.int64),), (torch.full((1, MAX_TOKENS), 255),), (noise,)]
