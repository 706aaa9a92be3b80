"""The two exceptions that end a command with one line: bad input, and a run that cannot go on."""


class UserError(ValueError):
    """Bad input from outside: the message is one line naming the field, the value and what would be right.

    `cogpo_jax.cli.run` prints it without a traceback and exits with code 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on although its input was right (a NaN, a host that died); exit code 1."""
