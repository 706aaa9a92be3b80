"""What each command of `cogpo` takes and calls; nothing here imports jax before the flags are parsed."""
