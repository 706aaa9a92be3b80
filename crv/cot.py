"""A chain of thought as `thought` and `solution`, the two parts of a training response."""

from cogpo_jax.records.texts import split_thought
from crv.verify.extract import cut_final_statement


def split_cot(text: str) -> tuple[str, str]:
    """(thought, solution): along the think tags of any family, else the final statement is the solution.

    ("", text) where nothing comes before the final statement, or none is made.
    """
    thought, solution = split_thought(text)
    if not thought:
        thought, solution = (part.strip() for part in cut_final_statement(solution))
    return (thought, solution) if thought and solution else ("", text.strip())
