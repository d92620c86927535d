"""The built-in tools: right results, sentences for what is wrong, and nothing that a model writes does harm."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest

from minimind import tools
from minimind.arithmetic import ArithmeticProblem, evaluate, shown
from minimind.data.starter import tool_questions
from minimind.data.starter.tools import ARGUMENT, definition
from minimind.data.starter.world import LEXICONS
from minimind.units import convert

NOW = datetime(2026, 1, 31, 23, 5, 9, tzinfo=UTC)


def answer(name: str, arguments: dict | str, **around: object) -> object:
    result = tools.run(name, arguments, **{"now": NOW, **around})
    assert not result.is_error, result.content
    return json.loads(result.content)


def problem(name: str, arguments: dict | str) -> str:
    result = tools.run(name, arguments, now=NOW)
    assert result.is_error, result.content
    found = json.loads(result.content)
    assert list(found) == ["error"] and found["error"].endswith(".")
    return found["error"]


@pytest.mark.parametrize("expression, value", [
    ("1 - 4 + 7 =", 4), ("46 - 83", -37), ("(3 + 4) * 2", 14), ("6 / 2", 3), ("7 // 2", 3), ("-7 // 2", -4),
    ("7 % 3", 1), ("2 ** 10", 1024), ("2^3^2", 512), ("-2 ** 2", -4), ("3 × 4 ÷ 2", 6), ("（３＋４）×２", 14),
    ("3 x 4 = ?", 12), ("0 x 4", 0), ("(" * 140 + "1" + ")" * 140, 1),
    ("sqrt(16) + abs(-2)", 6), ("max(1, 2, 3) - min(4, 5)", -1), ("gcd(12, 18) + lcm(4, 6)", 18), ("factorial(5)", 120),
    ("round(2.567, 2)", 2.57), ("log(8, 2)", 3), ("10**300 // 10**298", 100), ("1e3", 1000),
    (f"{10**40} / {10**20}", 10**20),
])
def test_arithmetic(expression: str, value: float) -> None:
    assert evaluate(expression) == pytest.approx(value, rel=1e-12)


def test_numbers_are_shown_as_people_write_them() -> None:
    assert [shown(evaluate(e)) for e in ("0.1 + 0.2", "6 / 2", "1 / 3", "2 ** 70", "1e20 * 1.0")] == [
        "0.3", "3", "0.333333333333", str(2**70), "1e+20"]


def test_random_arithmetic_is_that_of_python() -> None:
    rng = random.Random(7)
    for _ in range(300):
        text = str(rng.randint(1, 99))
        for _ in range(rng.randint(1, 6)):
            text = f"({text})" if rng.random() < 0.3 else text
            text += f" {rng.choice(['+', '-', '*', '/', '//', '%'])} {rng.randint(1, 99)}"
        assert evaluate(text) == pytest.approx(eval(text)), text


@pytest.mark.parametrize("expression", [
    "", "=", "1 +", "two", "True", "None", "'a' * 9", "[1]", "1, 2", "lambda: 1", "x := 1", "1 if 1 else 2", "1 < 2",
    "~1", "1 << 9",
    "not 1", "1j", "0x10", "1or 2", "f''", "abs", "abs()", "abs(1, 2)", "abs(x=1)", "sqrt(*[4])", "pi()",
    "__import__('os').system('id')",
    "().__class__.__bases__", "sqrt.__globals__", "open('/etc/passwd')", "exec('1')", "eval('1')", "breakpoint()",
    "1 / 0", "1 % 0", "0 ** -1", "1.5 // 0", "(-8) ** 0.5", "sqrt(-1)", "log(0)", "log(8, 1)", "gcd(1.5, 2)",
    "9 ** 9 ** 9", "2 ** 99999999999", "pow(10, 10**9)", "1e308 * 10", "1e999", "factorial(151)", "factorial(-1)",
    "factorial(2.0)",
    "round(1, -99999999)", "-" * 299 + "1", "1+" * 149 + "1", "9" * 301, "\0", "\ud800",
    "1\\\n+1",
    "*".join(["2**1000"] * 30), "lcm(" + ",".join(["10**300+7"] * 9) + ")",
], ids=lambda e: e[:20].encode("ascii", "backslashreplace").decode())
def test_everything_else_is_a_sentence_and_quick(expression: str) -> None:
    began = time.process_time()
    with pytest.raises(ArithmeticProblem, match=r"\.$"):
        evaluate(expression)
    assert time.process_time() - began < 0.05


def test_units() -> None:
    assert answer("unit_converter", {"value": 100, "from_unit": "km", "to_unit": "Miles"}) == {
        "result": 62.13711922, "unit": "mi"}
    for value, source, target, expected in [
            (100, "°C", "fahrenheit", 212), (0, "kelvin", "celsius", -273.15), (-40, "F", "C", -40),
            (1, "斤", "g", 500), (2, "feet", "inches", 24), (1, "GiB", "MB", 1073.741824), (90, "km/h", "m/s", 25),
            (3, "horas", "minutos", 180)]:
        assert convert(value, source, target)[0] == pytest.approx(expected), (source, target)
    assert problem("unit_converter", {"value": 1, "from_unit": "m", "to_unit": "kg"}) == (
        "m is a unit of length and kg one of mass.")
    assert "parsec" in problem("unit_converter", {"value": 1, "from_unit": "parsec", "to_unit": "m"})
    assert problem("unit_converter", {"value": 1e308, "from_unit": "km", "to_unit": "mm"}) == "The result is too large."


def test_time_chance_and_text() -> None:
    assert answer("get_current_time", "") == {
        "datetime": "2026-01-31 23:05:09", "weekday": "Saturday", "timezone": "UTC"}
    assert answer("get_current_time", {"timezone": "asia/shanghai"}) == {
        "datetime": "2026-02-01 07:05:09", "weekday": "Sunday", "timezone": "Asia/Shanghai"}
    assert answer("get_current_time", {"timezone": "New York"})["timezone"] == "America/New_York"
    for wrong in ("../../etc/passwd", "/etc/localtime", "Mars", "\0"):
        assert "no time zone" in problem("get_current_time", {"timezone": wrong})
    drawn = [answer("random_number", {"min": -3, "max": 3})["result"] for _ in range(100)]
    assert set(drawn) <= set(range(-3, 4)) and len(set(drawn)) > 3
    seeded = {answer("random_number", {"seed": 5})["result"] for _ in range(5)}
    assert len(seeded) == 1
    assert len({answer("random_number", {"max": 99}, rng=random.Random(1))["result"] for _ in range(3)}) == 1
    assert "more than" in problem("random_number", {"min": 5, "max": 1})
    assert answer("text_length", {"text": "one two\n三"}) == {"length": 9, "words": 3, "lines": 2}
    assert answer("count_text", {"text": "Strawberry", "part": "R"}) == {"count": 3}
    assert "empty" in problem("count_text", {"text": "a", "part": ""})


def test_arguments_are_taken_as_models_write_them() -> None:
    assert answer("calculate_math", '{"expression": "2 + 2"}') == {"result": "4"}
    assert answer("calculate_math", {"expression": 42}) == {"result": "42"}
    assert answer("unit_converter", {"value": "1", "from_unit": "m", "to_unit": "cm"}) == {"result": 100, "unit": "cm"}
    assert answer("random_number", {"min": 4.0, "max": "4", "seed": None}) == {"result": 4}


@pytest.mark.parametrize("name, arguments, said", [
    ("rm", {}, "no tool 'rm'"), ("", {}, "no tool"), ("__class__", {}, "no tool"), ("\ud800", {}, "no tool"),
    ("calculate_math", "{", "not a JSON object"), ("calculate_math", "[1]", "not a JSON object"),
    ("calculate_math", "[" * 9000, "not a JSON object"), ("calculate_math", {"a": {1, 2}}, "not a JSON object"),
    ("calculate_math", '{"a": ' + "9" * 5000 + "}", "not a JSON object"),
    ("calculate_math", "x" * 10_001, "more than 10000 characters"), ("calculate_math", {}, "'expression' is missing"),
    ("calculate_math", {"expression": None}, "'expression' is missing"), ("calculate_math", {"expression": ["1"]},
    "must be text"),
    ("calculate_math", {"expression": "1", "shell": "id"}, "no 'shell'"), ("calc", {"expression": "1"},
    "no 'expression'"),
    ("unit_converter", {"value": True, "from_unit": "m", "to_unit": "m"}, "must be a number"),
    ("unit_converter", {"value": math.nan, "from_unit": "m", "to_unit": "m"}, "must be a number"),
    ("unit_converter", {"value": "", "from_unit": "m", "to_unit": "m"}, "must be a number"),
    ("random_number", {"max": 1.5}, "must be a whole number"), ("random_number", {"max": 10**16},
    "must be a whole number"),
    ("random_number", {"max": math.inf}, "must be a whole number"),
])
def test_wrong_calls_are_answered(name: str, arguments: dict | str, said: str) -> None:
    found = problem(name, arguments)
    assert said in found and len(found) < 500
    found.encode()


def test_definitions_are_what_the_functions_take() -> None:
    names = [d["function"]["name"] for d in tools.definitions()]
    assert names == list(tools.TOOLS) and len(set(names)) == len(names)
    assert [d["function"]["name"] for d in tools.definitions(["calc"])] == ["calc"]
    for d in tools.definitions():
        assert d["type"] == "function" and set(d) == {"type", "function"}
        parameters = d["function"]["parameters"]
        assert set(parameters.get("required", [])) <= set(parameters["properties"])


@pytest.mark.parametrize("code", LEXICONS)
def test_what_the_starter_corpus_trains_can_be_called(code: str) -> None:
    """Each of its questions has a result of the kind that its conversations have, under the same definition."""
    assert {name: tools.TOOLS[name].definition for name in ARGUMENT} == {name: definition(name) for name in ARGUMENT}
    weathers = {result for lexicon in LEXICONS.values() for result in lexicon.tools["weather"].results
                if lexicon.code in (code, "en")}  # "Paris" is English before it is Portuguese
    for question in tool_questions(minutes=3, languages=(code,), seed=5):
        result = tools.run(question.name, question.arguments, now=NOW)
        assert not result.is_error, result.content
        if question.name == "calc":
            assert result.content == question.expected
        elif question.name == "weather":
            assert result.content in weathers
        elif question.name == "phone":
            assert result.content.isdigit() and len(result.content) == 3
        else:
            hour, minute = result.content.split(":")
            assert (int(minute) == 5) and 0 <= int(hour) < 24  # all of its cities are whole hours from UTC
        assert result == tools.run(question.name, question.arguments, now=NOW), "the same to whoever asks"


def test_the_cities_of_the_corpus_have_their_own_time() -> None:
    zones = dict(zip((v.split("|")[0] for v in LEXICONS["en"].kinds["city"].values), tools.CITY_ZONES, strict=True))
    assert zones["Tokyo"] == "Asia/Tokyo" and zones["Cairo"] == "Africa/Cairo" and zones["Vienna"] == "Europe/Vienna"
    assert {tools.run("clock", {"city": city}, now=NOW).content for city in ("Tokyo", "东京", "Tóquio")} == {"8:05"}
    assert tools.run("clock", {"city": "Sydney"}, now=NOW).content == "10:05", "summer time there"
    for name in ("clock", "weather"):
        assert "not known" in problem(name, {"city": "Atlantis"})


def test_nothing_is_opened_started_or_asked_of_the_network() -> None:
    """An audit hook of Python sees every file, process, socket and piece of code."""
    code = """
import sys
from minimind import tools
tools.run("get_current_time", {"timezone": "Asia/Tokyo"})  # time zones are read once
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)))
for name, arguments in [("calculate_math", {"expression": "2**0.5 + sqrt(2)"}), ("phone", {"name": "/etc/passwd"}),
                        ("calculate_math", {"expression": "__import__('os')"}), ("random_number", {}),
                        ("get_current_time", {"timezone": "../../../etc/passwd"}), ("clock", {"city": "/etc/passwd"}),
                        ("unit_converter", {"value": 1, "from_unit": "$(id)", "to_unit": "m"})]:
    tools.run(name, arguments)
print(sorted({e for e, a in seen if e != "compile" or a[1] != "<unknown>"} - {"object.__getattr__"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
