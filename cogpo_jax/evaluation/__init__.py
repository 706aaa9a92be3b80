"""What a student can do: tasks, responses, verdicts, and statistics by which a difference can be believed."""
