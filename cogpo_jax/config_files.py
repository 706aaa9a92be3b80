"""Config files by name or path: finding, loading, listing, and showing where each field was set."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import inspect
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import ml_collections
from ml_collections import config_dict

from cogpo_jax.errors import UserError

PACKAGE = Path(__file__).parent
CONFIGS = PACKAGE / "configs"
_LIBRARY = str(Path(ml_collections.__file__).parent)


def names() -> list[str]:
    """Names of the shipped configs."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")


def find(value: str) -> str:
    """`value` of --config with the file's path in the place of a shipped config's name: `NAME[:ARGUMENT]`.

    A path of one's own config file stays as it is. Raises UserError where there is neither.
    """
    file, colon, argument = (value, "", "") if Path(value).is_file() else value.partition(":")
    if Path(file).is_file():
        return value
    if file in names():
        return f"{CONFIGS / file}.py{colon}{argument}"
    near = difflib.get_close_matches(Path(file).stem, names(), 1, 0.8)
    meant = f"did you mean {near[0]}{colon}{argument}?" if near else f"the shipped ones are {', '.join(names())}"
    raise UserError(f"--config: {file}: no such file, and no config of this name; {meant}")


def load(value: str) -> config_dict.ConfigDict:
    """The config of `NAME[:ARGUMENT]` or `FILE.py[:ARGUMENT]`, as the command line would load it.

    Raises UserError where there is no such config, or it has no such argument.
    """
    file, _, argument = find(value).partition(":")
    try:
        get_config = _get_config(Path(file))
        if argument and not inspect.signature(get_config).parameters:
            raise UserError(f"--config: {value}: this config has no sizes: nothing can stand after the colon")
        config: config_dict.ConfigDict = get_config(*([argument] if argument else []))
    except UserError:
        raise
    except Exception as error:  # whatever a person's file raises
        told = "" if isinstance(error, ValueError) else f"{file}: {type(error).__name__}: "
        raise UserError(f"--config: {told}{' '.join(str(error).split())}") from error
    return with_shipped_files(config)


def with_shipped_files(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The same config, in which paths such as configs/models/tiny.json hold from any working folder."""
    for _, node, key in _leaves(config):
        if isinstance(node[key], str) and (packaged := shipped_file(node[key])) != node[key]:
            node[key] = packaged
    return config


def shipped_file(path: str) -> str:
    """Where `path` is: below the working folder, or else, for the project's own files, in the installed package."""
    ours = path.startswith(("configs/", "examples/")) and not Path(path).exists()
    return str(PACKAGE / path) if ours and (PACKAGE / path).exists() else path


def summary(name: str) -> tuple[str, tuple[str, ...]]:
    """A shipped config's first sentence, and the sizes that it may be asked for as `name:size`."""
    module = importlib.import_module(f"cogpo_jax.configs.{name}")
    return (module.__doc__ or "").strip().splitlines()[0], getattr(module, "SIZES", ())


@dataclass(frozen=True)
class Field:
    """One field of a loaded config: what it means, and the file and line that set it last."""

    name: str
    value: Any
    comment: str
    where: str


def describe(value: str) -> list[Field]:
    """Every field of the config `NAME[:ARGUMENT]`, in the order of its definition; raises UserError as `load` does."""
    with _recorded() as places:
        config = load(value)
    fields = []
    for path, node, key in _leaves(config):
        found = [place.where((*path, key)) for place in places.get((id(node), key), ())]
        comments = list(dict.fromkeys(comment for _, comment in found if comment))
        where = found[-1][0] if found else ""
        fields.append(Field(".".join((*path, key)), node[key], "; ".join(comments), where))
    return fields


def _get_config(file: Path) -> Any:
    if file.parent == CONFIGS:
        return importlib.import_module(f"cogpo_jax.configs.{file.stem}").get_config
    # A user's own file: run as a script is, so that nothing has to be importable.
    scope = runpy.run_path(str(file))
    if "get_config" not in scope:
        raise UserError(f"--config: {file}: has no get_config()")
    return scope["get_config"]


def _leaves(
    node: config_dict.ConfigDict, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], config_dict.ConfigDict, str]]:
    for key, value in node.items():
        if isinstance(value, config_dict.ConfigDict) and len(value):
            yield from _leaves(value, (*path, key))
        else:
            yield path, node, key


@dataclass(frozen=True)
class _Place:
    """A line that set a field; `kind`: the dataclass of options from which it did so, if any (crv/options.py)."""

    file: str
    line: int
    kind: type | None

    def where(self, path: tuple[str, ...]) -> tuple[str, str]:
        """`file:line` of the field, and the comment or the meaning that stands there."""
        return _declaration(self.kind, path[-1]) if self.kind else _statement(self.file, self.line, path)


@contextlib.contextmanager
def _recorded() -> Iterator[dict[tuple[int, str], list[_Place]]]:
    """(id of the ConfigDict, key) -> each place where it was set, while the context lasts."""
    places: dict[tuple[int, str], list[_Place]] = {}
    kept = []  # alive, so that no id is used twice
    real = config_dict.ConfigDict.__setitem__

    def recording(self: config_dict.ConfigDict, key: str, value: Any) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame and frame.f_code.co_filename.startswith(_LIBRARY):
            frame = frame.f_back
        if frame and frame.f_code.co_filename != __file__:
            kept.append(self)
            kind = frame.f_locals.get("kind")  # of crv.options.default_config
            place = _Place(frame.f_code.co_filename, frame.f_lineno, kind if isinstance(kind, type) else None)
            places.setdefault((id(self), key), []).append(place)
        real(self, key, value)

    with mock.patch.object(config_dict.ConfigDict, "__setitem__", recording):
        yield places


def _declaration(kind: type, name: str) -> tuple[str, str]:
    """`file:line` of a dataclass's field and the meaning that its metadata tells."""
    lines, first = _class_source(kind)
    line = next((i for i, text in enumerate(lines) if text.startswith(f"    {name}: ")), 0)
    about = next(field.metadata for field in dataclasses.fields(kind) if field.name == name)
    choices = f": {' | '.join(about['choices'])}" if about.get("choices") else ""
    return f"{Path(inspect.getfile(kind)).name}:{first + line}", about.get("meaning", "") + choices


_class_source = functools.cache(inspect.getsourcelines)


def _statement(file: str, line: int, path: tuple[str, ...]) -> tuple[str, str]:
    """`file:line` of the field that the statement at `line` sets, and the comment beside or above it."""
    lines, statements = _source(file)
    first, last, keys = statements.get(line, (line, line, {}))
    known = next((path[i:] for i in range(len(path)) if path[i:] in keys), ())
    own = keys.get(known, line)
    # Beside the field; or beside the key it stands under, `name=dict(  # ...`; or at the statement's end; or above it.
    near = [own, *(keys[known[:i]] for i in range(len(known) - 1, 0, -1))]
    comment = next(filter(None, (_beside(lines[number - 1]) for number in near)), "")
    if not comment and len(known) < 2:
        comment = _beside(lines[last - 1]) or _above(lines, first)
    return f"{Path(file).name}:{own}", comment


@functools.cache
def _source(file: str) -> tuple[list[str], dict[int, tuple[int, int, dict[tuple[str, ...], int]]]]:
    """A file's lines and, for each line of a statement that sets fields, (first line, last line, lines of its keys)."""
    text = Path(file).read_text(encoding="utf-8")
    statements: dict[int, tuple[int, int, dict[tuple[str, ...], int]]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Return) and node.value:
            entry = (node.lineno, node.end_lineno or node.lineno, dict(_keys(node.value)))
            statements.update(dict.fromkeys(range(entry[0], entry[1] + 1), entry))
    return text.splitlines(), statements


def _keys(node: ast.expr, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Paths and lines of the keys in nested dict(...), {...} and ConfigDict(...)."""
    if isinstance(node, ast.Call):
        for argument in node.args:
            yield from _keys(argument, path)
        pairs = [(k.arg, k.value, k.lineno) for k in node.keywords if k.arg]
    elif isinstance(node, ast.Dict):
        items = zip(node.keys, node.values, strict=True)
        pairs = [(k.value, v, k.lineno) for k, v in items if isinstance(k, ast.Constant) and isinstance(k.value, str)]
    else:
        return
    for key, value, line in pairs:
        yield (*path, key), line
        yield from _keys(value, (*path, key))


def _beside(line: str) -> str:
    return line.partition("  # ")[2].strip()


def _above(lines: list[str], line: int) -> str:
    found: list[str] = []
    while line > 1 and lines[line - 2].lstrip().startswith("# "):
        line -= 1
        found.insert(0, lines[line - 1].lstrip()[2:].strip())
    return " ".join(found)
