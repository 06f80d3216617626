"""Reports of gates and evaluations as those read them who get them: a browser, CI systems, and GitHub's Markdown."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import cmarkgfm
import pytest
from cli import ROOT, bless, call, highroad_bin, pack_again  # noqa: F401
from cmarkgfm.cmark import Options
from junitparser import Failure, JUnitXml
from playwright.sync_api import sync_playwright

AXE = ROOT / "dashboard" / "node_modules" / "axe-core" / "axe.min.js"
WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
N_CASES = 120
HOSTILE = "</td><script>window.hacked=1</script><img src=https://evil.example/x onerror=window.hacked=1> | **b** `c` www.evil.example @you \u202eabc"


@pytest.fixture(scope="module")
def desk(tmp_path_factory, call):  # noqa: F811
    """Packages `a`, `b`, `e`, `r`, and golden sets that call right what `a` answers."""
    folder = tmp_path_factory.mktemp("reports")
    for source, name in [("classify-a", "a"), ("classify-b", "b"), ("embed", "e"), ("rerank", "r")]:
        call("pack", ROOT / "conformance" / "packages" / source, "-o", name, cwd=folder)
    texts = [" ".join(WORDS[(n // 12**place + place * n) % 12] for place in range(3 + n % 3)) + f" {n}" for n in range(N_CASES)]
    texts[7] = HOSTILE
    texts[9] = "long " * 200_000
    write(folder / "all.jsonl", [{"id": f"c{n}", "input": {"text": text}, "expected": "benign"} for n, text in enumerate(texts)])
    call("eval", "a", "--golden", "all.jsonl", "--out", "a.json", cwd=folder)
    right = [case["value"]["class"]["label"] for case in json.loads((folder / "a.json").read_text())["cases"]]
    labels = json.loads((folder / "a.json").read_text())["labels"]
    cases = [{"id": f"c{n}", "input": {"text": text}, "expected": right[n], "slices": [["even", "odd"][n % 2]]} for n, text in enumerate(texts)]
    cases[7]["id"], cases[7]["slices"] = f"::error::{HOSTILE}", [HOSTILE, "odd"]
    cases[7]["expected"] = next(label for label in labels if label != right[7])
    cases[3]["must_pass"] = True
    write(folder / "golden.jsonl", cases)
    bless(call, "golden.jsonl", folder)
    (folder / "gates.toml").write_text("[[rule]]\nmetric = 'accuracy'\nmargin = 0.05\n[[rule]]\nmetric = 'accuracy'\nslice = '*'\nfloor = 0.2\n")
    write(folder / "pairs.jsonl", [{"id": f"p{n}", "input": {"a": texts[n], "b": texts[n + 1]}, "expected": n % 7} for n in range(20, 80)])
    documents = [" ".join(WORDS[n : n + 3]) for n in range(6)]
    write(folder / "rankings.jsonl", [{"id": f"q{n}", "input": {"query": texts[n], "documents": documents}, "expected": [int(m == n % 6) for m in range(6)], "slices": [["x", "y"][n % 2]]} for n in range(20, 80)])
    return folder


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("command", [["eval", "b", "--golden", "golden.jsonl"], ["golden", "coverage", "golden.jsonl"], ["golden", "lint", "golden.jsonl"]])
def test_a_reader_that_leaves_ends_a_command_without_a_word(desk, highroad_bin, command):  # noqa: F811
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([highroad_bin, *command], cwd=desk, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 128 + 13 and "error" not in done.stderr and "panicked" not in done.stderr, done


@pytest.fixture(scope="module")
def gated(desk, call):  # noqa: F811
    """What a gate on GitHub Actions says and writes."""
    files = ["--html", "gate.html", "--markdown", "gate.md", "--junit", "gate.xml"]
    variables = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(desk / "summary.md")}
    return call("gate", "b", "--baseline", "a", "--golden", "golden.jsonl", *files, cwd=desk, code=1, **variables)


@pytest.fixture(scope="module")
def evaluated(desk, call):  # noqa: F811
    for package, golden in [("b", "golden"), ("e", "pairs"), ("r", "rankings")]:
        files = ["--html", f"{golden}.html", "--markdown", f"{golden}.md", "--junit", f"{golden}.xml"]
        call("eval", package, "--golden", f"{golden}.jsonl", *files, cwd=desk)
    return desk


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed: run `scripts/debian-tools chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["gate", "golden", "pairs", "rankings"])
def test_a_page_asks_nobody_runs_nothing_and_is_accessible(name, scheme, desk, gated, evaluated, browser):
    troubles = []
    # The policy of the page holds for what is injected into it too, so axe runs in a context that has none.
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme, bypass_csp=True)
    strict = browser.new_context(color_scheme=scheme)
    url = (desk / f"{name}.html").as_uri()
    for page in (strict.new_page(), context.new_page()):
        page.on("console", lambda told: troubles.append(told.text))
        page.on("request", lambda asked: asked.url == url or troubles.append(asked.url))
        page.goto(url)
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.scripts.length + document.images.length") == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
        assert page.locator("svg[role=img] > title").count() == page.locator("figure").count() > 0
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in found] == []
    assert troubles == []
    context.close()
    strict.close()


def test_a_page_is_small_however_long_a_text_is(desk, gated, evaluated):
    for name in ["gate", "golden", "pairs", "rankings"]:
        assert (desk / f"{name}.html").stat().st_size < 400_000, name


def test_the_verdict_comes_first_then_flips_by_slice_then_numbers(desk, gated, browser):
    page = browser.new_page()
    page.goto((desk / "gate.html").as_uri())
    headings = page.locator("h1, h2, h3").all_inner_texts()
    assert headings[0].startswith("FAIL: ") and headings[1].startswith("Flips: ")
    assert headings.index("Checks") > max(n for n, told in enumerate(headings) if " lost, " in told)
    n_lost = int(re.search(r"Flips: (\d+) lost", headings[1])[1])
    shown = page.locator("tr.lost").count()
    more = sum(int(told.split()[1]) for told in page.locator("section > p.soft").all_inner_texts())
    n_flips = page.locator("tr.won").count() + shown + more
    flips = json.loads(Path(gated.stderr.splitlines()[-1]).read_text())["flips"]
    assert (n_lost, n_flips) == (sum(flip["regression"] for flip in flips), len(flips))
    # Every rendering has the same headline.
    assert headings[0] in gated.stdout
    assert gated.stdout.index("FAIL: ") < gated.stdout.index("case(s) lost") < gated.stdout.index("exact McNemar")
    page.close()


def test_hostile_text_is_only_text_in_markdown(desk, gated, evaluated):
    for name in ["gate", "golden"]:
        markdown = (desk / f"{name}.md").read_text()
        html = cmarkgfm.github_flavored_markdown_to_html(markdown, options=Options.CMARK_OPT_UNSAFE)
        assert "window.hacked=1" in html and "<script" not in html and "<img" not in html and "<a " not in html, name
        rows = {len(re.findall("<t[dh]", row)) for row in re.findall("<tr>.*?</tr>", html, re.S)}
        assert rows <= {4, 5, 6, 7}, "a cell of a case broke its row"
        assert "\u202e" not in markdown and "<strong>b</strong>" not in html and "<code>" not in html


def test_github_gets_annotations_and_a_summary(desk, gated):
    assert (desk / "summary.md").read_text() == (desk / "gate.md").read_text()
    commands = [line for line in gated.stderr.splitlines() if line.startswith("::")]
    assert commands[0].startswith("::error title=highroad gate::FAIL: ")
    assert all(re.match(r"::(error|warning|notice) title=[^:,]+::.+", line) for line in commands), commands
    # What a case is called is no command: the runner does not listen while cases are told.
    lines = gated.stdout.splitlines()
    token = re.fullmatch("::stop-commands::([0-9a-f]{32})", lines[0])[1]
    assert lines[-1] == f"::{token}::" and lines.count(f"::{token}::") == 1


def test_nothing_is_annotated_elsewhere(desk, call):  # noqa: F811
    pack_again(call, ROOT / "conformance/packages/classify-a", "same", desk)
    done = call("gate", "a", "--baseline", "same", "--golden", "golden.jsonl", cwd=desk, code=3, GITHUB_ACTIONS="", GITHUB_STEP_SUMMARY=str(desk / "none.md"))
    assert "::" not in done.stderr and "stop-commands" not in done.stdout and not (desk / "none.md").exists()


def test_ci_systems_read_checks_and_must_pass_cases(desk, gated, evaluated):
    document = JUnitXml.fromfile(str(desk / "gate.xml"))
    suites = {suite.name: suite for suite in document}
    checks = list(suites["gate"])
    assert [check.name for check in checks][1].startswith("accuracy: not worse by more than 5.0 points")
    failed = [result for check in checks for result in check.result]
    assert failed and all(isinstance(result, Failure) and result.type in ("fail", "inconclusive") for result in failed)
    assert document.failures == len(failed) + sum(bool(case.result) for case in suites["must-pass cases"])
    assert [case.name for case in suites["must-pass cases"]] == ["c3"]
    (pinned,) = JUnitXml.fromfile(str(desk / "golden.xml"))
    assert any(one.name == "accuracy on all" for one in pinned.properties())


def test_a_second_evaluation_asks_only_what_it_times(desk, tmp_path, call):  # noqa: F811
    texts = [{"id": f"t{n}", "input": {"text": f"say {WORDS[n % 12]} {n}"}, "expected": "benign"} for n in range(500)]
    write(tmp_path / "golden.jsonl", texts)

    def evaluate(*more):
        return json.loads(call("eval", desk / "a", "--golden", "golden.jsonl", "--json", *more, cwd=tmp_path).stdout)

    first, second, anew = evaluate(), evaluate(), evaluate("--no-cache")
    assert [one["checked"] for one in (first, second, anew)] == [{"n_inputs": 500, "n_kept": kept, "n_alone": 200} for kept in (0, 500, 0)]
    assert first["answers"] == second["answers"] == anew["answers"]
    # One kept answer that is not the model's, though whole, voids them all.
    (kept,) = (tmp_path / ".highroad" / "answers").glob("*/*.jsonl")
    lines = kept.read_text().splitlines()
    assert len(lines) == 500
    records = [json.loads(line[9:]) for line in lines]
    records[0]["bits"] = records[0]["bits"][::-1]
    texts_of = [json.dumps(record, separators=(",", ":")) for record in records]
    kept.write_text("".join(f"{zlib.crc32(text.encode()):08x} {text}\n" for text in texts_of))
    again = evaluate()
    assert again["answers"] == first["answers"] and again["checked"] == {"n_inputs": 500, "n_kept": 0, "n_alone": 500}
