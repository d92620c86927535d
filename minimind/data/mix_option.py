"""What ``--data_mix`` says: ``books.jsonl=3,chats.jsonl=1``. Imports nothing heavy: the options are read everywhere."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

#: ``PATH=WEIGHT``, up to the end or the comma behind it
MIX_PART = re.compile(r"(?P<path>.+?)=(?P<weight>\d{1,9}(?:\.\d{1,9})?)(?:,|$)")


def parse_mix(text: str) -> list[tuple[str, Fraction]]:
    """``(path, weight)`` of every source of ``--data_mix``. Raises ``ValueError`` with a sentence.

    A path may hold commas and equals signs: it ends at the first ``=NUMBER`` that a comma or the end follows.
    """
    parts: list[tuple[str, Fraction]] = []
    place = 0
    while place < len(text):
        found = MIX_PART.match(text, place)
        if found is None:
            raise ValueError(f"{text[place:]!r} has no weight. Write PATH=WEIGHT,PATH=WEIGHT with weights such as 3 "
                             "or 0.5.")
        path, weight = found["path"].strip(), Fraction(found["weight"])
        if weight == 0:
            raise ValueError(f"The weight of {path!r} is 0. Leave it out, or give it a weight above 0.")
        if path in (known for known, _ in parts):
            raise ValueError(f"{path!r} stands there twice. Give it once, with the sum of the weights.")
        parts.append((path, weight))
        place = found.end()
    if not parts:
        raise ValueError("There is no data set in it. Write PATH=WEIGHT,PATH=WEIGHT.")
    return parts


def absolute_mix(text: str) -> str:
    """``--data_mix`` with absolute paths: a run is continued from wherever one stands then."""
    return ",".join(f"{Path(path).absolute()}={Decimal(weight.numerator) / weight.denominator:f}"
                    for path, weight in parse_mix(text))
