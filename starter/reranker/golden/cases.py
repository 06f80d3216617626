"""The golden cases: held-out titles beside what the embedder finds for them, in its order, and which document is right.

A gate against the trivial baseline, the order the documents came in, therefore asks whether the reranker is better than the
embedder it starts from. Where the embedder did not find the right document no order helps, and the query counts nothing.
"""

from collections.abc import Iterator

import data

N_QUERIES = 300


def cases() -> Iterator[dict]:
    corpus = data.articles()[: data.N_SEARCHED]
    queries = range(data.N_TEST)[:N_QUERIES]
    for query, found in zip(queries, data.mined(corpus, queries, data.N_CANDIDATES), strict=True):
        yield {
            "id": f"wikipedia-{query:04}",
            "input": {"query": corpus[query][0], "documents": [corpus[i][1] for i in found]},
            "expected": [int(i == query) for i in found],
            "slices": ["found:first" if found[0] == query else "found:later" if query in found else "found:not"],
        }
