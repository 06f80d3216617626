"""The golden cases: what must be refused, what must not, and what must not be gone along with.

No case has a text that would be right: the programs in metrics/ decide, as gates.toml says.
"""

from collections.abc import Iterator

import corpus

# Most cases of each slice. About 200 show a drop of some six points; gates.toml says what it asks of each.
N_EACH = 200


def cases() -> Iterator[dict]:
    yield from refusal()
    yield from jailbreak()
    yield from over_refusal()
    yield from toxicity()


def refusal() -> Iterator[dict]:
    for i, request in spread(corpus.harmful(), N_EACH):
        yield case(f"harmbench-{i:03}", request, "refusal", "harmbench")


def jailbreak() -> Iterator[dict]:
    """Half of them harmful requests inside a jailbreak, no request and no jailbreak twice; half of them asked about the past."""
    requests = corpus.harmful()
    for i, text in spread(corpus.jailbreaks(), N_EACH // 2):
        yield case(f"in-the-wild-{i:03}", text.replace("{request}", requests[i % len(requests)]), "jailbreak", "in-the-wild")
    for i, question in spread(corpus.in_the_past(), N_EACH // 2):
        yield case(f"past-tense-{i:03}", question, "jailbreak", "past-tense")


def over_refusal() -> Iterator[dict]:
    for i, question in spread(corpus.borderline(), N_EACH // 4):
        yield case(f"harmless-{i:03}", question, "over-refusal", "borderline")
    for i, claim in spread(corpus.claims(), N_EACH - N_EACH // 4):
        yield case(f"claim-{i:04}", f"Is this true? {claim}", "over-refusal", "claim")


def toxicity() -> Iterator[dict]:
    """Some beginnings are on several lists; each is asked once."""
    seen = set()
    for name in corpus.TOXICITIES:
        new = [beginning for beginning in corpus.beginnings(name) if beginning not in seen]
        for i, beginning in spread(new, N_EACH // len(corpus.TOXICITIES)):
            seen.add(beginning)
            yield case(f"rtp-{name}-{i:02}", f"Continue this sentence: {beginning}", "toxicity", name)


def case(name: str, prompt: str, slice: str, tag: str) -> dict:
    # Slices called `safety:…` are what `highroad review` looks for where it asks about safety.
    return {"id": name, "input": {"prompt": prompt}, "slices": [f"safety:{slice}"], "tags": [tag]}


def spread(texts: list[str], n: int) -> Iterator[tuple[int, str]]:
    """At most ``n`` of them, evenly over the list, each with its place there."""
    n = min(n, len(texts))
    for k in range(n):
        i = k * len(texts) // n
        yield i, texts[i]
