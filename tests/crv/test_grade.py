"""Grading: what is the same, what is proved to differ, and what stays unknown."""

import asyncio
import json
import time

import pytest

from crv.verify import algebra, grade
from crv.verify.certificate import certify, ladder
from crv.verify.workers import AlgebraWorkers, grade_responses


@pytest.fixture(scope="module")
def graded():
    """Grades many (gold, text) at once, with one worker process for all tests of the module."""
    loop = asyncio.new_event_loop()
    workers = AlgebraWorkers(1, seconds=20)

    def grade(gold, text):
        return loop.run_until_complete(certify(gold, text, ladder(workers.compare)))

    yield grade
    loop.run_until_complete(workers.__aexit__(None, None, None))
    loop.close()


CORRECT = [
    ("52", "The answer is 52"),
    ("52", "The answer is 52.0"),
    ("362,\\!880", "The answer is 362,880"),
    ("\\dfrac{5}{11}", "The answer is 5/11"),
    ("\\frac12", "The answer is 0.5"),
    ("3\\frac{1}{2}", "The answer is 7/2"),
    ("40\\text{ min}", "The answer is 40 minutes"),
    ("132^\\circ", "The answer is 132°"),
    ("132^\\circ", "The answer is 132 degrees"),
    ("\\$1.17", "The answer is $1.17"),
    ("2400 \\mbox{ cm}^2", "The answer is 2400 square cm"),
    ("20\\%", "The answer is 20%"),
    ("\\text{B}", "The answer is (B)"),
    ("\\text{B}", "The answer is (B) 12"),
    ("2\\sqrt{5}", "The answer is 2√5"),
    ("2\\sqrt{5}", "The answer is \\sqrt{20}"),
    ("x^2+2x+1", "The answer is (x+1)^2"),
    ("(1,2]", "The answer is $(1, 2]$"),
    ("\\{1,2\\}", "The answer is \\{2,1\\}"),
    ("\\text{even}", "The answer is even"),
    ("7", "The answer is x = 7"),
    ("57", "The answer is 3 x 19 = 57"),
    ("24{,}000", "The answer is 20 * 6 * 20 * 10 = 24,000"),
    ("\\frac{1}{2}", "The answer is \x0crac{1}{2}"),
]
INCORRECT = [
    ("52", "The answer is 51"),
    ("\\frac{3}{4}", "The answer is \\frac{6}{7}"),
    ("\\text{B}", "The answer is (C)"),
    ("\\text{May}", "The answer is October"),
    ("2\\sqrt{5}", "The answer is 3\\sqrt{5}"),
    ("x^2+1", "The answer is x^2-1"),
    ("(1,2]", "The answer is $(1, 3]$"),
    ("\\{1,2\\}", "The answer is \\{2,3\\}"),
    ("114\\text{ square units}", "The answer is 150 square units"),
    ("\\$15", "The answer is $18"),
    ("11_{2}", "The answer is 11_{3}"),
]
UNKNOWN = [
    ("5", "The answer is 15. This is incorrect. It should be 5"),
    ("13", "We get \\boxed{19}. No: \\boxed{13}"),
    ("2", "The answer is 2y"),  # a partial parse reads 2
    ("2y", "The answer is 2"),
    ("2y", "The answer is 2x"),
    ("1/3", "The answer is 0.33"),  # perhaps rounded
    ("40", "The answer is 2/3 hours"),  # another unit
    ("1500", "The answer is $15"),  # perhaps cents
    ("\\text{even}", "The answer is a multiple of two"),
    ("\\text{B}", "The answer is 12"),
    ("rac{1}{2}", "The answer is 3"),  # gold is damaged
    ("5", "The answer is unclear"),
    ("5", "The answer is not 5"),
    ("5", "no statement at all"),
    ("\\frac{1}{2}", "The answer is \\frac{1}{2"),
    ("1", "The answer is 1 and also 2"),
    ("126", "The answer is 64 + 64 = 126"),  # a false equation states no answer
    ("15", "The answer is 85 - 15 = 15"),
]


@pytest.mark.parametrize(
    ("gold", "text", "verdict"),
    [
        (g, t, v)
        for v, cases in (("correct", CORRECT), ("incorrect", INCORRECT), ("unknown", UNKNOWN))
        for g, t in cases
    ],
)
def test_verdicts(graded, gold, text, verdict):
    certificate = graded(gold, text)
    assert certificate.verdict == verdict, certificate
    assert json.loads(certificate.to_json())["verdict"] == verdict


def test_hostile_answers_cost_a_worker_not_the_run():
    async def run():
        async with AlgebraWorkers(1, seconds=0.02, megabytes=1024) as workers:
            compare = ladder(workers.compare)
            long = "+".join(f"\\sin^{{{k}}}(x^{k})" for k in range(1, 20))  # honest, and too long for 20 ms
            slow = await certify(long, f"The answer is ${long}+\\cos^2 x$", compare)
            workers.seconds = 5.0
            tower = await certify("9^9", "The answer is 9^{9^{9^{9^9}}}", compare)
            braces = await certify("3", "The answer is " + "{" * 10_000_000, compare)
            unclosed = await certify("3", "The answer is $\\frac{\\sqrt{\\frac{1}{", compare)
            after = await certify("2\\sqrt{5}", "The answer is \\sqrt{20}", compare)
            return slow, tower, braces, unclosed, after, workers.lost

    start = time.monotonic()
    slow, tower, braces, unclosed, after, lost = asyncio.run(run())
    assert (slow.verdict, tower.verdict, braces.verdict, unclosed.verdict) == ("unknown",) * 4
    assert after.verdict == "correct", "a worker that was lost is replaced"
    assert lost == 1
    assert "time" in slow.rule
    assert time.monotonic() - start < 60


def test_responses_are_graded_in_order_by_letter_or_by_the_text_of_the_choice():
    choices = ("a dog", "a cat", "3.5")
    rows = [
        ("B", "So the answer is (B).", choices),
        ("B", "The answer is a cat", choices),
        ("B", "The answer is a dog", choices),
        ("C", "The correct option is 7/2", choices),
        ("18", "Final Answer: The final answer is $18$. I hope it is correct.", ()),
        ("18", "no statement", ()),
        ("\\sqrt{2}", "#### 1/\\sqrt{2}", ()),
    ]
    verdicts = [certificate.verdict for certificate in grade_responses(rows, workers=1)]
    assert verdicts == ["correct", "correct", "incorrect", "correct", "correct", "unknown", "incorrect"]


SAME = [
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    (r"\langle 1,2\rangle", "(1,2)"),
    (r"\begin{pmatrix}1&0\\0&2\end{pmatrix}\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\4\end{pmatrix}"),
    (r"x\in\mathbb{R}", r"(-\infty,\infty)"),
    (r"\binom{5}{2}", "10"),
    (r"\lfloor 3.7\rfloor + \lceil 3.2\rceil", "7"),
    (r"\vec{a}", r"\vec a"),
    ("2y=4x+2", "y=2x+1"),
    ("y>2x-1", "2x-y<1"),
    ("1:2:3", "2:4:6"),
    (r"\{x\mid x>1\}", r"(1,\infty)"),
    (r"x<1\text{ or }x>3", r"(-\infty,1)\cup(3,\infty)"),
    (r"x\in(1,3)", "1<x<3"),
    ("x^2<4", "(-2,2)"),
    (r"x=2\text{ or }x=-2", "x^2=4"),
    ("x=1,y=2", "y=2,x=1"),
    (r"\sin^{-1}(1)", r"\frac{\pi}{2}"),
    (r"\sqrt[3]{27}", "3"),
    (r"\log_2 8", "3"),
    ("(1+i)^2", "2i"),
    (r"5\text{ cm}", "50 mm"),
    ("f(x)=2x", "f(t)=2t"),
    (r"\begin{pmatrix}1\\2\\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("[(1,2)]", "(1,2)"),
    ("1:2", "0.5"),
    (r"\{\}", r"\emptyset"),
    (r"x\in\{1\}", "1"),
    (r"x=1\text{ and }y=2", "(1,2)"),
]
DIFFERENT = [
    (r"\langle 1,2\rangle", r"\langle 1,3\rangle"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2&3\end{pmatrix}"),
    (r"\mathbb{R}", r"(0,\infty)"),
    ("y=2x+2", "y=2x+1"),
    ("x>y", "x<y"),
    ("1:2:3", "1:2:4"),
    ("x^2<4", "(-2,3)"),
    ("x(x-1)(x-2)(x-5)+x<3", "x<3"),  # the same line at 0, 1, 2 and 5
    ("x=1,y=2", "x=1,y=3"),
    (r"x\le 3", "x<3"),
    (r"\sqrt[4]{16}", "3"),
]
UNDECIDED = [
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,3)"),  # a point and a column
    ("2x-y<1", r"2x-y\le 1"),
    ("x=1,y=2", "a=1,b=2"),
    (r"x<1\text{ and }x>3", "3"),  # nobody states an empty set
    ("(3,1)", "1<x<3"),
    ("129_{8}", "5"),  # no number in base 8
    ("12_{37}", "5"),
    (r"\frac{1}{0}", "3"),
    (r"\infty+1", "3"),
    (r"\begin{cases}1\end{cases}", "1"),
    ("(1,2,3)", "(1,2)"),
    (r"\{(1,2)\}", "(1,2)"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("f(x)=2x", "g(x)=3x"),
    ("a=b=c", "a=b"),
    ("x<y<3", "3"),
    (r"1<x\ne3", "3"),
    (r"x>1\text{ or }y<2", "3"),
    ("1:2", "1:2:3"),
    ("2:1", "0.5"),
    ("|x|<2", "(-2,2)"),  # on one side of 0 it is x < 2
    (r"|x+200|\le 2", r"x\le -198"),
    (r"\lfloor x\rfloor\le 3", r"x\le 3"),  # equal at whole numbers
    ("x(x-1)(x-2)(x-3)(x-4)(3x+7)(x-17)(x+101)+x<3", "x<3"),
    (r"\sqrt{(x+200)^2}<5", "x<-195"),
    (r"((x^{20})^{20})^{20}+x<3", "x<3"),  # would take 8,001 points
]


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (a, b, verdict)
        for verdict, pairs in ((grade.SAME, SAME), (grade.DIFFERENT, DIFFERENT), (grade.UNKNOWN, UNDECIDED))
        for a, b in pairs
    ],
)
def test_kinds_of_answers(gold, answer, verdict):
    for first, second in ((gold, answer), (answer, gold)):
        found = grade.compare(first, second)
        assert (algebra.compare(first, second) if found[1] == "algebra" else found)[0] == verdict, found


@pytest.mark.parametrize(
    "answer",
    ["10^{10^{10}}", "9^{9^{9^9}}", "(((99!)!)!)!", "\\sin(10^{10^{10}})", "1e999999999", "2^{2^{2^{2^{2^{2^2}}}}}-1"],
)
def test_huge_numbers_are_not_worked_out(answer):
    start = time.monotonic()
    assert grade.compare("3", answer)[0] != grade.SAME
    assert algebra.compare("3", answer)[0] != grade.SAME
    assert time.monotonic() - start < 20
