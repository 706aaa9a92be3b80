"""Mutants of the verifier: (name, file, old text, new text, the test that must fail)."""

V = "crv/verify"
PAIRS = "tests/crv/test_pairs.py"
SAME = f"{PAIRS}::test_what_differs_is_never_called_the_same"
OPEN = f"{PAIRS}::test_what_is_right_or_open_is_never_proved_wrong"
READ = f"{PAIRS}::test_one_value_in_two_spellings_is_the_same"
APART = f"{PAIRS}::test_what_is_apart_at_every_point_is_proved_to_differ"

MUTANTS = [
    (
        "what agrees with a line at some points is a line",
        f"{V}/arithmetic.py",
        'elif node.op in {"add", "neg", "percent"}:',
        'elif node.op in {"add", "neg", "percent", "abs", "floor"}:',
        "tests/crv/test_grade.py::test_kinds_of_answers",
    ),
    (
        "a line is known by three points, whatever is written",
        f"{V}/arithmetic.py",
        "points = range(max(2, degree(node, name) + 1))",
        "points = range(3 + 0 * degree(node, name))",
        "tests/crv/test_grade.py::test_kinds_of_answers",
    ),
    (
        "a tuple is a set",
        f"{V}/equal.py",
        'if pair <= {"list", "set", "value"}:',
        'if pair <= {"list", "set", "value", "seq"}:',
        SAME,
    ),
    (
        "a factorial mark is dropped",
        f"{V}/spelling.py",
        '(text[-1] == "!" and not re.search(r"[\\w)\\]}!]!$", text))',
        'text[-1] == "!"',
        SAME,
    ),
    (
        "no digits beyond the usual",
        f"{V}/algebra.py",
        "extra = min(int(2 * scale) if scale > 20 else 0, 200 if point else _DIGITS)",
        "extra = 0",
        SAME,
    ),
    (
        "only positive points",
        f"{V}/algebra.py",
        'if kind == "any" and not agree:',
        'if kind == "any":',
        SAME,
    ),
    (
        "percent on either side is the number",
        f"{V}/equal.py",
        'return SAME if verdict == SAME or a.op in marked or "degree" in marked else UNKNOWN',
        "return SAME",
        SAME,
    ),
    (
        "radians and degrees are apart",
        f"{V}/algebra.py",
        "return UNKNOWN  # pi / 3 and 60: radians and degrees",
        "return DIFFERENT",
        OPEN,
    ),
    (
        "log is ln",
        f"{V}/algebra.py",
        "bases = [None, 10] if",
        "bases = [None] if",
        OPEN,
    ),
    (
        "a missing unit proves",
        f"{V}/grade.py",
        "if verdict == DIFFERENT and any(part in _SCALED",
        'if verdict == "never" and any(part in _SCALED',
        OPEN,
    ),
    (
        "a free constant proves",
        f"{V}/algebra.py",
        "provable = a.symbols() == b.symbols() and not _free_constant(a, b)",
        "provable = a.symbols() == b.symbols()",
        OPEN,
    ),
    (
        "an ambiguous text proves",
        f"{V}/grade.py",
        "if verdict == DIFFERENT and unsure else verdict",
        'if verdict == "never" and unsure else verdict',
        OPEN,
    ),
    (
        "whole letters are real ones",
        f"{V}/equal.py",
        "or rounded or names & _INTEGERS else DIFFERENT",
        "or rounded else DIFFERENT",
        OPEN,
    ),
    (
        "a rounded decimal proves",
        f"{V}/arithmetic.py",
        "return UNKNOWN if rounded and abs(x - y) <= max(abs(x), abs(y)) / 100 else DIFFERENT",
        "return DIFFERENT",
        OPEN,
    ),
    (
        "mixed numbers are products",
        f"{V}/latex.py",
        'return Node("number", (), value + mixed)',
        'return Node("number", (), value * (mixed or 1))',
        READ,
    ),
    (
        "thousands joined anywhere",
        f"{V}/spelling.py",
        "match = _GROUPED.fullmatch(text.strip())",
        'match = _GROUPED.fullmatch(text.strip().replace(" ", ""))',
        "tests/crv/test_spelling.py::test_thousands_are_joined_only_where_the_whole_is_one_number",
    ),
    (
        "boxes without braces are not seen",
        f"{V}/extract.py",
        "end = token.end() if token else -1",
        "end = -1",
        "tests/crv/test_extract.py::test_every_form_is_recognised_and_what_is_recognised_is_hidden",
    ),
    (
        "the gold line stays",
        f"{V}/extract.py",
        "lines = [line for line in lines if not _only(line, gold)]",
        "lines = list(lines)",
        "tests/crv/test_extract.py::test_a_line_that_is_only_the_gold_answer_is_hidden",
    ),
    (
        "an outer statement is dropped",
        f"{V}/extract.py",
        "if inner.start in starts or _INNER.fullmatch(text, span.start, max(span.start, begin)):",
        "if begin >= 0:",
        "tests/crv/test_extract.py::test_what_stands_before_an_inner_statement_is_still_said",
    ),
    (
        "an unclosed box stays",
        f"{V}/extract.py",
        "if opening := _BOXED.search(text):",
        "if (opening := _BOXED.search(text)) and False:",
        "tests/crv/test_extract.py::test_a_box_that_never_closes_is_hidden_and_states_nothing",
    ),
]
