"""Records to rows: token cache, epoch plan, packing. Nothing in this package but `feed` imports jax."""
