"""Mutants of the controlled world, its arms and the kept memory."""

MUTANTS = [
    (
        "a slip is not carried through",
        "examples/arithmetic/world.py",
        "if 0 <= slip < i else 0",
        "if 0 <= slip == i - 1 else 0",
        "tests/test_teaches.py::test_a_slip_is_carried_through_to_the_end",
    ),
    (
        "the interval leaves the seeds out",
        "benchmarks/arms.py",
        "rows = values[rng.integers(seeds, size=seeds)]",
        "rows = values",
        "tests/test_teaches.py::test_the_interval_is_of_seeds_and_problems",
    ),
    (
        "freed memory goes back to the system",
        "cogpo_jax/heap.py",
        "{_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}",
        "{}",
        "tests/training/test_keep_memory.py::test_steps_of_a_small_student_map_no_new_pages_and_give_the_same_bits",
    ),
    (
        "a command's threads have heaps of their own",
        "cogpo_jax/cli.py",
        "    one_heap()\n",
        "",
        "tests/training/test_keep_memory.py::test_threads_of_a_command_on_a_cpu_share_one_heap",
    ),
    (
        "an arm is right where its verdict is unknown",
        "benchmarks/arms.py",
        'sample["verdict"] == "correct"',
        'sample["verdict"] != "incorrect"',
        "tests/test_teaches.py::test_an_unknown_verdict_is_not_right",
    ),
    (
        "a large student's memory is kept",
        "cogpo_jax/heap.py",
        "_SMALL = 200_000_000",
        "_SMALL = 200_000_000_000",
        "tests/training/test_keep_memory.py::test_a_large_student_leaves_the_c_library_alone",
    ),
    (
        "annotations stay in the person's solution",
        "examples/gsm8k_texts.py",
        'plain = [_CALCULATION.sub("", line) for line in lines]',
        "plain = lines",
        "tests/crv/test_gsm8k_texts.py::test_all_three_texts_reach_the_answer_and_differ_in_length",
    ),
    (
        "a step ends a token too early",
        "cogpo_jax/training/score_rows.py",
        'np.searchsorted(ends, starts, side="right")',
        'np.searchsorted(ends, starts + 1, side="right")',
        "tests/training/test_score_rows.py::test_the_steps_are_the_response_and_a_step_is_what_a_prefix_lacks",
    ),
    (
        "a difference takes all seeds",
        "benchmarks/arms.py",
        "[seed for seed in runs if seed in done[other]]",
        "list(done[other])",
        "tests/test_teaches.py::test_a_difference_is_over_the_seeds_that_have_both_arms",
    ),
    (
        "any number of dropped problems is taken",
        "benchmarks/arms.py",
        "if dropped > count / 20:",
        "if dropped > count:",
        "tests/test_teaches.py::test_a_few_dropped_problems_are_told_and_many_refused",
    ),
]
