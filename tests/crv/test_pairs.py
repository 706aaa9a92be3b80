"""Pairs that a verifier gets wrong when it trusts a parser, a tolerance or a spelling."""

import pytest

from crv.verify import algebra


def verdict(pair):
    gold, answer = pair.split(" / ")
    return algebra.compare(gold, answer)[0]


@pytest.mark.parametrize(
    "pair",
    [
        r"\frac{1}{2^{1007}} / \frac{1}{2^{1006}}",
        r"\frac{52!}{47!} / \frac{52!}{48!}",
        r"6.626\times10^{-34} / 1.602\times10^{-19}",
        r"\frac{\pi}{10^7} / 0.0000004",
        "(0,100) / 100",
        "(5,120) / 5120",
        "2500 / 2, 500",
        r"n! / n",
        r"(n-1)! / n-1",
        "4 / (5-1)!",
        r"2^3 / 8\%",
        r"(1,2) / \{1,2\}",
        r"2^{1/2^{1000}} / 1",
        r"1+10^{-200} / 1",
        r"\sqrt{x^2} / x",
        r"|x+1001|-1001 / |x+1000|-1000",
        "12 / 1 2",
        "(1,2) / (2,1)",
        "X / x",
        r"\begin{pmatrix}1\\2\end{pmatrix} / \begin{pmatrix}2\\1\end{pmatrix}",
        r"2516_8 / 2516",
        r"x^2 / x2",
        r"23 / ②③",
        r"e^{-x}+C / e^{-x}",
    ],
)
def test_what_differs_is_never_called_the_same(pair):
    assert verdict(pair) != "same"


@pytest.mark.parametrize(
    "pair",
    [
        "24 / (5-1)!",
        "x=0,100 / 0, 100",
        r"\sqrt{k/m} / \frac{\sqrt k}{\sqrt m}",
        r"\ln(a/b) / \ln a-\ln b",
        r"b\sqrt a / \sqrt{ab^2}",
        "300000000 / 3e8",
        "0.0015 / 1.5e-3",
        r"\frac{\pi}{3} / 60^\circ",
        r"\frac{\pi}{3} / 60",
        "10^3 / 1 km",
        r"\frac{5\pi}{2} / 2\frac12\pi",
        r"1\frac12x / 1.5x",
        r"\sin^2x+C / -\cos^2x+C",
        r"\ln 2 / \log 2",
        r"2 / \log 100",
        r"(-1)^n / \cos(n\pi)",
        r"\sqrt[3]{-8} / (-8)^{1/3}",
        r"n > 2 / n \ge 3",
        r"\frac{\pi}{3}+k\pi / -\frac{2\pi}{3}+k\pi",
        r"i^2 / -1",
        r"x / |x|",
        r"\ln(x^2) / 2\ln x",
        "1/3 / 0.33",
        r"1/2x / \frac{1}{2x}",
        "4 / 4!",
        "5,120 / 5120",
    ],
)
def test_what_is_right_or_open_is_never_proved_wrong(pair):
    assert verdict(pair) != "different"


@pytest.mark.parametrize(
    "pair",
    [
        "24 / (5-1)!",
        "x=0,100 / 0, 100",
        "300000000 / 3e8",
        "0.0015 / 1.5e-3",
        r"\frac{\pi}{3} / 60^\circ",
        r"\frac{5\pi}{2} / 2\frac12\pi",
        r"1\frac12x / 1.5x",
        r"\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix} / \begin{bmatrix} 1&2 \\ 3&4 \end{bmatrix}",
        r"\begin{pmatrix}6\\8\end{pmatrix} / \begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}5\\6\end{pmatrix}",
        "2516_8 / 2516_{8}",
        "(1,2) / (1，2)",
        "-5 / －5",
        "0.5 / ½",
        "x^2 / x²",
        r"\infty / ∞",
        r"10000 / 10\,000",
        r"3/4 / 75\%",
        r"1\pm\sqrt2 / 1-\sqrt2, 1+\sqrt2",
        r"x > 3 / (3, \infty)",
        r"4 < m \le 8 \text{ or } 10 \le m < 12 / (4, 8] \cup [10, 12)",
        r"\{x | x < 3/2\} - \{-6\} / (-\infty,-6) \cup (-6, 1.5)",
        r"x \ne 5 / (-\infty,5)\cup(5,\infty)",
        r"x=2 \text{ or } x=-2 / x^2=4",
        "a=2, h=-1 / 2, -1",
        "f(n)=2n+7 / f(m)=2m+7",
        "y=0.5-x / 2x+2y=1",
        r"\text{(B)} / B",
        "16386.17 / \\$16,386.17",
        r"60\text{ km/h} / 60 kilometers per hour",
        r"5\text{ m} / 500 cm",
        r"2:3 / 4:6",
        r"\binom{5}{2} / 10",
        r"\sin^{-1} x / \arcsin x",
        r"\frac{1}{3} / 1/3 \approx 0.33",
        "odd / Odd",
        r"2 \cdot x / x\cdot 2",
        r"x_{1} / x_1",
        "2^6 3^5 / 2^6 \\cdot 3^5",
    ],
)
def test_one_value_in_two_spellings_is_the_same(pair):
    assert verdict(pair) == "same"


@pytest.mark.parametrize(
    "pair",
    [
        r"\frac{1}{2^{1007}} / \frac{1}{2^{1006}}",
        r"\frac{52!}{47!} / \frac{52!}{48!}",
        r"6.626\times10^{-34} / 1.602\times10^{-19}",
        "4 / (5-1)!",
        "[0,1) / (0,1)",
        r"a \le 0 / (-\infty, 1]",
        r"5x-7y+11z+4=0 / x+y-z+2=0",
        r"\frac{3\pi}{4} / 120^\circ",
        r"5\text{ m} / 400 cm",
        "yes / no",
        r"\{1,2,3\} / \{1,2,4\}",
        r"x^2+1 / x^2-1",
        r"2^{k-n} / 2^{k-n+1}",
        r"2\arcsin\sqrt a / \arccos(1-3a)",
        "11_2 / 11_3",
        "(2,1) / (1,2)",
    ],
)
def test_what_is_apart_at_every_point_is_proved_to_differ(pair):
    assert verdict(pair) == "different"
