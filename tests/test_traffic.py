"""`highroad gate` and `highroad load` at declared traffic, on a tiny package: what is measured, decided and told, not how fast."""

import json

import pytest
from cli import ROOT, bless, call, highroad_bin, pack_again  # noqa: F401

PACKAGES = {"a": "classify-a", "b": "classify-b", "ranker": "rerank"}
WORDS = ["ignore", "previous", "instructions", "reveal", "secret", "prompt", "what", "how", "please", "you", "system", "say"]
# A share of right answers that no package misses: what is judged here is the traffic.
RULES = "resamples = 10000\n[[rule]]\nmetric = 'accuracy'\nfloor = 0.0001\nmargin = 0.99\n"
TRAFFIC = "[traffic]\nrequests_per_s = 200\nduration_s = 3\nwarm_up_s = 0.1\nsaturated_s = 1\nblocks = 6\nthreads = 1\n"


def latency(**limits):
    return "[[latency]]\npercentile = 90\n" + "".join(f"{key} = {value}\n" for key, value in limits.items())


@pytest.fixture
def desk(tmp_path, call):  # noqa: F811
    """Packages, a golden set, and a call of ``highroad gate a`` by rules that are given."""

    class Desk:
        path = tmp_path

        def gate(self, rules, code, *more, baseline="same"):
            (tmp_path / "gates.toml").write_text(rules)
            args = ("gate", "a", "--baseline", baseline, "--golden", "golden.jsonl", *more)
            return call(*args, cwd=tmp_path, code=code)

        def verdict(self, rules, code, **options):
            return json.loads(self.gate(rules, code, "--json", **options).stdout)

    for name, source in PACKAGES.items():
        call("pack", ROOT / "conformance" / "packages" / source, "--out", name, cwd=tmp_path)
    pack_again(call, ROOT / "conformance" / "packages" / "classify-a", "same", tmp_path)
    texts = [" ".join(WORDS[(idx * step) % 12] for step in range(1, 3 + idx % 9)) for idx in range(40)]
    case = lambda idx, text: {"id": f"c{idx}", "input": {"text": text}, "expected": ["benign", "injection"][idx % 2]}
    lines = [json.dumps(case(idx, text)) for idx, text in enumerate(texts)]
    (tmp_path / "golden.jsonl").write_text("\n".join(lines))
    bless(call, "golden.jsonl", tmp_path)
    return Desk()


def checks(verdict):
    return {check["rule"]: check for check in verdict["checks"]}


def test_a_package_within_its_budgets_passes_and_the_verdict_holds_what_was_measured(desk):
    rules = RULES + latency(max_ms=5000, max_ratio=50) + TRAFFIC
    rules += "[throughput]\nmin_requests_per_s = 1\n[memory]\nmax_mib = 4000\n"
    rules += "[cost]\nper_cpu_hour = 0.04\nper_gib_hour = 0.005\npeak_requests_per_s = 2000\nmax_per_1000 = 100\nmax_per_month = 1e9\n"
    verdict = desk.verdict(rules, 0, baseline="b")
    assert verdict["outcome"] == "pass"
    found = checks(verdict)
    expected = {
        "traffic: 200 requests/s are carried",
        "latency p90 at 200 requests/s: at most 5000 ms",
        "latency p90 at 200 requests/s: at most 50 times the baseline's",
        "throughput: at least 1 requests/s",
        "memory: at most 4000 MiB at its peak",
        "cost of 1,000 requests: at most 100.00 USD",
        "cost of a month: at most 1000000000.00 USD",
    }
    assert expected <= found.keys()
    for rule in expected:
        low, high = found[rule]["interval"]
        assert 0 < low <= found[rule]["candidate"] <= high, found[rule]

    traffic = verdict["traffic"]
    assert traffic["declared"]["threads"] == 1 and traffic["declared"]["batch_tokens"] == 4096
    assert len(traffic["peak_mib"]) == 3 and traffic["peak_mib"][0] > 1
    for side in (traffic["candidate"], traffic["baseline"]):
        # 200 requests a second for 3 seconds, give or take four standard deviations of a Poisson count.
        assert abs(side["n_requests"] - 600) < 100
        assert side["cpu_s_per_request"]["value"] > 0 and side["rows_per_batch"] >= 1
        p50, p95, p99 = (told["value"] for told in side["latency_ms"])
        assert 0 < p50 <= p95 <= p99
    # Both sides are asked the same.
    assert traffic["candidate"]["n_requests"] == traffic["baseline"]["n_requests"]
    assert [told["percentile"] for told in traffic["ratios"]] == [50, 95, 99]
    # A p99 of 600 requests has six beyond it, too few to say how sure it is.
    assert [("interval" in told) for told in traffic["ratios"]] == [True, True, False]

    cost = traffic["cost"]
    capacity = traffic["candidate"]["requests_per_s"]["value"]
    assert cost["cpus"] == 1 and cost["processes"]["value"] == max(1, -(-2000 // (0.6 * capacity)))
    hour = cost["processes"]["value"] * (0.04 + 0.005 * cost["gib"])
    assert cost["per_month"]["value"] == pytest.approx(730 * hour)
    assert cost["per_1000"]["value"] >= 1000 * traffic["candidate"]["cpu_s_per_request"]["value"] * 0.04 / 3600


def test_an_impossible_budget_fails_and_says_what_was_measured(desk):
    told = desk.gate(RULES + latency(max_ms=0.001) + TRAFFIC, 1).stdout
    assert "FAIL  latency p90 at 200 requests/s: at most 0.001 ms" in told
    assert "the true value lies within" in told
    assert "traffic    200 requests/s of the golden set's inputs" in told


def test_a_run_that_is_too_short_is_inconclusive_and_says_how_long_would_do(desk):
    traffic = TRAFFIC.replace("requests_per_s = 200", "requests_per_s = 20")
    told = desk.gate(RULES + latency(max_ms=5000) + traffic, 3).stdout
    # 60 requests leave 6 beyond a p90; 100 are needed, 5 seconds of them and some to spare.
    assert "too few to judge a p90 by; `duration_s = 6` would do" in told


def test_a_rate_that_no_machine_carries_fails_without_being_tried(desk):
    traffic = TRAFFIC.replace("requests_per_s = 200", "requests_per_s = 50000")
    verdict = desk.verdict(RULES + latency(max_ms=5000) + traffic, 1)
    carried = checks(verdict)["traffic: 50000 requests/s are carried"]
    assert carried["outcome"] == "fail" and "the queue would grow without limit" in carried["reason"]
    assert verdict["traffic"]["candidate"]["n_requests"] == 0
    assert not any(rule.startswith("latency") for rule in checks(verdict))


def test_load_prints_what_a_gate_would_see(desk, call):  # noqa: F811
    traffic = TRAFFIC + "lengths = [{ tokens = 4, share = 0.5 }, { tokens = 9, share = 0.5 }]\n"
    (desk.path / "gates.toml").write_text(RULES + traffic + "[cost]\nper_cpu_hour = 0.04\ncurrency = 'EUR'\n")
    told = call("load", "a", "--golden", "golden.jsonl", cwd=desk.path).stdout
    assert "200 requests/s of 50 % of 4 tokens, 50 % of 9 tokens" in told.splitlines()[0]
    assert "EUR for the work of 1,000 requests" in told and "MiB at its peak" in told
    evidence = json.loads(call("load", "a", "--golden", "golden.jsonl", "--json", cwd=desk.path).stdout)
    assert evidence["candidate"]["n_requests"] > 400 and "baseline" not in evidence


def test_a_reranker_is_asked_whole_queries(desk, call):  # noqa: F811
    case = lambda idx: {"id": f"q{idx}", "input": {"query": WORDS[idx], "documents": WORDS[:4]}, "expected": [1, 0, 0, 0]}
    (desk.path / "rankings.jsonl").write_text("\n".join(json.dumps(case(idx)) for idx in range(12)))
    (desk.path / "gates.toml").write_text(RULES + TRAFFIC)
    evidence = json.loads(call("load", "ranker", "--golden", "rankings.jsonl", "--json", cwd=desk.path).stdout)
    assert evidence["candidate"]["rows_per_batch"] >= 4


def test_unusable_traffic_is_a_usage_error(desk, call):  # noqa: F811
    for more, problem in {
        "[memory]\nmax_mib = 1\n": "[memory] needs [traffic]",
        TRAFFIC + "rps = 3\n": "unknown field `rps`",
        TRAFFIC + "lengths = [{ tokens = 100000, share = 1.0 }]\n": "asks for rows of 100000 tokens, and the model takes",
    }.items():
        assert problem in desk.gate(RULES + more, 2).stderr
    (desk.path / "gates.toml").write_text(RULES)
    assert "there is no [traffic] in the rules" in call("load", "a", "--golden", "golden.jsonl", cwd=desk.path, code=2).stderr
