"""Where the benchmarks write what they found."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs" / "reference" / "benchmarks.md"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(script: str, text: str) -> None:
    """Puts `text` between the marks of `script` in docs/reference/benchmarks.md."""
    begin, end = f"<!-- written by benches/{script} -->", f"<!-- end of benches/{script} -->"
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"error: {DOCS} has no place for benches/{script}")
    DOCS.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
