"""The shipped configs; importable as `cogpo_jax.configs.NAME`, and from your own config files too."""
