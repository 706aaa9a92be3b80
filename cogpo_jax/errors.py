"""The one exception that stands for bad input."""


class UserError(ValueError):
    """Bad input from outside: the message is one line naming the field, the value and what would be right.

    `cogpo_jax.cli.run` prints it without a traceback and exits with code 2.
    """
