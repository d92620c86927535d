"""Arithmetic that a model wrote: an expression to a number, without ever running it as a program.

Python's parser gives the tree and a walk over it knows numbers, ``+ - * / // % **``, parentheses and the functions
below; everything else is refused with a sentence. Length, depth and the size of every intermediate whole number are
bounded, so the worst expression takes less than a millisecond.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

Number = int | float

MAX_CHARS = 300
MAX_DEPTH = 50
#: of a whole number, about 300 digits
MAX_BITS = 1024
MAX_FACTORIAL = 150
MAX_DECIMALS = 15
#: digits of a result that is not whole
SHOWN_DIGITS = 12


class ArithmeticProblem(ValueError):
    """What is wrong with an expression, as a sentence."""


_TYPED = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-", "–": "-", "^": "**",
                        "π": " pi "})
#: "3 x 4": people and models write the letter for the sign (and 0x4 for something else)
_LETTER_X = re.compile(r"(?<=[\d)])(?:\s+|(?<!\b0))[xX]\s*(?=[\d(.-])")
#: no text, no other program; and nothing like 1or 2, at which Python's own parser warns
_WRITTEN = re.compile(r"(?!.*\d(?![eE][+-]?\d)[A-Za-z_])[\w.,+\-*/%() ]+", re.ASCII)
_ASKS = re.compile(r"\s*=\s*\??\s*$")


def evaluate(expression: str) -> Number:
    """The value of ``expression``; raises ``ArithmeticProblem``."""
    if len(expression) > MAX_CHARS:
        raise ArithmeticProblem(f"The expression has more than {MAX_CHARS} characters.")
    text = unicodedata.normalize("NFKC", expression).translate(_TYPED)
    text = " ".join(_LETTER_X.sub(" * ", _ASKS.sub("", text)).split())
    if not text:
        raise ArithmeticProblem("The expression is empty.")
    try:
        tree = ast.parse(text, mode="eval") if _WRITTEN.fullmatch(text) else None
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        tree = None
    if tree is None:
        raise ArithmeticProblem(f"{expression.strip()[:80]!r} is not an arithmetic expression.")
    try:
        return _bounded(_value(tree.body, 0))
    except ZeroDivisionError:
        raise ArithmeticProblem("Division by zero has no result.") from None
    except OverflowError:
        raise ArithmeticProblem("The result is too large.") from None


def shown(value: Number) -> str:
    """The number as people write it: ``0.1 + 0.2`` is 0.3, and ``6 / 2`` is 3."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.{SHOWN_DIGITS}g}"


def _bounded(value: Number) -> Number:
    if isinstance(value, complex):
        raise ArithmeticProblem("The result is not a real number.")
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverflowError
    elif not math.isfinite(value):
        raise OverflowError
    return value


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0 \
            and abs(base) > 1 and exponent * (base.bit_length() - 1) > MAX_BITS:
        raise OverflowError  # before it is computed
    return base ** exponent


def _quotient(a: Number, b: Number) -> Number:
    """Whole where it is: large whole numbers lose nothing."""
    if isinstance(a, int) and isinstance(b, int) and b:
        exact = Fraction(a, b)
        return exact.numerator if exact.denominator == 1 else float(exact)
    return a / b


_OPERATORS: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: _quotient,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: _power, ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def _factorial(n: Number) -> int:
    if not (isinstance(n, int) and 0 <= n <= MAX_FACTORIAL):
        raise ArithmeticProblem(f"factorial takes a whole number from 0 to {MAX_FACTORIAL}.")
    return math.factorial(n)


def _round(value: Number, decimals: Number = 0) -> Number:
    if not (isinstance(decimals, int) and abs(decimals) <= MAX_DECIMALS):
        raise ArithmeticProblem(f"round takes at most {MAX_DECIMALS} decimals.")
    return round(value, decimals) if decimals else round(value)


def _logarithm(value: Number, base: Number = math.e) -> float:
    return math.log(value) if base == math.e else math.log(value, base)


#: name: (function, fewest and most arguments)
_FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int]] = {
    "abs": (abs, 1, 1), "round": (_round, 1, 2), "min": (min, 2, 100), "max": (max, 2, 100),
    "floor": (math.floor, 1, 1), "ceil": (math.ceil, 1, 1), "sqrt": (math.sqrt, 1, 1), "exp": (math.exp, 1, 1),
    "log": (_logarithm, 1, 2), "ln": (math.log, 1, 1), "log2": (math.log2, 1, 1), "log10": (math.log10, 1, 1),
    "sin": (math.sin, 1, 1), "cos": (math.cos, 1, 1), "tan": (math.tan, 1, 1), "gcd": (math.gcd, 2, 100),
    "lcm": (math.lcm, 2, 8), "factorial": (_factorial, 1, 1), "pow": (_power, 2, 2),
}
_CONSTANTS = {"pi": math.pi, "e": math.e}


def _value(node: ast.AST, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise ArithmeticProblem("The expression is nested too deeply.")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.operand, depth + 1))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, depth + 1), _value(node.right, depth + 1)
        return _bounded(_OPERATORS[type(node.op)](left, right))
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node.func.id, [_value(argument, depth + 1) for argument in node.args])
    raise ArithmeticProblem("Only numbers, + - * / // % **, parentheses and functions such as sqrt are known here.")


def _call(name: str, arguments: list[Number]) -> Number:
    if name not in _FUNCTIONS:
        raise ArithmeticProblem(f"There is no function {name[:40]}; there are {', '.join(_FUNCTIONS)}.")
    work, fewest, most = _FUNCTIONS[name]
    if not fewest <= len(arguments) <= most:
        takes = f"{fewest} to {most}" if fewest < most else fewest
        raise ArithmeticProblem(f"{name} takes {takes} number{'' if takes == 1 else 's'}.")
    try:
        return _bounded(work(*arguments))
    except ArithmeticProblem:
        raise
    except (ValueError, TypeError):  # sqrt(-1), gcd(1.5, 2)
        raise ArithmeticProblem(f"{name} has no result for {', '.join(shown(a) for a in arguments)[:80]}.") from None
