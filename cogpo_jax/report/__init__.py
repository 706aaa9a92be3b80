"""What a run showed: the held-out table, and one self-contained page about it. Imports no jax."""
