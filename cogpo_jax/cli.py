"""How every command starts: absl flags, an ml_collections config, one-line errors, exit codes 0 / 1 / 2."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_dict, config_flags

from cogpo_jax.errors import RunError, UserError

_HELP = ("-h", "-help", "--help", "--helpfull", "--helpshort")


def define_config(default: str | None = None) -> flags.FlagHolder[config_dict.ConfigDict]:
    """Defines `--config=FILE[:SIZE]` with `--config.a.b=value` overrides; `default` is the shipped config file."""
    return config_flags.DEFINE_config_file(
        "config", default, "Config file, e.g. configs/tiny_cpu.py; fields are set by --config.a.b=value."
    )


def run(main: Callable[[], int | None], argv: Sequence[str] | None = None) -> None:
    """Parses the flags, calls `main()` and exits: 0 or what main returns; 2 and one line for bad input."""
    argv = list(sys.argv if argv is None else argv)
    logging.set_verbosity(logging.ERROR)  # orbax warns through absl about its own defaults: an error must stand alone
    if any(a in _HELP for a in argv[1:]):
        _print_help(argv)
        sys.exit(0)
    try:
        _parse(argv)
        code = main()
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


def _parse(argv: list[str]) -> None:
    for arg in argv[1:]:
        if arg.startswith(("--config=", "-config=")):
            _check_config_file(arg.split("=", 1)[1])
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(f"command line: {_one_line(error)}") from error
    except (AttributeError, KeyError) as error:  # config_flags names an unknown field by its last part only
        raise UserError(
            f"{_unknown_field(argv, error)}: no such config field; see the config file for the known ones"
        ) from error
    except (TypeError, ValueError) as error:
        raise UserError(f"--config: {_one_line(error)}") from error
    if rest[1:]:
        raise UserError(f"command line: {rest[1]!r}: not a flag (flags are written --name=value)")


def _check_config_file(value: str) -> None:
    path = value if os.path.isfile(value) else value.rsplit(":", 1)[0]
    if not os.path.isfile(path):
        raise UserError(f"--config: {path}: no such file; give the path of a config such as configs/tiny_cpu.py")


def _unknown_field(argv: list[str], error: BaseException) -> str:
    # Without the field that ml_collections proposes instead: it may well be there.
    words = set(re.findall(r"\w+", re.sub(r'Did you mean "[^"]*"', "", _one_line(error))))
    for arg in argv[1:]:
        name = arg.split("=", 1)[0].lstrip("-")
        if name.startswith("config.") and words & set(name.split(".")[1:]):
            return name
    return f"--config: {_one_line(error)}"


def load_config(holder: flags.FlagHolder[config_dict.ConfigDict]) -> config_dict.ConfigDict:
    """The config behind the flag of `define_config`; raises UserError where none was given."""
    if holder.value is None:
        raise UserError("--config: missing; give the path of a config such as configs/tiny_cpu.py")
    return holder.value


def _print_help(argv: list[str]) -> None:
    doc = (sys.modules["__main__"].__doc__ or "").strip()
    print(doc, end="\n\n")
    print("Flags:")
    # Only what the command itself and this module define: absl's own flags would bury them.
    module = argv[0]
    own = flags.FLAGS.flags_by_module_dict()
    names = {f.name: f for key in own for f in own[key] if key in (module, "cogpo_jax.cli", "__main__")}
    for name, flag in sorted(names.items()):
        default = "" if flag.default is None else f" (default: {flag.default})"
        print(f"  --{name}: {flag.help}{default}")


def _one_line(error: BaseException) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback (most recent call last)" in text:  # of a config file, quoted by config_flags: its last line says it
        text = text.strip().splitlines()[-1].partition(": ")[2] or text
    return " ".join(text.split())


def _fail(message: str, code: int) -> Any:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
