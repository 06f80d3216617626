"""What `highroad index` and `highroad serve FILE` say of files that are not what they should be, and what they leave behind: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import ROOT, call, highroad_bin  # noqa: F401

MOST = 1 << 20
LINES = '{"id": "a", "text": "hello"}\n{"id": "b", "text": "the road"}\n'
WRONG_DOCUMENTS = {
    "empty": (b"", "holds no document"),
    "junk": (bytes(range(128, 256)) * 100, "line 1: it is not UTF-8, and so no JSONL"),
    "utf-16": (LINES.encode("utf-16"), "line 1: it is not UTF-8"),
    "csv": (b"id,text\n1,hello\n", "hint: the documents are JSONL, on each line an object"),
    "array": (b'[{"text": "a"}]', "line 1: it is no JSON object"),
    "later": (LINES.encode() + b"\n{}\n", "line 4: it has no `text`"),
    "deep": (b'{"text": "a", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion limit"),
    "columns": (json.dumps({"text": "a"} | {f"c{n}": n for n in range(100_000)}).encode(), f"more bytes than the {MOST}"),
}


@pytest.fixture(scope="module")
def desk(call: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("inputs")
    call("pack", ROOT / "conformance" / "packages" / "embed", "-o", "embed", cwd=folder)
    (folder / "documents.jsonl").write_text(LINES)
    return folder


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", WRONG_DOCUMENTS)
def test_documents_that_are_none_are_told_with_file_and_line(desk: Path, call: Callable, tmp_path: Path, kind: str) -> None:  # noqa: F811
    content, reason = WRONG_DOCUMENTS[kind]
    (tmp_path / "given").write_bytes(content)
    told = call("index", "given", "--embedder", desk / "embed", "-o", "index", cwd=tmp_path, home=desk / "home", code=2).stderr
    assert told.startswith("error: `given`") and reason in told, told
    assert left(tmp_path) == {"given"}


def test_a_line_without_an_end_is_refused_before_it_is_in_memory(desk: Path, highroad_bin: Path, tmp_path: Path) -> None:  # noqa: F811
    with (tmp_path / "given").open("wb") as file:
        file.write(b'{"text": "')
        # A hole: two gigabytes that take no room on the disk.
        file.truncate(2 << 30)
    command = [highroad_bin, "index", "given", "--embedder", desk / "embed", "-o", "index"]
    # Started by a small process: Linux counts what a process was before its exec, here all of pytest, as memory of its child.
    measure = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    environment = os.environ | {"HIGHROAD_HOME": str(desk / "home")}
    run = subprocess.run([sys.executable, "-c", measure, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 2 and f"`given`, line 1: it has more bytes than the {MOST}" in run.stderr, run.stderr
    assert int(run.stdout) < 1 << 20, "kilobytes, of two gigabytes"


def test_where_documents_and_indexes_are_is_told_in_the_words_of_who_asked(desk: Path, call: Callable, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "documents.jsonl").write_text("\ufeff" + LINES.replace("\n", "\r\n"))
    (tmp_path / "folder").mkdir()
    before = left(tmp_path)

    def refused(documents: str, output: str, *more: str) -> str:
        told = call("index", documents, "--embedder", desk / "embed", "-o", output, *more, cwd=tmp_path, home=desk / "home", code=2).stderr
        assert left(tmp_path) == before and ".index-" not in told, told
        return told

    assert "cannot read `missing.jsonl`" in refused("missing.jsonl", "index")
    assert "`folder` is a folder" in refused("folder", "index")
    assert "`folder` exists already" in refused("documents.jsonl", "folder")
    assert "cannot make the folder `documents.jsonl`" in refused("documents.jsonl", "documents.jsonl/index")
    told = refused("documents.jsonl", "index", "--store", "lance", "--python", "/bad/python")
    assert told.startswith("error: cannot make the index `index` in LanceDB: cannot start `/bad/python`")
    # Marks of Windows are no part of the text, and folders on the way are made.
    call("index", "documents.jsonl", "--embedder", desk / "embed", "-o", "new/index", cwd=tmp_path)
    kept = [json.loads(line) for line in (tmp_path / "new" / "index" / "documents.jsonl").read_text().splitlines()]
    assert [(each["id"], each["text"]) for each in kept] == [("a", "hello"), ("b", "the road")]


def test_a_disk_that_is_full_is_told_of_the_index_and_of_the_store(desk: Path, highroad_bin: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"id": str(n), "text": f"road {n}"}) + "\n" for n in range(3000)))
    before = left(tmp_path)

    def run(*arguments: object, most: int) -> str:
        env = os.environ | {"HIGHROAD_HOME": str(tmp_path / "home")}
        command = ["prlimit", f"--fsize={most}", str(highroad_bin), *map(str, arguments)]
        # Python ignores the signal that comes beside the error, and so does what it starts.
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, restore_signals=False)
        assert done.returncode == 2, done.stderr
        return done.stderr

    told = run("index", "many.jsonl", "--embedder", desk / "embed", "-o", "index", most=50_000)
    assert told.startswith("error: cannot write the index `index`: File too large"), told
    assert left(tmp_path) - {"home"} == before
    told = run("serve", desk / "embed", "--development", "--listen", "127.0.0.1:0", most=10_000)
    assert "File too large" in told and f"`{tmp_path}/home/store" in told and f"`{desk}" not in told.split("cannot read or write")[-1]
    assert not any(path.is_file() for path in (tmp_path / "home" / "store").rglob("*"))


def test_what_is_no_program_is_told_before_it_is_copied(call: Callable, tmp_path: Path) -> None:  # noqa: F811
    with (tmp_path / "huge.pt2").open("wb") as file:
        file.truncate(20 << 30)
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    for name, reason in {
        "huge.pt2": "`./huge.pt2` is no program: it is no zip archive",
        "folder.pt2": "`./folder.pt2` is not a package",
        "text.txt": "`./text.txt` is a file and no `.pt2`",
        "missing.pt2": "there is no `./missing.pt2`",
    }.items():
        told = call("serve", f"./{name}", "--development", "--listen", "127.0.0.1:0", cwd=tmp_path, home=tmp_path / "home", code=2).stderr
        assert reason in told, told
    assert not list((tmp_path / "home").rglob("*.pt2"))
