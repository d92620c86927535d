"""The built-in tools that a model may call: small, bounded functions without files, network or processes.

``definitions()`` is what a model is told (OpenAI's shape), ``run(name, arguments)`` what it gets back: the text of a
``tool`` message. Whatever is wrong with a call is a result too, ``{"error": "..."}``, for the model to read.

General ones have the names that MiniMind's own data calls them by (``calculate_math``, ``unit_converter``,
``get_current_time``, ``random_number``, ``text_length``; ``count_text`` is ours). The four of the starter corpus
(``calc phone weather clock``) are defined and answered as its conversations have it; its telephone book and its
weather are invented, the same for everybody.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from minimind.arithmetic import ArithmeticProblem, evaluate, shown
from minimind.data.starter import tools as starter
from minimind.data.starter.lexicon import Lexicon
from minimind.data.starter.world import LEXICONS
from minimind.units import UnitProblem, convert

MAX_ARGUMENTS_CHARS = 10_000
MAX_RESULT_CHARS = 4000
MAX_INTEGER = 10**15


@dataclass(frozen=True)
class Result:
    """The text of a ``tool`` message, and whether the call went wrong."""

    content: str
    is_error: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What a result depends on beside the arguments."""

    now: datetime  # with a time zone
    rng: random.Random


@dataclass(frozen=True)
class Tool:
    """``work`` takes the arguments that ``definition`` names; text is sent as it is, anything else as JSON."""

    definition: dict[str, Any]
    work: Callable[[dict[str, Any], Surroundings], Any]

    @property
    def parameters(self) -> dict[str, dict]:
        return self.definition["function"]["parameters"]["properties"]

    @property
    def required(self) -> list[str]:
        parameters = self.definition["function"]["parameters"]
        return parameters.get("required", list(parameters["properties"]))


class ToolProblem(ValueError):
    """Why a call has no result, as a sentence."""


def definitions(names: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """Of these tools, or of all. ``KeyError``: there is no such tool."""
    return [TOOLS[name].definition for name in (TOOLS if names is None else names)]


def run(name: str, arguments: dict[str, Any] | str, *, now: datetime | None = None,
        rng: random.Random | None = None) -> Result:
    """Call a tool; ``arguments`` as an object or as the JSON text that a model wrote. Raises nothing."""
    try:
        tool = TOOLS.get(name)
        if tool is None:
            raise ToolProblem(f"There is no tool {name[:60]!r}; there are {', '.join(TOOLS)}.")
        given = _checked(tool, name, _parsed(arguments))
        answer = tool.work(given, Surroundings(now or datetime.now(UTC), rng or random.SystemRandom()))
    except (ToolProblem, ArithmeticProblem, UnitProblem) as problem:
        return Result(_json({"error": str(problem)}), is_error=True)
    return Result((answer if isinstance(answer, str) else _json(answer))[:MAX_RESULT_CHARS])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _parsed(arguments: dict[str, Any] | str) -> dict[str, Any]:
    """The arguments as an object; raises ``ToolProblem``."""
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        if len(text) > MAX_ARGUMENTS_CHARS:
            raise ToolProblem(f"The arguments have more than {MAX_ARGUMENTS_CHARS} characters.")
        value = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, ToolProblem):
            raise
        raise ToolProblem("The arguments are not a JSON object.") from None
    if not isinstance(value, dict):
        raise ToolProblem("The arguments are not a JSON object.")
    return value


def _checked(tool: Tool, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments in the types that the definition asks for; raises ``ToolProblem``."""
    known = tool.parameters
    takes = f"{name} takes {', '.join(known)}"
    if unknown := [key for key in given if key not in known]:
        raise ToolProblem(f"{takes}, and no {unknown[0][:60]!r}.")
    if missing := [key for key in tool.required if given.get(key) is None]:
        raise ToolProblem(f"{takes}; {missing[0]!r} is missing.")
    return {key: _typed(key, value, known[key].get("type", "string")) for key, value in given.items()
            if value is not None}


def _typed(key: str, value: Any, wanted: str) -> Any:
    if wanted == "string":
        if isinstance(value, bool | int | float):
            value = _json(value)  # "expression": 42
        if not isinstance(value, str):
            raise ToolProblem(f"{key!r} must be text.")
        return value
    try:  # numbers in quotation marks are numbers too
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if wanted == "number":
        if not math.isfinite(number):
            raise ToolProblem(f"{key!r} must be a number.")
        return number
    if not (number.is_integer() and abs(number) <= MAX_INTEGER):  # NaN and infinity are no integers
        raise ToolProblem(f"{key!r} must be a whole number of at most {MAX_INTEGER}.")
    return int(number)


# -- general tools --------------------------------------------------------------------------------------------------

def _calculate(given: dict[str, Any], _: Surroundings) -> dict:
    return {"result": shown(evaluate(given["expression"]))}


def _convert(given: dict[str, Any], _: Surroundings) -> dict:
    value, unit = convert(given["value"], given["from_unit"], given["to_unit"])
    if not math.isfinite(value):
        raise ToolProblem("The result is too large.")
    rounded = float(f"{value:.10g}")
    return {"result": int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded, "unit": unit}


def _current_time(given: dict[str, Any], around: Surroundings) -> dict:
    name = given.get("timezone") or "UTC"
    zone = _zone(name)
    if zone is None:
        raise ToolProblem(f"There is no time zone {name[:60]!r}; one is called Europe/Lisbon.")
    local = around.now.astimezone(zone)
    return {"datetime": f"{local:%Y-%m-%d %H:%M:%S}", "weekday": _WEEKDAYS[local.weekday()], "timezone": str(zone)}


def _random_number(given: dict[str, Any], around: Surroundings) -> dict:
    low, high = given.get("min", 0), given.get("max", 100)
    if low > high:
        raise ToolProblem(f"'min' is {low}, which is more than 'max', {high}.")
    rng = random.Random(given["seed"]) if "seed" in given else around.rng
    return {"result": rng.randint(low, high)}


def _text_length(given: dict[str, Any], _: Surroundings) -> dict:
    text = given["text"]
    return {"length": len(text), "words": len(text.split()), "lines": len(text.splitlines())}


def _count_text(given: dict[str, Any], _: Surroundings) -> dict:
    if not given["part"]:
        raise ToolProblem("'part' must not be empty.")
    return {"count": given["text"].casefold().count(given["part"].casefold())}


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@cache
def _zones() -> dict[str, str]:
    """Time zones by their names and by their cities, in small letters."""
    zones = {}
    for zone in sorted(available_timezones()):
        zones[zone.casefold()] = zone
        zones.setdefault(zone.rpartition("/")[2].replace("_", " ").casefold(), zone)
    return zones


def _zone(name: str) -> tzinfo | None:
    """Looked up among the known names: what a model writes is never opened. Some systems know UTC alone."""
    wanted = name.strip().casefold()
    if wanted in ("utc", "gmt", "z"):
        return UTC
    return ZoneInfo(_zones()[wanted]) if wanted in _zones() else None


# -- the tools of the starter corpus ----------------------------------------------------------------------------------

#: of the cities of the corpus, in the order in which every lexicon lists them
CITY_ZONES = ("Europe/London", "Europe/Paris", "Europe/Lisbon", "Europe/Rome", "Europe/Berlin", "Europe/Madrid",
              "Asia/Tokyo", "Asia/Shanghai", "Asia/Shanghai", "Africa/Cairo", "Australia/Sydney", "Europe/Vienna")


def _lot(*words: str) -> int:
    """A number drawn by these words, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode("utf-8", "replace")).digest()[:8], "big")


def _city(name: str) -> tuple[Lexicon, int] | None:
    """The language in which a city is called so, and its place in the list."""
    for lexicon in LEXICONS.values():
        cities = lexicon.kinds["city"]
        for place in range(len(cities.values)):
            if cities.word(place, "m").casefold() == name.strip().casefold():
                return lexicon, place
    return None


def _calc(given: dict[str, Any], _: Surroundings) -> str:
    return shown(evaluate(given["term"]))


def _phone(given: dict[str, Any], _: Surroundings) -> str:
    return str(100 + _lot("phone", given["name"].strip().casefold()) % 900)


def _weather(given: dict[str, Any], _: Surroundings) -> str:
    found = _city(given["city"])
    if found is None:
        raise ToolProblem(f"The weather of {given['city'][:60]!r} is not known.")
    lexicon, place = found
    results = lexicon.tools["weather"].results
    return results[_lot("weather", str(place)) % len(results)]


def _clock(given: dict[str, Any], around: Surroundings) -> str:
    found = _city(given["city"])
    zone = _zone(CITY_ZONES[found[1]] if found else given["city"])
    if zone is None:
        raise ToolProblem(f"The time in {given['city'][:60]!r} is not known.")
    local = around.now.astimezone(zone)
    return f"{local.hour}:{local.minute:02d}"


def _defined(name: str, description: str, properties: dict[str, dict], required: list[str]) -> dict:
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": required}}}


def _text(description: str) -> dict:
    return {"type": "string", "description": description}


_GENERAL = [
    Tool(_defined("calculate_math", "Evaluate an arithmetic expression", {
        "expression": _text("for example (3 + 4) * 2, or sqrt(2)")}, ["expression"]), _calculate),
    Tool(_defined("unit_converter", "Convert a value from one unit of measure to another", {
        "value": {"type": "number"}, "from_unit": _text("for example km"), "to_unit": _text("for example mile")},
        ["value", "from_unit", "to_unit"]), _convert),
    Tool(_defined("get_current_time", "Tell the date and the time", {
        "timezone": _text("for example Asia/Shanghai; UTC without it")}, []), _current_time),
    Tool(_defined("random_number", "Draw a random whole number", {
        "min": {"type": "integer", "description": "0 without it"},
        "max": {"type": "integer", "description": "100 without it"},
        "seed": {"type": "integer", "description": "the same seed draws the same number"}}, []), _random_number),
    Tool(_defined("text_length", "Count the characters, words and lines of a text", {"text": _text("the text")},
                  ["text"]), _text_length),
    Tool(_defined("count_text", "Count how often a letter or word stands in a text", {
        "text": _text("the text"), "part": _text("what is counted")}, ["text", "part"]), _count_text),
]
_STARTER = {"calc": _calc, "phone": _phone, "weather": _weather, "clock": _clock}

#: all tools by name
TOOLS: dict[str, Tool] = {tool.definition["function"]["name"]: tool for tool in _GENERAL} | {
    name: Tool(starter.definition(name), work) for name, work in _STARTER.items()}
