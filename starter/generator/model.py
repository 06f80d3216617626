"""The model: a small causal language model, 0.5 million weights, that knows nothing before it is trained.

Its size is what two cores can train in minutes: it spells and punctuates, and has nothing to say. The loop, the checkpoints, the
golden set and the gate are those of a larger one.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

import data
import vocabulary

N_CHARACTERS, KERNEL = len(data.LABELS) + 1, 4


class Generator(nn.Module):
    """Logits of the next character for ``input_ids`` and ``attention_mask``, both int64 ``[B, S]``.

    After every position while training, ``[B, S, characters + 1]``; after the last one, ``[B, characters]``, when it answers.
    """

    def __init__(self, width: int = 192):
        super().__init__()
        self.characters = nn.Embedding(N_CHARACTERS, width)
        # Each block sees four times as far back as the one before: 4, 16, 64 and, cut by the window, 256 characters.
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, KERNEL, dilation=KERNEL**i) for i in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.blocks)
        self.head = nn.Linear(width, N_CHARACTERS)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.characters(input_ids)
        for i, (block, norm) in enumerate(zip(self.blocks, self.norms, strict=True)):
            # Padding on the left only, so that no position sees a later one.
            seen = pad(norm(hidden).transpose(1, 2), ((KERNEL - 1) * KERNEL**i, 0))
            hidden = hidden + torch.relu(block(seen)).transpose(1, 2)
        if self.training:
            return self.head(hidden)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        is_last = (mask.cumsum(1) == mask.sum(1, keepdim=True)).to(hidden.dtype) * mask
        # The unknown character is never written.
        return self.head((hidden * is_last).sum(1))[:, :-1]


def fresh() -> Generator:
    """The model without trained weights."""
    return Generator()


def pretrained(options) -> Generator:
    return fresh()


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean loss of every character after those before it; needs training mode."""
    logits = model(batch[:, :-1], torch.ones_like(batch[:, :-1]))
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def package() -> dict:
    """What the package says: a text is answered by the scores of each character to come next."""
    return {"task": "classify", "labels": data.LABELS, "tokenizer": vocabulary.of_characters(data.CHARACTERS)}


def parity_cases() -> list[tuple[torch.Tensor, ...]]:
    """Inputs the runtime must answer as PyTorch does."""
    one, *more = (data.encode(text[: 5 + 20 * i]) for i, text in enumerate(data.texts("test")[:5]))
    return [_padded([one]), _padded([[0] * data.WINDOW]), _padded([one, *more])]


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return input_ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
