"""The options of a training script: `[training]` of highroad.toml gives their names, types and defaults.

Needs no torch: before it opens a run, `highroad train` asks `python -m highroad._options SCRIPT OPTIONS…` whether the script would
take its options. Code 2 and one sentence say that it would not.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ._standard import standard

# What a loop needs and a highroad.toml may leave out.
DEFAULTS: dict[str, Any] = {
    "seed": 7,
    "precision": "auto",
    "strategy": "auto",
    "deterministic": True,
    "batch_size": 32,
    "micro_batch": 0,
    "epochs": 1,
    "max_steps": 0,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "warmup": 0.1,
    "clip_norm": 1.0,
    "ema": 0.0,
    "evals_per_epoch": 3,
    "patience": 3,
    "checkpoint_every": 100,
    "keep_best": 1,
    "log_every": 10,
    "output": "runs/latest",
}
CHOICES = {"precision": ("auto", "f32", "bf16", "fp16"), "strategy": ("auto", "single", "ddp", "fsdp2")}
# What a resumed run must share with the one it goes on from: with others it would not be the same run.
FIXED = ("seed", "batch_size", "epochs", "learning_rate", "weight_decay", "warmup", "clip_norm", "ema", "lora_rank")
# A checkpoint is a folder of this prefix in `OUTPUT/checkpoints`, complete once it has this file and its name.
PREFIX, STATE = "step-", "state.json"
# Keys of [training] that `highroad train` reads itself.
_NOT_OPTIONS = ("script",)
# Folders of a repo that hold no code of its own, besides hidden ones.
_FOREIGN = ("node_modules", "__pycache__", "runs")
# Where reading more code would take longer than a misspelt key is worth.
_MAX_FILES, _MAX_FILE_BYTES = 2_000, 1 << 20
# How alike a misspelt name is to the one that was meant (`difflib`'s ratio); more where any name of the code may be meant.
_CLOSE, _CLOSER = 0.6, 0.8
# Options of one command, which no file declares.
_ONE_TIME = ("resume", "profile", "compile")


@dataclass(frozen=True)
class _Range:
    """Which numbers an option takes: from ``low`` to below ``high``, ``low`` itself unless ``above``."""

    low: float
    needs: str
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value < self.high


_RANGES = {
    "seed": _Range(0, "a whole number from 0 to below 2^32", high=2**32),
    "batch_size": _Range(1, "at least 1 example a step"),
    "micro_batch": _Range(0, "a number of examples of at least 1, or 0 for a process's whole share"),
    "epochs": _Range(1, "at least 1 pass over the data"),
    "max_steps": _Range(0, "a number of steps of at least 1, or 0 for all"),
    "learning_rate": _Range(0, "a number above 0", above=True),
    "weight_decay": _Range(0, "a number of at least 0"),
    "warmup": _Range(0, "the share of all steps that warms up, from 0 to below 1", high=1),
    "clip_norm": _Range(0, "the largest norm of the gradients, above 0, or 0 for no limit"),
    "ema": _Range(0, "the share of the old average that stays, from 0 (no average) to below 1", high=1),
    "evals_per_epoch": _Range(1, "at least 1 evaluation an epoch"),
    "patience": _Range(1, "at least 1 evaluation without gain"),
    "checkpoint_every": _Range(1, "at least 1 step"),
    "keep_best": _Range(1, "at least 1 checkpoint"),
    "log_every": _Range(1, "at least 1 step"),
    "profile": _Range(0, "a number of steps of at least 1, or 0 for no profile"),
    "lora_rank": _Range(0, "the rank of the adapters, at least 1, or 0 for none"),
}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


class OptionError(ValueError):
    """An option that a script does not have, or a value that it cannot take."""


def options(description: str | None = None, args: Sequence[str] | None = None) -> argparse.Namespace:
    """Every key of `[training]` in ./highroad.toml as an option with that default, besides `--resume` and the profile's.

    A repo's own keys are options too, each of the type of its value, where a Python file of the repo reads them: a key that nothing
    reads is taken for a misspelt one. ``args`` is the command line, the process's own by default. A wrong key, option or value ends
    the process with code 2 and one sentence.
    """
    try:
        return parse(standard()["training"], description, args)
    except OptionError as error:
        # Of several processes one says it.
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse(declared: Mapping[str, Any], description: str | None, args: Sequence[str] | None) -> argparse.Namespace:
    """``options`` for the table ``declared``. Raises ``OptionError``."""
    own = {name: value for name, value in declared.items() if name not in _NOT_OPTIONS}
    for name, value in own.items():
        _check_declared(name, value)
    _check_keys(own)
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="measure N steps and stop; see `highroad profile-train`")
    parser.add_argument("--compile", action="store_true", help="run the model through torch.compile")
    for name, default in (DEFAULTS | own).items():
        kind = type(DEFAULTS.get(name, default))
        if kind not in _KINDS:
            # A list or a table is read as it is declared.
            parser.set_defaults(**{name: default})
            continue
        parser.add_argument(f"--{name}", type=_reader(kind), default=kind(default), choices=CHOICES.get(name))
    parsed, unknown = parser.parse_known_args(args)
    if unknown:
        option = unknown[0].split("=")[0]
        raise OptionError(f"this script has no option `{option}`{_suggestion(option.lstrip('-').replace('-', '_'), vars(parsed), '--')}")
    for name, value in vars(parsed).items():
        if name in _RANGES and value not in _RANGES[name]:
            raise OptionError(f"--{name} is {value}: it needs {_RANGES[name].needs}")
    if not parsed.output:
        raise OptionError("--output is empty: it needs the folder that weights and checkpoints go to")
    return parsed


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first; half-written ones do not have the name yet."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / STATE).is_file())


def check_resumed(checkpoint: Path, state: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ``OptionError`` if a run with the options ``fixed`` is another than the one that ``state`` of ``checkpoint`` is of."""
    for name, then in state["fixed"].items():
        if (now := fixed[name]) != then:
            raise OptionError(f"{checkpoint} was made with --{name} {then}, and this run has {now}: start anew, or say {then}")


def fixed(parsed: argparse.Namespace) -> dict[str, Any]:
    """What a resumed run must share with ``parsed``."""
    # Adapters are an option of those repos alone whose models offer them.
    return {"lora_rank": 0} | {name: getattr(parsed, name) for name in FIXED if hasattr(parsed, name)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message.removeprefix("argument "))


def _reader(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if kind is bool and text in ("true", "false"):
            return text == "true"
        try:
            if kind is not bool:
                return kind(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"`{text}` is not {_KINDS[kind]}")

    return read


def _check_declared(name: str, value: Any) -> None:
    where = f"`{name}` in [training] of highroad.toml is {json.dumps(value, default=str)}"
    if name in _ONE_TIME:
        raise OptionError(f"{where}: it is an option of the command line, and no key")
    if (known := DEFAULTS.get(name)) is not None:
        kind = type(known)
        # A whole number is a number too; true is none, though Python counts it among them.
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise OptionError(f"{where}: it needs {_RANGES[name].needs if name in _RANGES else _KINDS[kind]}")
        if value not in CHOICES.get(name, (value,)):
            raise OptionError(f"{where}: it needs one of {', '.join(CHOICES[name])}")
    if name in _RANGES and (type(value) not in (int, float) or value not in _RANGES[name]):
        raise OptionError(f"{where}: it needs {_RANGES[name].needs}")


def _check_keys(own: Mapping[str, Any]) -> None:
    """Raises ``OptionError`` for a key that neither ``highroad.training`` nor any code of the repo reads."""
    strange = [name for name in own if name not in DEFAULTS]
    if not strange or (read := _read_names(Path())) is None:
        return
    for name in strange:
        if name not in read:
            hint = _suggestion(name, DEFAULTS) or _suggestion(name, read, cutoff=_CLOSER)
            hint = hint or "; a repo's own key must be read by one of its Python files"
            raise OptionError(f"nothing reads the key `{name}` in [training] of highroad.toml{hint}")


def _suggestion(name: str, known: Iterable[str], before: str = "", cutoff: float = _CLOSE) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)
    return f": did you mean `{before}{close[0]}`?" if close else ""


def _read_names(root: Path) -> set[str] | None:
    """Every attribute, text, keyword and parameter in the Python files below ``root``; ``None`` where those are too many to read."""
    names: set[str] = set()
    for number, path in enumerate(_python_files(root)):
        if number == _MAX_FILES or path.stat().st_size > _MAX_FILE_BYTES:
            return None
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            # What cannot be parsed may read anything.
            return None
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.Constant(value=str(name)):
                    names.add(name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(name)
    return names


def _python_files(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        # What has a pyvenv.cfg is an environment.
        inner[:] = sorted(
            name
            for name in inner
            if not name.startswith(".") and name not in _FOREIGN and not Path(folder, name, "pyvenv.cfg").exists()
        )
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _takes_our_options(tree: ast.Module) -> bool:
    """Whether a script calls ``options`` of ``highroad.training`` on its own command line."""
    imports = any(
        isinstance(node, ast.Import)
        and any(alias.name.startswith("highroad.training") for alias in node.names)
        or isinstance(node, ast.ImportFrom)
        and (node.module == "highroad.training" or (node.module == "highroad" and any(a.name == "training" for a in node.names)))
        for node in ast.walk(tree)
    )
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "options" in (getattr(node.func, "attr", None), getattr(node.func, "id", None))
    ]
    return imports and any(len(call.args) < 2 and not any(word.arg == "args" for word in call.keywords) for call in calls)


def main() -> None:
    """Ends with code 2 where the script ``sys.argv[1]`` would not take the options after it, and prints its help if asked for it."""
    script, *args = sys.argv[1:]
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (OSError, SyntaxError, ValueError):
        # The script itself tells what is wrong with it.
        return
    if not _takes_our_options(tree):
        return
    sys.argv[0] = script
    try:
        parsed = parse(standard()["training"], ast.get_docstring(tree), args)
        if parsed.resume and (found := complete(Path(parsed.output, "checkpoints"))):
            check_resumed(found[-1], json.loads((found[-1] / STATE).read_text(encoding="utf-8")), fixed(parsed))
    except OptionError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
