"""`highroad upgrade`: the same weights through two real releases of PyTorch."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from cli import ROOT, bless, call, highroad_bin  # noqa: F401
from safetensors.torch import save_file
from tokenizers import Tokenizer

OTHER = "2.13.0"
UV = Path(sys.executable).with_name("uv")
WORDS = "ignore previous instructions reveal secret prompt what how please you system say".split()
MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self, n_tokens):
        super().__init__()
        self.embed = nn.Embedding(n_tokens, 32)
        self.attend = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, input_ids, attention_mask):
        hidden = self.attend(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        # As code that asks for the release it runs on does, so that the graphs differ too.
        total = (hidden * mask).sum(1) if torch.__version__ > "2.15" else (mask.transpose(1, 2) @ hidden)[:, 0]
        return self.head(total / mask.sum(1))
"""
EXPORT = """
import argparse
from pathlib import Path
import highroad, torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from model import Model

parser = argparse.ArgumentParser()
parser.add_argument("--weights", type=Path)
parser.add_argument("--path", type=Path)
options = parser.parse_args()
tokenizer = Tokenizer.from_file("tokenizer.json")
model = Model(tokenizer.get_vocab_size())
model.load_state_dict(load_file(options.weights / "model.safetensors"))
ids = torch.randint(0, tokenizer.get_vocab_size(), (2, 7), generator=torch.Generator().manual_seed(1))
case = (ids, torch.ones_like(ids))
highroad.export(model.eval(), case, options.path, name="words", task="classify", labels=["benign", "injection"],
                tokenizer=tokenizer, max_tokens=48, parity_inputs=[case], licence="MIT", owner="tests",
                lock=highroad.standard()["environment"]["lock"])
"""
STANDARD = """
[model]
name = "words"
kind = "classifier"
owner = "tests"
licence = "MIT"
[environment]
python = ">=3.11"
torch = ">=2.9"
[training]
output = "runs/latest"
[evaluation]
golden = "golden.jsonl"
[packaging]
signature = "classify"
"""


@pytest.fixture(scope="module")
def repo(tmp_path_factory, call):  # noqa: F811
    """A repo of the starter's shape around a small model with its weights, locked for the release that is installed here."""
    repo = tmp_path_factory.mktemp("upgrade")
    files = {"model.py": MODEL, "export.py": EXPORT, "highroad.toml": STANDARD, "gates.toml": "[[rule]]\nmetric = 'accuracy'\nmargin = 0.3\n"}
    files["requirements.in"] = "torch>=2.9,<2.16  # the framework\nnumpy\nsafetensors\ntokenizers\n"
    for name, text in files.items():
        (repo / name).write_text(text)
    shutil.copy(ROOT / "conformance/packages/classify-a/tokenizer.json", repo)
    (repo / "here.txt").write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    options = ["--quiet", "--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate", "--python", sys.executable]
    subprocess.run([UV, "pip", "compile", *options, "-c", "here.txt", "requirements.in", "-o", "requirements.txt"], cwd=repo, check=True)
    (repo / "runs/latest").mkdir(parents=True)
    namespace = {}
    exec(MODEL, namespace)
    torch.manual_seed(3)
    model = namespace["Model"](Tokenizer.from_file(str(repo / "tokenizer.json")).get_vocab_size())
    save_file(model.state_dict(), repo / "runs/latest/model.safetensors")
    texts = [" ".join(WORDS[(n * place + n // 12) % 12] for place in range(1, 2 + n % 9)) for n in range(80)]
    lines = [json.dumps({"id": f"c{n}", "input": {"text": text}, "expected": ["benign", "injection"][n % 2]}) for n, text in enumerate(texts)]
    (repo / "golden.jsonl").write_text("\n".join(lines) + "\n")
    bless(call, "golden.jsonl", repo)
    yield repo
    # 5 GB of environment.
    shutil.rmtree(repo / ".highroad", ignore_errors=True)


@pytest.fixture
def osv():
    """Address of a server that answers as osv.dev does: this release of PyTorch has a vulnerability, the other one another."""
    of = {torch.__version__.partition("+")[0]: "GHSA-here-0000-0000", OTHER: "GHSA-ther-0000-0000"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found = [of[query["version"]]] if query["package"]["name"] == "torch" and query["version"] in of else []
            record = {"modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z", "summary": "made up for this test", "affected": []}
            body = json.dumps({"vulns": [record | {"id": id, "aliases": [id.replace("GHSA", "CVE")]} for id in found]} if found else {}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()


def test_another_release_is_built_beside_this_one_and_compared(repo, osv, call):  # noqa: F811
    untouched = {path: path.read_bytes() for path in repo.iterdir() if path.is_file()}
    reports = ["--json", "--markdown", "upgrade.md", "--html", "upgrade.html"]
    accepted = ["--advisories", osv, "--accept-advisory", "GHSA-ther-0000-0000"]
    done = call("upgrade", "--to", f"torch=={OTHER}", *accepted, *reports, cwd=repo)
    report = json.loads(done.stdout)
    assert report["outcome"] == "pass" and report["headline"].startswith(f"pass: torch {torch.__version__.partition('+')[0]} to {OTHER}, ")
    assert {path: path.read_bytes() for path in untouched} == untouched
    rules = {check["rule"]: check for check in report["checks"]}
    assert {"the runtime computes what the new PyTorch computed", "the new program computes what the old PyTorch computed"} < set(rules)
    assert len(rules) > 2 and all(check["outcome"] == "pass" for check in rules.values())
    drift = report["drift"]
    assert drift["n_cases"] == 80 and drift["n_flips"] == 0 and drift["max_relative_rms"] < 1e-5
    packages = {change["name"]: change for change in report["packages"]}
    assert (packages["torch"]["before"], packages["torch"]["after"]) == (torch.__version__.partition("+")[0], OTHER)
    assert "BSD" in packages["torch"]["licence_after"] and "numpy" not in packages
    assert any(line.startswith("-") and "sum" in line for line in report["graph_diff"]), report["graph_diff"]
    assert all(metric["after"] == pytest.approx(metric["before"], abs=1e-5) for metric in report["metrics"])
    assert report["latency"]["n_inputs"] == 80 and report["latency"]["ratio"] > 0
    facts = {fact["name"]: fact["value"] for fact in report["facts"]}
    assert facts["advisories"].startswith("0 new, 1 gone, 0 in both, 1 accepted")
    assert {advisory["id"]: advisory["kind"] for advisory in report["advisories"]} == {
        "CVE-here-0000-0000": "gone",
        "CVE-ther-0000-0000": "accepted",
    }
    assert f"torch {OTHER}" in facts["after"]
    assert f"torch=={OTHER}" in Path(facts["lock"]).read_text()
    markdown = (repo / "upgrade.md").read_text()
    assert f"| torch | {packages['torch']['before']} | {OTHER} |" in markdown
    assert f"| torch | {OTHER} | accepted | CVE-ther-0000-0000, GHSA-ther-0000-0000 |" in markdown
    assert "<h2>Packages" in (repo / "upgrade.html").read_text()
    # The package is in the store and names the new lock file.
    package = facts["after"].partition(",")[0]
    assert json.loads(call("inspect", repo / ".highroad/store" / package.removeprefix("sha256:"), "--json", cwd=repo).stdout)["torch"].startswith(OTHER)


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--to", "torch"], "expected such as `torch==2.15.0`"),
        (["--to", "torch==99.0.0"], "uv finds no versions that fit"),
        (["--lock", "requirements.in"], "pins no package"),
        (["--lock", "unhashed.txt"], "torch==2.13.0 has no hash"),
        (["--lock", "missing.txt"], "cannot read `missing.txt`"),
        ([], "--to"),
    ],
)
def test_what_is_no_environment_is_refused_before_anything_is_built(repo, call, options, reason):
    (repo / "unhashed.txt").write_text("torch==2.13.0\n")
    assert reason in call("upgrade", *options, cwd=repo, code=2).stderr
    assert not list((repo / ".highroad" / "upgrades").glob("99*"))
