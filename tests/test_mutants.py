"""The list of mutants is kept: what a refactoring makes unfit is noticed here, not in the lane."""

import runpy
from pathlib import Path

run = runpy.run_path(str(Path(__file__).parent / "mutants" / "run.py"))


def test_every_mutant_fits_the_code_and_names_a_test():
    assert run["misfits"](run["mutants"]()) == []


def test_a_text_that_is_gone_and_a_test_that_is_gone_are_named():
    gone = ("a fault", "cogpo_jax/errors.py", "no such text", "x", "tests/test_cli.py::test_nothing_of_the_sort")
    assert run["misfits"]([gone]) == [
        "a fault: cogpo_jax/errors.py has the old text 0 times, not once",
        "a fault: tests/test_cli.py::test_nothing_of_the_sort: no such test",
    ]
