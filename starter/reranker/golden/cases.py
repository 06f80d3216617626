"""The golden cases: held-out titles beside their own extract and two wrong ones.

The wrong ones are those that share most words with the right one, which no model decides.
"""

from collections.abc import Iterator

from sklearn.feature_extraction.text import CountVectorizer

import data

N_QUERIES = 200


def cases() -> Iterator[dict]:
    corpus = data.articles()[: data.N_SEARCHED]
    words = CountVectorizer(binary=True, stop_words="english").fit_transform(text for _, text in corpus)
    for query in range(data.N_TEST)[:N_QUERIES]:
        shared = (words @ words[query].T).toarray().ravel()
        shared[query] = -1
        for document in (query, *shared.argsort(kind="stable")[-2:].tolist()):
            label = data.LABELS[query == document]
            yield {
                "id": f"wikipedia-{query:04}-{document:04}",
                "input": {"text": data.pair(corpus[query][0], corpus[document][1])},
                "expected": label,
                "slices": [f"pair:{label}"],
            }
