"""CRV (Critique, Rethink, Verify): LLM agents write the training data. Never imports jax."""
