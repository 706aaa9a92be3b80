"""The text of an answer, as `spelling.spell` writes it, as a tree: a recursive-descent parser.

Written for answers, not for documents: what is not mathematics that a final answer may hold is refused, never skipped,
so a tree always stands for the *whole* text. Public parsers (latex2sympy2) give a prefix, or a product of the letters.
No arithmetic is done here, so no text is expensive to read.
"""

from dataclasses import dataclass
from fractions import Fraction

from crv.verify.arithmetic import Node, is_set, number
from crv.verify.spelling import FUNCTIONS, GREEK, Reader, Token, UnreadableError, tokens

_MAX_EXPONENT = 400  # of a number like 3e8


@dataclass(frozen=True, slots=True)
class Parsed:
    """A tree, and whether people would read the text in another way too (1/2x): then it proves no difference."""

    node: Node
    ambiguous: bool


_INVERSE = {name.replace("arc", "", 1): name for name in FUNCTIONS if name.startswith("arc")}
_RELATIONS = {sign: sign for sign in ("=", "<", ">", "<=", ">=", "in")}
_RELATIONS |= {"le": "<=", "ge": ">=", "ne": "!=", "approx": "~"}
_ACCENTS = frozenset({"vec", "overline", "bar", "hat", "tilde", "overrightarrow", "angle", "triangle"})


def parse(text: str) -> Parsed:
    """The tree of the whole of `text`, as `spell` gives it. Raises UnreadableError."""
    parser = _Parser(tokens(text))
    try:
        node = parser.listing()
    except IndexError:
        raise UnreadableError("it ends too early") from None
    if parser.at < len(parser.tokens):
        raise UnreadableError(f"what is {parser.peek()!r} here?")
    return Parsed(node, parser.ambiguous)


class _Parser(Reader):
    """Recursive descent: listing > relation > union > sum > product > factor > primary."""

    def listing(self) -> Node:
        """One statement, or several with commas, semicolons, "and", "or" between; value: the weakest of these."""
        items, signs = [self.relation()], set()
        while self.peek() in {",", ";", "\\and", "\\or"}:
            while self.peek() in {",", ";", "\\and", "\\or"}:
                signs.add(self.next())
            if not self.peek() or self.peek() in {")", "]", "}", "\\}"}:
                self.fail()
            items.append(self.relation())
        if not signs:
            return items[0]
        return Node("list", tuple(items), "or" if "\\or" in signs else "and" if "\\and" in signs else ",")

    def relation(self) -> Node:
        sides, signs = [self.union()], []
        while True:
            token = self.peek()
            if token == "!" and self.peek(1) == "=":
                self.at += 1
                token, sign = "=", "!="
            elif token.lstrip("\\") in _RELATIONS:
                sign = _RELATIONS[token.lstrip("\\")]
            elif token == ":" and self.depth == 0:
                sign = ":"
            else:
                break
            self.at += 1
            signs.append(sign)
            sides.append(self.union())
        return Node("chain", tuple(sides), tuple(signs)) if signs else sides[0]

    def union(self) -> Node:
        left = self.sum()
        while self.peek() in {"\\cup", "\\cap", "\\setminus"}:
            left = Node(self.next()[1:], (left, self.sum()))
        return left

    def sum(self) -> Node:
        terms: list[Node] = []
        pm: list[tuple[str, Node]] = []
        first = True
        while first or self.peek() in {"+", "-", "\\pm", "\\mp"}:
            sign = self.next() if self.peek() in {"+", "-", "\\pm", "\\mp"} else "+"
            term = self.product()
            first = False
            if sign in {"\\pm", "\\mp"}:
                pm.append((sign, term))
            elif terms and sign == "-" and is_set(terms[0]) and is_set(term):
                terms = [Node("setminus", (terms[0] if len(terms) == 1 else Node("add", tuple(terms)), term))]
            else:
                terms.append(Node("neg", (term,)) if sign == "-" else term)
        node = terms[0] if len(terms) == 1 else Node("add", tuple(terms)) if terms else number(0)
        for sign, term in pm:
            node = Node("pm", (node, term), sign[1:])
        return node

    def product(self) -> Node:
        node = last = self.signed()
        divided = False
        while True:
            token = self.peek()
            if token in {"*", "/", "\\div"}:
                self.at += 1
                last = self.signed()
                node = Node("mul" if token == "*" else "div", (node, last))
                divided = token == "/"
                bare = last.op == "number" and self.at < len(self.tokens) and self.tokens[self.at].spaced  # 1/64 e^x
                divided = divided and not bare
            elif self.starts_factor():
                if self.tokens[self.at].number and last.op in {"number", "decimal", "base", "symbol", "constant"}:
                    raise UnreadableError("two numbers side by side")
                self.ambiguous |= divided  # 1/2x
                last = self.factor()
                node = Node("mul", (node, last))
            else:
                return node

    def signed(self) -> Node:
        sign = self.next() if self.peek() in {"+", "-"} else "+"
        node = self.factor()
        return Node("neg", (node,)) if sign == "-" else node

    def starts_factor(self) -> bool:
        token = self.peek()
        if not token or token in {"\\or", "\\and", "\\in", "\\cup", "\\cap", "\\setminus", "\\div", "\\pm", "\\mp"}:
            return False
        if token[0] == "\\":
            return token not in {"\\}", "\\\\", "\\end", "\\rangle", "\\rfloor", "\\rceil", "\\|"} and (
                token.lstrip("\\") not in _RELATIONS
            )
        return (token == "|" and not self.bars) or token in "([{" or self.tokens[self.at].number or token.isalpha()

    def factor(self) -> Node:
        node = self.primary()
        while True:
            token = self.peek()
            if token == "^":
                self.at += 1
                if self.peek() == "{" and self.peek(1) == "\\circ":
                    self.at += 2
                    self.take("}")
                    node = Node("degree", (node,))
                else:
                    node = Node("pow", (node, self.exponent()))
            elif token == "!" and not (self.peek(1) == "=" and self.tokens[self.at].spaced):
                self.at += 1
                if self.peek() == "!":
                    raise UnreadableError("a double factorial")
                node = Node("factorial", (node,))
            elif token == "%":
                self.at += 1
                node = Node("percent", (node,))
            else:
                return node

    def exponent(self) -> Node:
        if self.peek() in {"-", "+"}:
            return Node("neg", (self.exponent(),)) if self.next() == "-" else self.exponent()
        if self.peek() == "{":
            return self.group()
        node = self.primary()
        if self.peek() == "^":
            self.at += 1
            node = Node("pow", (node, self.exponent()))
        return node

    def group(self) -> Node:
        """The content of braces."""
        self.take("{")
        node = self.inside(self.listing)
        if self.peek() == "\\choose":
            self.at += 1
            node = Node("binom", (node, self.inside(self.listing)))
        self.take("}")
        return node

    def argument(self) -> Node:
        """What a command is applied to: braces, one digit, or one letter or command."""
        if self.peek() == "{":
            return self.group()
        token = self.tokens[self.at]
        if token.number and len(token.text) > 1:  # \frac12
            if not token.text.isdecimal():
                self.fail()
            self.tokens[self.at] = Token(token.text[1:], False)
            return number(int(token.text[0]))
        return self.primary()

    def primary(self) -> Node:
        token = self.tokens[self.at]
        text = self.next()
        if token.number:
            return self.numeral(text)
        if token.letter:
            return self.name(text)
        if text in {"(", "["}:
            node = self.inside(self.listing)
            close = self.take(")", "]")
            if node.op == "list" and node.value == ",":
                return Node("seq", node.args, text + close)
            if text + close not in {"()", "[]"} or node.op in {"list", "chain"}:
                raise UnreadableError("brackets around a statement")
            return node if not is_set(node) else Node("seq", (node,), text + close)
        if text == "{":
            self.at -= 1
            node = self.group()
            return Node("set", node.args if node.op == "list" else (node,)) if node.op == "list" else node
        if text == "\\{":
            return self.braces()
        if text == "|":
            self.bars += 1
            node = self.sum()
            self.take("|")
            self.bars -= 1
            return Node("abs", (node,))
        if text[0] != "\\":
            self.at -= 1
            self.fail()
        return self.command(text[1:])

    def numeral(self, text: str) -> Node:
        mantissa, _, exponent = text.lower().partition("e")
        if exponent and abs(int(exponent)) > _MAX_EXPONENT:
            raise UnreadableError("too large an exponent")
        value = Fraction(mantissa) * Fraction(10) ** int(exponent or 0)
        if not text.isdecimal():
            return Node("decimal" if "." in text else "number", (), value)
        if self.peek() == "_":
            self.at += 1
            base = self.argument()
            if base.op != "number" or not 2 <= base.value <= 36:  # type: ignore[operator]
                raise UnreadableError("a subscript that is no base")
            return Node("base", (), (text, str(base.value)))
        mixed = self.mixed_part()
        return Node("number", (), value + mixed)

    def mixed_part(self) -> Fraction:
        """The proper fraction that stands after a whole number (2\\frac12, 2 1/2), or 0."""
        texts = [self.peek(k) for k in range(7)]
        if texts[0] == "\\frac":
            over, under, used = "", "", 0
            if texts[1] == "{" and texts[3] == "}" and texts[4] == "{" and texts[6] == "}":
                over, under, used = texts[2], texts[5], 7
            elif texts[1].isdecimal() and len(texts[1]) == 2:
                over, under, used = texts[1][0], texts[1][1], 2
        elif texts[0].isdecimal() and self.tokens[self.at].spaced and texts[1] == "/" and texts[2].isdecimal():
            over, under, used = texts[0], texts[2], 3
        else:
            return Fraction(0)
        if not (over.isdecimal() and under.isdecimal()):
            return Fraction(0)
        if not int(over) < int(under):
            raise UnreadableError("a number beside an improper fraction")
        self.at += used
        return Fraction(int(over), int(under))

    def subscript(self) -> str:
        """`_1`, `_{n+1}`: as text, without spaces and braces."""
        if self.peek() != "_":
            return ""
        self.at += 1
        if self.peek() != "{":
            return "_" + self.next()
        return "_" + self.raw_group()

    def name(self, text: str) -> Node:
        name = text + self.subscript()
        if name == text and self.at < len(self.tokens):
            follower = self.tokens[self.at]
            if follower.number and not follower.spaced:  # R1 is a name; what x2 is, only its writer knows
                self.ambiguous = True
                name += "_" + self.next()
        while self.peek() == "'":
            name += self.next()
        applied = self.peek() == "(" and not self.tokens[self.at].spaced
        defined = applied and self.peek(2) == ")" and self.peek(3) == "="  # T(10) = 2
        if (name[0] in "fgh" and self.peek() == "(") or (name[0] in "FGPQ" and applied) or defined:
            self.at += 1
            inner = self.inside(self.listing)
            self.take(")")
            return Node("call", inner.args if inner.op == "list" else (inner,), name)
        return Node("constant", (), name) if name in {"e", "i"} else Node("symbol", (), name)

    def braces(self) -> Node:
        """`{1, 2}` and `{x | x > 1}`."""
        if self.peek() == "\\}":
            self.at += 1
            return Node("set")
        self.bars += 1  # a bar ends what stands before it
        start = self.at
        depth, self.depth = self.depth, self.depth + 1
        first = self.relation()
        self.depth = depth
        if self.peek() in {"|", ":"}:
            self.at += 1
            self.bars -= 1
            condition = self.listing()
            self.take("\\}")
            return Node("builder", (first, condition))
        self.bars -= 1
        self.at = start
        node = self.inside(self.listing)
        self.take("\\}")
        return Node("set", node.args if node.op == "list" else (node,))

    def command(self, name: str) -> Node:
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK:
            return Node("symbol", (), name + self.subscript())
        if name in {"pi", "infty", "emptyset"}:
            return Node("constant", (), name) if name != "emptyset" else Node("set")
        if name in {"frac", "binom"}:
            return Node("div" if name == "frac" else name, (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in {"lfloor", "lceil"}:
            node = self.inside(self.sum)
            self.take(name.replace("l", "\\r", 1))
            return Node(name[1:], (node,))
        if name == "langle":
            node = self.inside(self.listing)
            self.take("\\rangle")
            return Node("seq", node.args if node.op == "list" else (node,), "()")
        if name == "mathbb":
            return Node("reals") if self.argument() == Node("symbol", (), "R") else self.fail()
        if name in {"sum", "prod"}:
            return self.series(name)
        if name in _ACCENTS:
            return Node("symbol", (), f"{name} {self.raw_group() if self.peek() == '{' else self.next()}")
        if name == "begin":
            return self.matrix()
        raise UnreadableError(f"\\{name}")

    def root(self) -> Node:
        degree = number(2)
        if self.peek() == "[":
            self.at += 1
            degree = self.inside(self.sum)
            self.take("]")
        if self.tokens[self.at].number and len(self.peek()) > 1:
            raise UnreadableError("a root of several digits without braces")
        return Node("root", (self.argument(), degree))

    def series(self, name: str) -> Node:
        """A sum or product as an unknown function of its bounds and its term: good for nothing but the same one."""
        self.ambiguous = True
        for sign in "_{":
            self.take(sign)
        index, _ = self.next(), self.take("=")
        low, _, _ = self.sum(), self.take("}"), self.take("^")
        return Node("call", (low, self.exponent(), self.product()), f"{name} {index}")

    def function(self, name: str) -> Node:
        power, base = None, None
        while self.peek() in {"^", "_"}:
            if self.next() == "^":
                power = self.exponent()
            elif name == "log":
                base = self.argument()
            else:
                self.fail()
        if power == Node("neg", (number(1),)) and name in _INVERSE:
            name, power = _INVERSE[name], None
        if self.peek() in {"(", "[", "{", "|"}:
            argument = self.primary()
        else:
            argument = self.signed()
            while self.starts_factor() and self.peek().lstrip("\\") not in FUNCTIONS | {"sqrt", "frac", "(", "|", "["}:
                argument = Node("mul", (argument, self.factor()))
            self.ambiguous |= self.peek() == "/" or self.starts_factor()
        node = Node("function", (argument,) if base is None else (argument, base), name)
        return node if power is None else Node("pow", (node, power))

    def matrix(self) -> Node:
        kind = self.raw_group()
        if kind not in {"pmatrix", "bmatrix", "matrix", "vmatrix", "smallmatrix"}:
            raise UnreadableError(kind)
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while True:
            row.append(self.inside(self.sum))
            sign = self.take("&", "\\\\", "\\end")
            if sign == "&":
                continue
            rows, row = [*rows, tuple(row)], []
            if sign == "\\\\" and self.peek() == "\\end":
                sign = self.next()
            if sign == "\\end":
                break
        if self.raw_group() != kind or len({len(r) for r in rows}) > 1:
            raise UnreadableError("rows of unequal length")
        node = Node("matrix", tuple(Node("row", r) for r in rows))
        return Node("determinant", (node,)) if kind == "vmatrix" else node
