"""Mutants of the record code's way in and of hygiene: each breaks a promise that the named test holds."""

_TABLE = "tests/records/test_published.py"
_READ = "tests/records/test_reader.py"

MUTANTS = [
    (
        "a tie has a winner",
        "cogpo_jax/records/general.py",
        "return marks.index(said) if said in marks else None",
        "return marks.index(said) if said in marks else 0",
        f"{_TABLE}::test_a_tie_is_no_pair",
    ),
    (
        "a question loses what stands before it",
        "cogpo_jax/records/general.py",
        'problem = f"{before}+{problem}"',
        "pass",
        f"{_TABLE}::test_a_question_is_read_whole_and_a_key_is_a_letter",
    ),
    (
        "a long solution is taken for a gold answer",
        "cogpo_jax/records/general.py",
        "_PROSE = 20",
        "_PROSE = 20_000",
        f"{_TABLE}::test_a_set_of_problems_keeps_its_problem_gold_and_chain",
    ),
    (
        "the first generation is taken, right or wrong",
        "cogpo_jax/records/texts.py",
        "return value[flags.index(True)] if True in flags else value[0]",
        "return value[0]",
        f"{_TABLE}::test_the_first_verified_generation_is_the_chain",
    ),
    (
        "a continuation loses its start",
        "cogpo_jax/records/rows.py",
        "{start or ''}",
        "",
        f"{_TABLE}::test_a_continuation_is_joined_with_its_start",
    ),
    (
        "a chain of another name is lost",
        "cogpo_jax/records/general.py",
        "return typical > 600 or",
        "return typical > 60000 or",
        f"{_TABLE}::test_what_would_be_lost_or_is_unclear_is_refused",
    ),
    (
        "the better of two is the worse",
        "cogpo_jax/records/rows.py",
        "int(second > first)",
        "int(second < first)",
        f"{_TABLE}::test_a_set_of_pairs_keeps_its_prompt_and_which_is_better",
    ),
    (
        "a byte order mark is part of the first row",
        "cogpo_jax/records/reader.py",
        'first = first.removeprefix(b"\\xef\\xbb\\xbf")',
        "",
        f"{_READ}::test_the_same_rows_in_all_containers_give_the_same_bytes",
    ),
    (
        "a split is guessed where several are there",
        "cogpo_jax/records/sources.py",
        "if wanted in there:",
        "if wanted in there or there:",
        f"{_READ}::test_wrong_configs_and_splits_list_those_there_are",
    ),
    (
        "a small number has an exponent",
        "cogpo_jax/records/texts.py",
        'return format(number, "f") if abs(number.adjusted()) < 60 else str(number)',
        "return str(number)",
        f"{_READ}::test_numbers_are_plain_digits",
    ),
    (
        "an unclosed thought is split",
        "cogpo_jax/records/texts.py",
        "return (thought, solution) if thought and solution else",
        "return (thought, solution) if solution else",
        f"{_READ}::test_texts_without_whole_tags_stay",
    ),
    (
        "a word is of Latin letters",
        "crv/hygiene.py",
        "[^\\W\\d_])+",
        "[a-z])+",
        "tests/crv/test_hygiene.py::test_different_problems_of_any_script_are_no_duplicates",
    ),
    (
        "a short evaluation question is not looked for",
        "crv/hygiene.py",
        "if len(run) < ngram:",
        "if len(run) < 0:",
        "tests/crv/test_hygiene.py::test_a_short_evaluation_question_is_found_inside_a_problem",
    ),
]
