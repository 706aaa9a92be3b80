"""A chain of thought as `thought` and `solution`, the two parts of a training response."""

from crv.verify.extract import cut_final_statement

_OPEN, _CLOSE = "<think>", "</think>"
_R1 = ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>")


def split_cot(text: str) -> tuple[str, str]:
    """(thought, solution): along think tags where there are any, else the final statement is the solution.

    ("", text) where nothing comes before the final statement, or none is made.
    """
    text = text.strip()
    if _CLOSE in text:
        thought, _, solution = text.partition(_CLOSE)
        return _halves(thought.replace(_OPEN, "", 1), solution, text)
    if _R1[1] in text:
        thought, _, solution = text.partition(_R1[1])
        return _halves(thought.replace(_R1[0], ""), solution.replace(_R1[2], "").replace(_R1[3], ""), text)
    return _halves(*cut_final_statement(text), text)


def _halves(thought: str, solution: str, text: str) -> tuple[str, str]:
    thought, solution = thought.strip(), solution.strip()
    return (thought, solution) if thought and solution else ("", text)
