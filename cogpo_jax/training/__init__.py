"""Training: one jitted step, its data position, its checkpoints, its records."""
