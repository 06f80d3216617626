"""`highroad.export` and `highroad.load`: what goes in, what comes out, and what is refused."""

import json
import math
import threading
import tomllib
import zipfile

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.export import Dim

import highroad
from cli import bless, call, highroad_bin, pack_again  # noqa: F401
from highroad import _pytree


class Bag(torch.nn.Module):
    """Mean of word vectors and a linear layer: a classifier of a few kilobytes."""

    def __init__(self, n_labels=3):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(50, 8)
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, n_labels)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).to(torch.float32)
        pooled = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return self.head(self.dropout(pooled))


def inputs(n_rows, n_tokens):
    generator = torch.Generator().manual_seed(n_rows * 100 + n_tokens)
    ids = torch.randint(0, 50, (n_rows, n_tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, n_tokens // 2 + 1 :] = 0
    return ids, mask


WORDS = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
CALL = {
    "name": "bag",
    "task": "classify",
    "labels": ["a", "b", "c"],
    "tokenizer": WORDS,
    "max_tokens": 16,
    "parity_inputs": [inputs(1, 3), inputs(4, 16)],
    "licence": "MIT",
    "git_commit": "0" * 40,
    "owner": 'me, "myself" and I',
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return highroad.export(Bag(), inputs(3, 5), tmp_path_factory.mktemp("export") / "bag", **CALL)


@pytest.fixture(scope="module")
def program(source):
    return highroad.load(source / "program.pt2")


def test_a_card_is_written_of_what_is_known_unless_the_author_has_one(source, tmp_path, call):
    card = (source / "README.md").read_text()
    assert card.startswith("# ") and "## Task" in card and 'labels: ["a", "b", "c"]' in card and "nobody has described the model" in card
    again = highroad.export(Bag(), inputs(3, 5), tmp_path / "again", **CALL)
    assert (again / "README.md").read_text() == card
    own = tmp_path / "README.md"
    own.write_text("# Bag\n\nFor support mail.\n")
    assert (highroad.export(Bag(), inputs(3, 5), tmp_path / "own", notices=[own], **CALL) / "README.md").read_text() == own.read_text()
    own.write_text("# Bag\n\nTODO\n")
    empty = highroad.export(Bag(), inputs(3, 5), tmp_path / "empty", notices=[own], **CALL)
    assert "a model card that says nothing" in call("pack", empty, "-o", tmp_path / "p", cwd=tmp_path, code=2).stderr


def test_a_package_source_says_what_it_is(source):
    described = tomllib.loads((source / "package.toml").read_text())
    assert described["owner"] == 'me, "myself" and I'
    assert described["task"]["labels"] == ["a", "b", "c"] and described["parity"] == {"relative_rms": 1e-5}
    assert described["provenance"]["torch"] == torch.__version__


def test_the_archive_holds_neither_the_example_nor_this_machine_s_paths(source):
    with zipfile.ZipFile(source / "program.pt2") as archive:
        graph = next(archive.read(name) for name in archive.namelist() if name.endswith("models/model.json"))
        example = archive.read(next(name for name in archive.namelist() if "sample_inputs" in name))
    assert b"site-packages" not in graph and str(source.parent).encode() not in graph
    assert example == b""


def test_exporting_twice_gives_the_same_bytes(source, tmp_path):
    again = highroad.export(Bag(), inputs(3, 5), tmp_path / "bag", **CALL)
    for name in ("program.pt2", "parity.safetensors", "tokenizer.json", "package.toml"):
        assert (again / name).read_bytes() == (source / name).read_bytes(), name


def test_export_leaves_the_module_as_it_was(tmp_path):
    module = Bag().train()
    module.head.eval()
    highroad.export(module, inputs(3, 5), tmp_path / "bag", **CALL)
    assert module.training and module.dropout.training and not module.head.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "b"]}, "3 logits and `labels` has 2"),
        ({"labels": None}, "needs `labels`"),
        ({"flagged": "d"}, "not one of the labels"),
        ({"task": "rank"}, "not a task"),
        ({"task": "rerank"}, "a reranker has no `labels`"),
        ({"task": "rerank", "labels": None}, "returns 3 values where a reranker returns one logit"),
        ({"task": "embed"}, "an embedder has no `labels`"),
        ({"matryoshka_dimensions": [2]}, "is for the task `embed`"),
        ({"task": "embed", "labels": None, "matryoshka_dimensions": [2, 3]}, "numbers above 0 and below the width 3"),
        ({"parity_inputs": []}, "`parity_inputs` is empty"),
        ({"parity_inputs": [(torch.full((1, 3), 99), torch.ones(1, 3))]}, "fails on parity case 0"),
        ({"parity_inputs": [(inputs(1, 3)[0], torch.zeros(1, 3))]}, "NaN or infinity on parity case 0"),
        ({"name": "a/b"}, "cannot name a model"),
        ({"licence": " "}, "`licence` is empty"),
        ({"tokenizer": 7}, "is not a tokenizer"),
        ({"data": {"x": "/nowhere.csv"}}, "cannot fingerprint `/nowhere.csv`"),
        ({"data_roles": {"x.csv": "train"}}, "`data_roles` names `x.csv`, which `data` does not"),
        ({"data": {"x.csv": "sha256:" + "0" * 64}, "data_roles": {"x.csv": "dev"}}, "the role of `x.csv` is 'dev', not one of train"),
        ({"notices": ["x.pdf"]}, "cannot travel in a package"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, change, message):
    with pytest.raises(highroad.ExportError, match=message):
        highroad.export(Bag(), inputs(3, 5), tmp_path / "bag", **(CALL | change))
    assert list(tmp_path.iterdir()) == []


def test_an_example_of_one_row_is_refused_because_export_would_fix_it(tmp_path):
    with pytest.raises(highroad.ExportError, match="a size of 1 would be exported as the constant 1"):
        highroad.export(Bag(), inputs(1, 5), tmp_path / "bag", **CALL)


def test_half_precision_weights_are_refused(tmp_path):
    with pytest.raises(highroad.ExportError, match="call `module.float\\(\\)` first"):
        highroad.export(Bag().bfloat16(), inputs(3, 5), tmp_path / "bag", **CALL)


def test_what_export_baked_in_is_caught_by_the_parity_cases(tmp_path):
    calls = []

    class Counting(Bag):
        def forward(self, input_ids, attention_mask):
            calls.append(None)
            return super().forward(input_ids, attention_mask) * len(calls)

    with pytest.raises(highroad.ExportError, match="differs from the module on parity case 0"):
        highroad.export(Counting(), inputs(3, 5), tmp_path / "bag", **CALL)


def test_a_directory_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(highroad.ExportError, match="is not a package source"):
        highroad.export(Bag(), inputs(3, 5), tmp_path, **CALL)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_torch_tensors_in_give_torch_tensors_out(program):
    example = inputs(4, 9)
    answer = program(*example)
    assert isinstance(answer, torch.Tensor)
    torch.testing.assert_close(answer, Bag().eval()(*example), rtol=1e-5, atol=1e-6)


def test_numpy_arrays_in_give_the_same_bits_as_numpy_arrays(program):
    example = inputs(4, 9)
    answer = program(*(tensor.numpy() for tensor in example))
    assert isinstance(answer, np.ndarray) and answer.dtype == np.float32
    assert np.array_equal(answer, program(*example).numpy())


def test_a_strided_input_is_read_as_what_it_is(program):
    ids, mask = inputs(4, 9)
    expected = program(ids.flip(0).contiguous(), mask)
    assert torch.equal(program(ids.t().contiguous().t().flip(0), mask), expected)


def test_arguments_go_by_name_as_in_the_module(program):
    ids, mask = inputs(2, 4)
    assert torch.equal(program(ids, attention_mask=mask), program(ids, mask))
    assert torch.equal(program(attention_mask=mask, input_ids=ids), program(ids, mask))


def test_a_wrong_call_says_what_the_program_takes(program):
    ids, mask = inputs(2, 4)
    with pytest.raises(TypeError, match=r"takes 2 positional arguments \(input_ids, attention_mask\), and 1 are given"):
        program(ids)
    with pytest.raises(RuntimeError, match="input_ids"):
        program(ids.float(), mask)


def test_a_program_tells_its_graph_and_its_inputs(program):
    assert program.graph_text().startswith("graph(")
    assert [name for name, _ in program.inputs] == ["input_ids", "attention_mask"]
    assert program.missing_ops() == []


def test_threads_run_at_once_and_answer_alike(program):
    example = inputs(4, 9)
    expected, answers = program(*example), []
    threads = [threading.Thread(target=lambda: answers.append(program(*example))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4 and all(torch.equal(answer, expected) for answer in answers)


def test_nested_results_come_back_as_the_module_returned_them(tmp_path):
    class Nested(torch.nn.Module):
        def forward(self, x, *, scale):
            return {"doubled": x + x, "pair": (x * scale, [x - scale])}

    x, scale = torch.randn(3, 4), torch.randn(4)
    exported = torch.export.export(Nested(), (x,), {"scale": scale}, dynamic_shapes={"x": {0: Dim("n")}, "scale": None})
    torch.export.save(exported, tmp_path / "nested.pt2")
    answer = highroad.load(tmp_path / "nested.pt2")(x[:1], scale=scale)
    assert answer.keys() == {"doubled", "pair"} and isinstance(answer["pair"], tuple)
    assert torch.equal(answer["doubled"], 2 * x[:1]) and torch.equal(answer["pair"][1][0], x[:1] - scale)


def test_what_cannot_run_is_refused_with_every_missing_operator(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x) + torch.linalg.det(x)

    torch.export.save(torch.export.export(Odd(), (torch.randn(3, 3),)), tmp_path / "odd.pt2")
    with pytest.raises(highroad.LoadError) as refused:
        highroad.load(tmp_path / "odd.pt2")
    assert len(refused.value.missing_ops) >= 2, refused.value
    assert all(op in str(refused.value) for op in refused.value.missing_ops)


def test_hostile_bytes_are_an_error(tmp_path, source):
    whole = (source / "program.pt2").read_bytes()
    for i, content in enumerate([b"", b"PK\x03\x04", whole[: len(whole) // 2], b"\0" * 4096]):
        path = tmp_path / f"{i}.pt2"
        path.write_bytes(content)
        with pytest.raises(highroad.LoadError):
            highroad.load(path)
    with pytest.raises(FileNotFoundError, match="no program or package"):
        highroad.load(tmp_path / "nothing.pt2")


def test_a_package_answers_text(source, tmp_path, call):
    call("pack", source, "-o", tmp_path / "package", cwd=tmp_path)
    predictor = highroad.load(tmp_path / "package")
    one, many = predictor("w1 w2 w3"), predictor(["w1 w2 w3", "w4"])
    assert isinstance(one, highroad.Classification) and one == many[0]
    assert set(one.scores) == {"a", "b", "c"} and one.label == max(one.scores, key=one.scores.get)
    assert sum(one.scores.values()) == pytest.approx(1)
    assert predictor.digest.startswith("sha256:") and predictor.manifest["name"] == "bag"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory, call):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("reranker")
    arguments = CALL | {"name": "pairs", "task": "rerank", "labels": None, "tokenizer": words}
    source = highroad.export(Bag(n_labels=1), inputs(3, 5), folder / "source", **arguments)
    call("pack", source, "-o", folder / "package", cwd=folder)
    return folder / "package"


def test_a_reranker_orders_documents_as_its_module_does(reranker):
    query, documents = [1, 2], [[3], [4, 5, 6], [3], [7, 8]]
    module = Bag(n_labels=1).eval()
    with torch.no_grad():
        logits = [module(ids, torch.ones_like(ids)).item() for ids in (torch.tensor([query + document]) for document in documents)]
    text = lambda ids: " ".join(f"w{i}" for i in ids)  # noqa: E731
    ranked = highroad.load(reranker).rank(text(query), [text(document) for document in documents])
    assert [one.index for one in ranked] == sorted(range(4), key=lambda i: -logits[i])
    assert [one.score for one in ranked] == pytest.approx([1 / (1 + math.exp(-logits[one.index])) for one in ranked], abs=1e-6)


def test_a_reranker_takes_no_text_and_a_classifier_no_pair(reranker, source, tmp_path, call):
    with pytest.raises(RuntimeError, match="made to rerank: it takes a query and a document"):
        highroad.load(reranker)("w1 w2")
    call("pack", source, "-o", tmp_path / "package", cwd=tmp_path)
    with pytest.raises(RuntimeError, match="it takes no query beside a document"):
        highroad.load(tmp_path / "package").rank("w1", ["w2"])


def test_rankings_are_evaluated_and_gated(reranker, tmp_path, call):
    lines = [{"id": f"q{n}", "input": {"query": f"w{n % 50}", "documents": ["w3", "w9", "w17"]}, "expected": [0, 0, 1]} for n in range(80)]
    (tmp_path / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "gates.toml").write_text('[[rule]]\nmetric = "ndcg_at_10"\nmargin = 0.05\nfloor = 0.4\n')
    report = json.loads(call("eval", reranker, "--golden", "golden.jsonl", "--json", cwd=tmp_path).stdout)
    (summary,) = report["summaries"]
    names = {metric["metric"]: metric["value"] for metric in summary["metrics"]}
    assert list(names) == ["ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "map"]
    ranked = [one.index for one in highroad.load(reranker).rank("w1", ["w3", "w9", "w17"])]
    # The module adds up its words, so every query sees the same order.
    assert names["mrr_at_10"] == pytest.approx(1 / (ranked.index(2) + 1))
    bless(call, "golden.jsonl", tmp_path)
    pack_again(call, reranker.parent / "source", "same", tmp_path)
    done = call("gate", reranker, "--baseline", "same", "--golden", "golden.jsonl", "--gates", "gates.toml", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["outcome"] == "pass"


def test_one_changed_byte_is_refused_naming_the_file(source, tmp_path, call):
    call("pack", source, "-o", tmp_path / "package", cwd=tmp_path)
    program = tmp_path / "package" / "program.pt2"
    program.chmod(0o644)
    content = bytearray(program.read_bytes())
    content[len(content) // 2] ^= 1
    program.write_bytes(content)
    with pytest.raises(highroad.LoadError, match="program.pt2"):
        highroad.load(tmp_path / "package")


@pytest.mark.parametrize(
    ("args", "kwargs", "leaves"),
    [((1, 2), {}, [1, 2]), ((1,), {"b": 2}, [1, 2]), ((), {"b": 2, "a": 1}, [1, 2])],
)
def test_positional_arguments_bind_like_python_s(args, kwargs, leaves):
    spec = ("tuple", [("tuple", [("leaf",), ("leaf",)]), ("dict", [])])
    assert _pytree.bind(args, kwargs, spec, ["a", "b"]) == leaves


def test_a_dictionary_with_another_key_is_refused():
    with pytest.raises(TypeError, match=r"must have the keys \['x'\], not \['y'\]"):
        _pytree.flatten({"y": 1}, ("dict", [("x", ("leaf",))]), "args[0]")
