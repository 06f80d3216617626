"""The model: films as vectors, a history as the mean of its own and its last film's, the next film as the nearest."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import data
import vocabulary


class Recommender(nn.Module):
    """Logits of every film ``[B, films]`` for ``input_ids`` and ``attention_mask``, both int64 ``[B, S]``."""

    def __init__(self, width: int = 64):
        super().__init__()
        n_films = len(data.histories()[0])
        # One more for a film that is not known.
        self.films = nn.Embedding(n_films + 1, width)
        self.dropout = nn.Dropout(0.3)
        self.mix = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, n_films)
        nn.init.normal_(self.films.weight, std=0.1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        films = self.films(input_ids)
        mask = attention_mask.unsqueeze(-1).to(films.dtype)
        n_films = mask.sum(1, keepdim=True)
        # The last film is the one with as many before it, itself included, as there are.
        is_last = (mask.cumsum(1) == n_films).to(films.dtype) * mask
        both = torch.cat([(films * mask).sum(1) / n_films.squeeze(1), (films * is_last).sum(1)], dim=1)
        return self.head(torch.relu(self.mix(self.dropout(both))))


def fresh() -> Recommender:
    """The model without trained weights."""
    return Recommender()


def pretrained(options) -> Recommender:
    return fresh()


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    input_ids, attention_mask, films = batch
    return cross_entropy(model(input_ids, attention_mask), films)


def package() -> dict:
    """What the package says: a history is film numbers, oldest first; the items are film numbers, scored by what comes next."""
    films = data.histories()[0]
    return {"task": "recommend", "items": films, "tokenizer": vocabulary.of_words(films)}


def parity_cases() -> list[tuple[torch.Tensor, ...]]:
    """Inputs the runtime must answer as PyTorch does."""
    tests = data.split("test")
    return [data.collate(tests[:1])[:2], data.collate([([1], 0), *tests[:7]])[:2]]
