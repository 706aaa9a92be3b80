"""`python -m cogpo_jax COMMAND` is `cogpo COMMAND`."""

from cogpo_jax.cli import main

main()
