"""Hosted models and judges: SmolLM2 behind llama.cpp's own server, and our own server's members, asked by `highroad`."""

import json
import os
import subprocess
from pathlib import Path

import openai
import pytest
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from conftest import KEY, serving

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "Spain": "Madrid", "Peru": "Lima"}


def describe(folder: Path, name: str, base_url: str, **more) -> Path:
    """Writes a description; `more` are its keys, tables as dictionaries."""
    keys = {"highroad_hosted": 1, "task": "generate", "base_url": base_url, "model": "smollm2"} | more
    tables = {key: value for key, value in keys.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items() if key not in tables]
    for table, values in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


WRITER = {
    "api_key_env": "HOSTED_KEY",
    "system": "You answer with one word.",
    "prompt": "What is the capital of {input}? Answer with the name of the city only.",
    "temperature": 0.0,
    "seed": 7,
    "max_tokens": 8,
    "logprobs": True,
    "limits": {"concurrency": 2},
    "price": {"currency": "EUR", "input_per_million": 0.5, "output_per_million": 2.0},
}


@pytest.fixture
def capitals(tmp_path):
    rows = [
        {"id": country, "input": {"prompt": country}, "expected": [city, f"{city}."]}
        for country, city in CAPITALS.items()
    ]
    path = tmp_path / "capitals.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(call, tmp_path, description, golden, *more, key=KEY, **options):
    done = call(
        "eval", description, "--golden", golden, "--json", *more, cwd=tmp_path, HOSTED_KEY=key, **options
    )
    return done if options.get("code") else json.loads(done.stdout)


def test_a_hosted_model_is_evaluated_paid_for_and_not_asked_twice(call, tmp_path, smollm2, capitals):
    writer = describe(tmp_path, "writer.toml", smollm2, **WRITER)
    first = evaluate(call, tmp_path, writer, capitals, "--out", tmp_path / "answers.json", "--max-cost", "0.01")
    assert first["numerics_id"] == "hosted: the bits are not ours"
    hosted = first["hosted"]
    assert (hosted["n_questions"], hosted["n_kept"], hosted["n_uncounted"]) == (6, 0, 0)
    assert hosted["input_tokens"] > 6 * 20 and 6 <= hosted["output_tokens"] <= 48
    cost = (0.5 * hosted["input_tokens"] + 2.0 * hosted["output_tokens"]) / 1e6
    assert hosted["cost"] == {"currency": "EUR", "of_answers": pytest.approx(cost), "of_this_run": pytest.approx(cost)}
    metrics = {row["metric"]: row["value"] for row in first["summaries"][0]["metrics"]}
    assert metrics["token_f1"] > 0 and metrics["perplexity"] > 1, "SmolLM2 knows some capitals"
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["evidence"] == "observed" and len(answers["speed"]["single_ms"]) == 6
    assert all(time > 1 for time in answers["speed"]["single_ms"])

    again = evaluate(call, tmp_path, writer, capitals, key="wrong-by-now-and-never-used")
    assert (again["hosted"]["n_kept"], again["answers"]) == (6, first["answers"])
    assert again["hosted"]["cost"] == {"currency": "EUR", "of_answers": pytest.approx(cost), "of_this_run": 0.0}
    anew = evaluate(call, tmp_path, writer, capitals, "--no-cache")
    assert (anew["hosted"]["n_kept"], anew["answers"]) == (0, first["answers"]), "greedy, so the same again"

    report = call("eval", writer, "--golden", capitals, cwd=tmp_path, HOSTED_KEY=KEY).stdout
    assert "6 questions (6 kept from earlier)" in report and "EUR for these answers" in report
    kept = b"".join(path.read_bytes() for path in (tmp_path / ".highroad").rglob("*") if path.is_file())
    assert b"aris" in kept and KEY.encode() not in kept


def test_money_runs_out_before_it_is_spent_and_nothing_is_lost(call, tmp_path, smollm2, capitals):
    dear = WRITER | {"price": {"currency": "EUR", "input_per_million": 0.0, "output_per_million": 1e6}}
    writer = describe(tmp_path, "writer.toml", smollm2, **dear)
    # 8 EUR an answer at most: the third may pass 17.
    error = evaluate(call, tmp_path, writer, capitals, "--max-cost", "17", code=2).stderr
    assert "stopped before more than 17 EUR is spent" in error and "a larger --max-cost goes on from there" in error
    rest = evaluate(call, tmp_path, writer, capitals, "--max-cost", "100")["hosted"]
    assert 2 <= rest["n_kept"] < 6 and rest["cost"]["of_this_run"] < rest["cost"]["of_answers"]
    free = describe(tmp_path, "free.toml", smollm2, **{key: WRITER[key] for key in WRITER if key != "price"})
    assert "has no [price]" in evaluate(call, tmp_path, free, capitals, "--no-cache", "--max-cost", "1", code=2).stderr


def test_a_wrong_key_and_a_key_in_the_file_are_refused(call, tmp_path, smollm2, capitals):
    writer = describe(tmp_path, "writer.toml", smollm2, **WRITER)
    error = evaluate(call, tmp_path, writer, capitals, key="not-the-key", code=2).stderr
    assert "0 of 6 questions are answered, and kept" in error and "refused the key with 401: Invalid API Key" in error
    assert "not-the-key" not in error
    leaky = describe(tmp_path, "leaky.toml", smollm2, api_key=KEY)
    error = evaluate(call, tmp_path, leaky, capitals, code=2).stderr
    assert "unknown field `api_key`" in error and KEY not in error


def test_a_hosted_model_is_gated_against_another(call, tmp_path, smollm2, capitals):
    bless(call, capitals, tmp_path)
    champion = describe(tmp_path, "champion.toml", smollm2, **WRITER)
    mute = describe(tmp_path, "mute.toml", smollm2, **WRITER | {"prompt": "{input}", "max_tokens": 1})
    (tmp_path / "gates.toml").write_text("[[rule]]\nmetric = 'exact_match'\nmargin = 0.1\n")
    gate = ["gate", mute, "--baseline", champion, "--golden", capitals, "--json"]
    done = call(*gate, cwd=tmp_path, code=3, HOSTED_KEY=KEY)
    verdict = json.loads(done.stdout)
    assert (verdict["evidence"], verdict["outcome"]) == ("observed", "inconclusive"), "six cases show nothing"
    assert verdict["hosted"]["n_questions"] == 6 and verdict["baseline"]["package"].startswith("sha256:")
    (tmp_path / "gates.toml").write_text(
        "[[rule]]\nmetric = 'exact_match'\nmargin = 0.1\n[traffic]\nrequests_per_s = 1\n"
    )
    assert "[traffic] loads packages in this process" in call(*gate, cwd=tmp_path, code=2, HOSTED_KEY=KEY).stderr


JUDGE = {
    "api_key_env": "HOSTED_KEY",
    "temperature": 0.0,
    "seed": 3,
    "max_tokens": 32,
    "structured": True,
    "limits": {"concurrency": 2},
}
SCALE = """
[judge.helpful]
model = "judge.toml"
prompt = "Question: the capital of {input}?\\nRight: {reference}\\nGiven: {answer}\\nScore the given answer from 1 to 5 as {\\"score\\": 3}."
repeats = 2
"""


@pytest.fixture
def judged(tmp_path, smollm2, capitals):
    """A blessed golden set of three cases, a writer, and a judge beside the rules."""
    capitals.write_text("".join(capitals.read_text().splitlines(keepends=True)[:3]))
    describe(tmp_path, "judge.toml", smollm2, **JUDGE)
    return capitals, describe(tmp_path, "writer.toml", smollm2, **WRITER)


def test_a_judge_scores_as_its_real_client_hears_it(call, tmp_path, smollm2, judged):
    golden, writer = judged
    (tmp_path / "gates.toml").write_text(f"[[rule]]\nmetric = 'judged'\njudge = 'helpful'\nfloor = 0.1\n{SCALE}")
    report = evaluate(call, tmp_path, writer, golden, "--gates", tmp_path / "gates.toml", "--out", tmp_path / "out.json")
    cases = {case["id"]: case["value"]["generated"] for case in json.loads((tmp_path / "out.json").read_text())["cases"]}
    client = openai.OpenAI(base_url=smollm2, api_key=KEY)
    schema = {"type": "object", "properties": {"score": {"enum": [1, 2, 3, 4, 5]}}, "required": ["score"]}
    for country, generated in cases.items():
        prompt = (
            f"Question: the capital of {country}?\nRight: {CAPITALS[country]}\n{CAPITALS[country]}.\n"
            f"Given: {generated['texts'][0]}\nScore the given answer from 1 to 5 as {{\"score\": 3}}."
        )
        said = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": prompt}],
            temperature=0.0,
            seed=3,
            max_tokens=32,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "score", "strict": True, "schema": schema | {"additionalProperties": False}},
            },
        )
        score = json.loads(said.choices[0].message.content)["score"]
        assert generated["judged"] == {"helpful": (score - 1) / 4}, country
    (judge,) = report["judges"]
    assert (judge["n_judged"], judge["repeats"], judge["n_unreadable"], judge["self_disagreement"]) == (3, 2, 0, 0.0)
    assert judge["hosted"]["n_questions"] == 6, "each repeat is asked, though the judge is greedy"
    row = next(row for row in report["summaries"][0]["metrics"] if row["metric"] == "judged")
    assert row["label"] == "helpful"
    assert row["value"] == pytest.approx(sum(case["judged"]["helpful"] for case in cases.values()) / 3)


def test_a_pair_is_judged_in_both_orders_and_equals_tie(call, tmp_path, smollm2, judged):
    golden, writer = judged
    bless(call, golden, tmp_path)
    (tmp_path / "gates.toml").write_text(
        """
        [[rule]]
        metric = "judged"
        judge = "better"
        margin = 0.4
        [judge.better]
        model = "judge.toml"
        mode = "pairwise"
        prompt = "Which names the capital of {input}?\\nA: {a}\\nB: {b}\\nReply {\\"winner\\": \\"A\\"}, {\\"winner\\": \\"B\\"} or {\\"winner\\": \\"tie\\"}."
        repeats = 1
        """
    )
    refused = call("gate", writer, "--baseline", writer, "--golden", golden, cwd=tmp_path, code=2, HOSTED_KEY=KEY).stderr
    assert "the baseline is the candidate itself" in refused
    same = describe(tmp_path, "same.toml", smollm2, **WRITER | {"seed": 8})
    gate = ["gate", same, "--baseline", writer, "--golden", golden, "--json"]
    verdict = json.loads(call(*gate, cwd=tmp_path, code=3, HOSTED_KEY=KEY).stdout)
    (check,) = verdict["checks"]
    assert check["rule"].startswith('score by judge "better": not worse')
    assert (check["candidate"], check["baseline"]) == (0.5, 0.5), "equal texts: whatever the order says, it is a tie"
    (judge,) = verdict["judges"]
    assert judge["position_inconsistency"] in (0.0, 1 / 3, 2 / 3, 1.0) and judge["mode"] == "pairwise"
    assert judge["model"] != verdict["package"] and judge["prompt"].startswith("sha256:")
    assert judge["different"]["n"] == 0, "equal texts say nothing about the judge"
    assert "was never compared with people" in call(*gate[:-1], cwd=tmp_path, code=3, HOSTED_KEY=KEY).stdout
    other = describe(tmp_path, "other.toml", smollm2, **WRITER | {"prompt": "Write three dots, not {input}."})
    gate[1] = other
    verdict = json.loads(call(*gate, cwd=tmp_path, code=3, HOSTED_KEY=KEY).stdout)
    assert verdict["checks"][0]["baseline"] == 0.5 and 0 <= verdict["checks"][0]["candidate"] <= 1
    (judge,) = verdict["judges"]
    assert judge["hosted"]["n_questions"] == 6, "three pairs, both orders"
    different = judge["different"]
    assert (different["n"], different["order_decided"]) == (3, judge["position_inconsistency"])
    assert different["order_decided"] + different["told_apart"] <= 1
    # Of three pairs not even none shows that the order does not decide.
    assert verdict["checks"][0]["reason"].startswith("the order decided ") and not verdict["checks"][0].get("waivable")
    trivial = call("gate", other, "--baseline", "trivial", "--golden", golden, cwd=tmp_path, code=2, HOSTED_KEY=KEY)
    assert "the baseline must be a model that writes" in trivial.stderr


def test_a_judge_that_people_do_not_agree_with_is_not_used(call, tmp_path, judged):
    golden, writer = judged
    bless(call, golden, tmp_path)
    rows = [
        # One answer scored in two ways: nobody who scores it alike each time agrees with both.
        {"input": "Chile", "reference": "Santiago", "answer": "Santiago", "scores": [score]}
        for score in (5, 1, 5, 1)
    ]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = f"[[rule]]\nmetric = 'judged'\njudge = 'helpful'\nfloor = 0.1\n{SCALE}labels = 'people.jsonl'\n"
    gate = ["gate", writer, "--baseline", "trivial", "--golden", golden, "--json"]
    (tmp_path / "gates.toml").write_text(
        rules.replace("floor", "margin = 0.9\nfloor", 1) + "agreement = { measure = 'kappa', floor = 0.6 }\n"
    )
    error = call(*gate, cwd=tmp_path, code=2, HOSTED_KEY=KEY).stderr
    assert "judge `helpful` is not used: Cohen's kappa is 0.000" in error and "below the floor of 0.6" in error
    rules = rules.replace("repeats = 2", "repeats = 1")
    assert not list((tmp_path / ".highroad").rglob("verdicts/*/*.json"))
    # Without a floor the same agreement is only told.
    report = evaluate(call, tmp_path, writer, golden, "--gates", rules_file(tmp_path, rules))
    agreement = report["judges"][0]["agreement"]
    assert (agreement["n_labelled"], agreement["measure"]) == (4, "alpha_ordinal") and agreement["value"] < 0.6


def rules_file(folder: Path, text: str) -> Path:
    path = folder / "told.toml"
    path.write_text(text)
    return path


def test_a_judge_that_says_no_score_is_told_apart_from_a_bad_one(call, tmp_path, smollm2, judged):
    golden, writer = judged
    describe(tmp_path, "judge.toml", smollm2, **JUDGE | {"structured": False, "max_tokens": 2})
    rules = SCALE.replace('Score the given answer from 1 to 5 as {\\"score\\": 3}.', "Reply with the word yes.").replace("= 2", "= 1")
    path = rules_file(tmp_path, f"[[rule]]\nmetric = 'judged'\njudge = 'helpful'\nfloor = 0.1\n{rules}")
    error = evaluate(call, tmp_path, writer, golden, "--gates", path, code=2).stderr
    assert "gave no score for `France` that can be read" in error and "structured = true" in error


@pytest.fixture(scope="module")
def ours(highroad, tmp_path_factory):
    """Our own server with an embedder, a moderation and a reranker, and their packages."""
    home = tmp_path_factory.mktemp("ours")
    environment = os.environ | {"HIGHROAD_HOME": str(home)}
    packages = {}
    for name in ("classify-a", "embed", "rerank"):
        packages[name] = home / name
        command = [str(highroad), "pack", str(ROOT / "conformance" / "packages" / name), "-o", str(packages[name])]
        subprocess.run(command, check=True, env=environment, cwd=home, capture_output=True)
    members = [f'[members.{name}]\nmodel = "{path}"\nthreads = 1\n' for name, path in packages.items()]
    (home / "portfolio.toml").write_text("".join(members))
    command = [str(highroad), "serve", "--portfolio", str(home / "portfolio.toml"), "--development"]
    with serving([*command, "--listen", "127.0.0.1:0"], home / "log", env=environment, cwd=home) as url:
        yield f"{url}/v1", packages


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(call, tmp_path, model, golden):
    out = tmp_path / "answers.json"
    call("eval", model, "--golden", golden, "--json", "--out", out, cwd=tmp_path)
    return json.loads(out.read_text())


TEXTS = ["hello", "ignore all previous instructions", "the road goes on", "a", "hello the road"]


def test_our_own_server_asked_as_a_host_embeds_with_the_bits_of_the_package(call, tmp_path, ours):
    url, packages = ours
    rows = [
        {"id": str(i), "input": {"a": a, "b": TEXTS[i - 1]}, "expected": i / 5} for i, a in enumerate(TEXTS)
    ]
    golden = jsonl(tmp_path / "pairs.jsonl", rows)
    hosted = answers(call, tmp_path, describe(tmp_path, "e.toml", url, task="embed", model="embed"), golden)
    package = answers(call, tmp_path, packages["embed"], golden)
    assert hosted["answers"] == package["answers"], "the digest of every vector's bits"
    assert hosted["cases"] == package["cases"] and hosted["evidence"] != package["evidence"]


def test_our_own_server_asked_as_a_host_moderates_and_reranks_as_the_packages_do(call, tmp_path, ours):
    url, packages = ours
    manifest = json.loads((packages["classify-a"] / "manifest.json").read_text())
    flagged = manifest["task"]["flagged"]
    labels = [next(label for label in manifest["task"]["labels"] if label != flagged), flagged]
    rows = [{"id": str(i), "input": {"text": text}, "expected": labels[i % 2]} for i, text in enumerate(TEXTS)]
    golden = jsonl(tmp_path / "labels.jsonl", rows)
    moderation = describe(tmp_path, "m.toml", url, task="moderate", model="classify-a", labels=labels)
    hosted, package = (answers(call, tmp_path, model, golden) for model in (moderation, packages["classify-a"]))
    for one, other in zip(hosted["cases"], package["cases"], strict=True):
        one, other = one["value"]["class"], other["value"]["class"]
        place = package["labels"].index(flagged)
        assert one["label"] == other["label"] or len(package["labels"]) > 2
        assert one["scores"][1] == pytest.approx(other["scores"][place], abs=1e-6)

    rows = [{"id": "q", "input": {"query": TEXTS[2], "documents": TEXTS}, "expected": [0, 0, 2, 0, 1]}]
    golden = jsonl(tmp_path / "ranks.jsonl", rows)
    reranker = describe(tmp_path, "r.toml", url, task="rerank", model="rerank")
    hosted, package = (answers(call, tmp_path, model, golden) for model in (reranker, packages["rerank"]))
    (one,), (other,) = hosted["cases"], package["cases"]
    order = lambda scores: sorted(range(5), key=lambda i: -scores[i])  # noqa: E731
    assert order(one["value"]["scores"]) == order(other["value"]["scores"])


def test_a_text_model_classifies_by_a_label_that_it_is_held_to(call, tmp_path, smollm2):
    rows = [{"id": t, "input": {"text": t}, "expected": l} for t, l in [("I love it", "good"), ("I hate it", "bad")]]
    golden = jsonl(tmp_path / "moods.jsonl", rows)
    keys = JUDGE | {"task": "classify", "labels": ["good", "bad"], "prompt": 'Is this good or bad? {input}\nReply {"label": "good"} or {"label": "bad"}.'}
    mood = describe(tmp_path, "mood.toml", smollm2, **keys)
    out = tmp_path / "moods.json"
    call("eval", mood, "--golden", golden, "--json", "--out", out, cwd=tmp_path, HOSTED_KEY=KEY)
    result = json.loads(out.read_text())
    assert result["labels"] == ["good", "bad"], "held to the schema, it always names one"
    assert {case["value"]["class"]["label"] for case in result["cases"]} <= {"good", "bad"}
    other = call("eval", mood, "--golden", jsonl(tmp_path / "p.jsonl", [
        {"id": "p", "input": {"prompt": "x"}, "expected": "y"}
    ]), cwd=tmp_path, code=2, HOSTED_KEY=KEY)
    assert "the model is made to classify, but the golden set asks for texts" in other.stderr
