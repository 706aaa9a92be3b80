"""Mutants of cogpo_jax/evaluation: each breaks a promise that the named test holds."""

_HERE, _TESTS = "cogpo_jax/evaluation", "tests/evaluation"

MUTANTS = [
    (
        "a sample is counted as if it were a problem",
        f"{_HERE}/statistics.py",
        "    if single or len(shares) < 2 or np.ptp(shares) == 0:",
        "    if True:",
        f"{_TESTS}/test_run.py::test_several_samples_give_pass_and_majority_at_k",
    ),
    (
        "percentiles of the bootstrap not widened",
        f"{_HERE}/statistics.py",
        "    tail = 100 * _NORMAL.cdf(-math.sqrt(n / (n - 1)) * _t975(n - 1))",
        "    tail = 10.0",
        f"{_TESTS}/test_statistics.py::test_intervals_by_problem_cover_the_truth_and_ones_by_sample_would_not",
    ),
    (
        "a tie counts as won",
        f"{_HERE}/statistics.py",
        "(picks[:, rest] / np.arange(1, len(picks) + 1)).sum()",
        "picks[:, rest].sum()",
        f"{_TESTS}/test_statistics.py::test_majority_at_k_is_the_mean_vote_over_all_subsets",
    ),
    (
        "the test is one-sided",
        f"{_HERE}/statistics.py",
        "    sums = np.abs(2 * np.arange(total + 1) - total)",
        "    sums = 2 * np.arange(total + 1) - total",
        f"{_TESTS}/test_statistics.py::test_with_one_sample_the_sign_flip_test_is_mcnemars_exact_test",
    ),
    (
        "unknown hidden in incorrect",
        f"{_HERE}/summary.py",
        '[sum(r["verdict"] != "incorrect" for r in rows)',
        '[sum(r["verdict"] == "correct" for r in rows)',
        f"{_TESTS}/test_run.py::test_the_command_grades_texts_from_elsewhere",
    ),
    (
        "thoughts are graded too",
        f"{_HERE}/grading.py",
        "        solution, thoughts = cut_thoughts(response)",
        "        solution, thoughts = response, cut_thoughts(response)[1]",
        f"{_TESTS}/test_grading.py::test_math_is_graded_by_what_follows_the_thoughts",
    ),
    (
        "a shuffled letter is not led back",
        f"{_HERE}/grading.py",
        "    letter = LETTERS[problem.order[option]]",
        "    letter = LETTERS[option]",
        f"{_TESTS}/test_grading.py::test_a_shuffled_choice_gets_the_verdict_of_its_option",
    ),
    (
        "leaving early passes the tests",
        f"{_HERE}/grading.py",
        "        return stdout.rstrip().endswith(token)",
        "        return True",
        f"{_TESTS}/test_sandbox.py::test_leaving_early_is_not_passing",
    ),
    (
        "the sandbox has the machine's network",
        f"{_HERE}/sandbox.py",
        "    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS",
        "    flags = _NEWNS | _NEWPID | _NEWIPC | _NEWUTS",
        f"{_TESTS}/test_sandbox.py::test_hostile_programs_end_with_a_reason",
    ),
    (
        "the sandbox sees the machine's files",
        f"{_HERE}/sandbox.py",
        "    os.chroot(root)\n",
        "    os.chroot('/')\n",
        f"{_TESTS}/test_sandbox.py::test_hostile_programs_end_with_a_reason",
    ),
    (
        "a line that a kill cut off is taken for a row",
        f"{_HERE}/run.py",
        '        whole = data[: data.rfind(b"\\n") + 1]',
        "        whole = data",
        f"{_TESTS}/test_run.py::test_a_killed_run_goes_on_and_ends_with_the_same_samples",
    ),
    (
        "what was answered is asked again",
        f"{_HERE}/run.py",
        " if (p.id, i) not in replies.rows]",
        "]",
        f"{_TESTS}/test_run.py::test_a_killed_run_goes_on_and_ends_with_the_same_samples",
    ),
    (
        "runs of other prompts are compared in silence",
        f"{_HERE}/summary.py",
        "    if not common and other_prompts:",
        "    if False:",
        f"{_TESTS}/test_run.py::test_runs_of_other_problems_or_prompts_are_only_compared_when_told_to",
    ),
    (
        "more tokens than positions are let through",
        f"{_HERE}/engines.py",
        "    if len(prompts[longest]) + new > limit:",
        "    if False:",
        f"{_TESTS}/test_student.py::test_more_tokens_than_positions_are_refused_with_what_fits",
    ),
]
