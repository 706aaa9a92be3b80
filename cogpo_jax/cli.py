"""How every command starts: `cogpo COMMAND`, absl flags, a config by name, one-line errors, exit codes 0 / 1 / 2."""

import difflib
import importlib
import os
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_dict, config_flags

from cogpo_jax import __version__, config_files
from cogpo_jax.errors import RunError, UserError
from cogpo_jax.heap import one_heap

# What each command says of itself, the function of cogpo_jax.commands that does it, and its flags.
COMMANDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("commands.toml").read_text(encoding="utf-8"))
# Scripts of a checkout, with flags of their own; an installed package does not have them.
SCRIPTS = {"teaches": "benchmarks/teaches.py"}
_HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `cogpo`: runs the command that the first word names."""
    argv = list(sys.argv if argv is None else argv)
    if len(argv) < 2 or argv[1] in (*_HELP, "help"):
        print(_overview())
        sys.exit(0)
    if argv[1] == "--version":
        print(f"cogpo {__version__}")
        sys.exit(0)
    if argv[1] in SCRIPTS:
        _run_script(SCRIPTS[argv[1]], argv[2:])
    if argv[1] not in COMMANDS:
        near = difflib.get_close_matches(argv[1], COMMANDS, 1)
        _fail(
            f"command line: {argv[1]!r}: no such command; " + (f"did you mean {near[0]}?" if near else "see --help"), 2
        )
    command(argv[1], argv[2:])


def command(name: str, arguments: Sequence[str]) -> None:
    """Runs one command of COMMANDS with these arguments, and exits with its code."""
    sys.argv[:] = [f"cogpo {name}", *arguments]  # config_flags reads the fields' overrides there
    about, before = COMMANDS[name], set(flags.FLAGS)
    _define(about.get("flags", {}))
    own = sorted(set(flags.FLAGS) - before)

    def body(*words: str) -> int | None:
        module, _, function = about["run"].partition(":")
        code: int | None = getattr(importlib.import_module(f"cogpo_jax.commands.{module}"), function)(Flags(), *words)
        return code

    run(body, sys.argv, help_text=about["help"], own_flags=own, words=about.get("words", 0))


class Flags:
    """The values that a command was given: `given.output`, `given["pool.url"]`."""

    def __getitem__(self, name: str) -> Any:
        return flags.FLAGS[name].value

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def require(self, *names: str) -> tuple[Any, ...]:
        """The values of these flags; raises UserError for the first that was not given."""
        for name in names:
            if not self[name]:
                raise UserError(f"--{name}: missing; see --help")
        return tuple(self[name] for name in names)

    def load_config(self) -> config_dict.ConfigDict:
        """The config of --config; raises UserError where none was given."""
        return load_config(flags.FLAGS["config"])


def _define(table: Mapping[str, Mapping[str, Any]]) -> None:
    plain: dict[str, Any] = {
        "string": flags.DEFINE_string,
        "boolean": flags.DEFINE_bool,
        "list": flags.DEFINE_list,
        "integer": flags.DEFINE_integer,
        "number": flags.DEFINE_float,
    }
    for name, about in table.items():
        kind, default = about["type"], about.get("default")
        bounds = {
            f"{side}_bound": about[word] for side, word in (("lower", "least"), ("upper", "largest")) if word in about
        }
        if kind == "config":
            define_config(default)
        elif isinstance(kind, list):
            flags.DEFINE_enum(name, default, kind, about["help"])
        else:
            plain[kind](name, default, about["help"], **bounds)


def run(
    main: Callable[..., int | None],
    argv: Sequence[str] | None = None,
    help_text: str | None = None,
    own_flags: Sequence[str] | None = None,
    words: int = 0,
) -> None:
    """Parses the flags, calls `main()` and exits: 0 or what main returns; 2 and one line for bad input.

    Scripts of their own call it with `main` alone. `words` is how many arguments beside flags main takes at most.
    """
    one_heap()
    argv = list(sys.argv if argv is None else argv)
    logging.set_verbosity(logging.ERROR)  # orbax warns through absl about its own defaults: an error must stand alone
    if any(a in _HELP for a in argv[1:]):
        _print_help(argv, help_text, own_flags)
        sys.exit(0)
    try:
        code = main(*_parse(argv, words))
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `command | head`: the reader has gone, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code or 0)


def define_config(default: str | None = None) -> flags.FlagHolder[config_dict.ConfigDict]:
    """Defines `--config=NAME[:SIZE]` (or a file) with `--config.a.b=value` overrides; `default` is a config's name."""
    return config_flags.DEFINE_config_file(
        "config",
        default and config_files.find(default),
        "A config's name (`cogpo configs` lists them) or a file; --config.a.b=value sets a field.",
    )


def load_config(holder: Any) -> config_dict.ConfigDict:
    """The config of `define_config`'s flag; raises UserError where none was given."""
    if holder.value is None:
        raise UserError("--config: missing; give a config's name (`cogpo configs` lists them) or a file")
    return config_files.with_shipped_files(holder.value)


def _run_script(file: str, arguments: Sequence[str]) -> None:
    path = config_files.PACKAGE.parent / file
    if not path.is_file():
        _fail(f"command line: {file}: is not part of an installed package; type this command in a checkout", 2)
    os.execv(sys.executable, [sys.executable, str(path), *arguments])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {about['help'].splitlines()[0]}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            "cogpo: CRV and CogPO in JAX, from problems to an aligned student.",
            "",
            "    cogpo COMMAND [--flag=value ...]     cogpo COMMAND --help says what a command takes",
            "",
            *lines,
            "",
            f"In a checkout also: {', '.join(SCRIPTS)}.",
        ]
    )


def _parse(argv: list[str], words: int) -> list[str]:
    try:
        _find_configs(argv)
        rest = flags.FLAGS(argv)
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(f"command line: {_one_line(error)}") from error
    except (AttributeError, KeyError) as error:  # config_flags names an unknown field by its last part only
        raise UserError(
            f"{_unknown_field(argv, error)}: no such config field; `cogpo configs show NAME` prints the known ones"
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"--config: {_one_line(error)}") from error
    if len(rest) - 1 > words:
        raise UserError(f"command line: {rest[1 + words]!r}: not a flag (flags are written --name=value)")
    return rest[1:]


def _find_configs(argv: list[str]) -> None:
    """Puts the file in the place of each config's name, in `argv` and for config_flags in sys.argv."""
    for i, argument in enumerate(argv[1:], 1):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config") and equals:
            argv[i] = f"{name}={config_files.find(value)}"
            config_files.load(value)  # says in one line what is wrong with a person's file
        elif argv[i - 1] in ("--config", "-config"):
            argv[i] = config_files.find(argument)
            config_files.load(argument)
    sys.argv[:] = argv


def _unknown_field(argv: list[str], error: BaseException) -> str:
    """The first `config.a.b` of the command line that the config has not; else the error itself."""
    words = [argument.lstrip("-").partition("=") for argument in argv[1:]]
    files = [
        value or after[0]
        for (name, _, value), after in zip(words, [*words[1:], ("",)], strict=True)
        if name == "config"
    ]
    for name in (name for name, _, _ in words if name.startswith("config.") and files):
        node: Any = config_files.load(files[-1])
        for part in name.split(".")[1:]:
            if not isinstance(node, config_dict.ConfigDict) or part not in node:
                return name
            node = node[part]
    return f"--config: {_one_line(error)}"


def _print_help(argv: list[str], help_text: str | None, own_flags: Sequence[str] | None) -> None:
    print((help_text if help_text is not None else sys.modules["__main__"].__doc__ or "").strip(), end="\n\n")
    print("Flags:")
    # Only what the command itself and this module define: absl's own flags would bury them.
    if own_flags is None:
        defined = flags.FLAGS.flags_by_module_dict()
        own_flags = sorted({f.name for m in (argv[0], __name__, "__main__") for f in defined.get(m, ())})
    for name in own_flags:
        flag = flags.FLAGS[name]
        default = "" if flag.default is None else f" (default: {flag.default_unparsed})"
        print(f"  --{name}: {flag.help}{default}")


def _one_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback (most recent call last)" in text:  # of a config file, quoted by config_flags: its last line says it
        text = text.strip().splitlines()[-1].partition(": ")[2] or text
    return " ".join(text.split())


def _fail(message: str, code: int) -> Any:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
