"""Units of measure: what each is called, and how much of its kind's first unit it is."""

from __future__ import annotations

import unicodedata

#: kind: names of a unit, the shown one first: how much of the kind's base it is
_KINDS: dict[str, dict[str, float]] = {
    "length": {"m meter metre 米 metro": 1, "km kilometer kilometre 公里 千米 quilômetro": 1000,
               "cm centimeter centimetre 厘米 centímetro": 0.01, "mm millimeter millimetre 毫米 milímetro": 0.001,
               "mi mile 英里 milha": 1609.344, "yd yard 码 jarda": 0.9144, "ft foot feet 英尺 pé": 0.3048,
               "in inch inches 英寸 polegada": 0.0254, "nmi nautical-mile 海里": 1852},
    "mass": {"kg kilogram kilo 公斤 千克 quilograma quilo": 1, "g gram 克 grama": 0.001, "mg milligram 毫克": 1e-6,
             "t tonne 吨 tonelada": 1000, "lb pound lbs 磅 libra": 0.45359237, "oz ounce 盎司 onça": 0.028349523125,
             "斤": 0.5},
    "time": {"s second sec 秒 segundo": 1, "ms millisecond 毫秒": 0.001, "min minute 分钟 minuto": 60,
             "h hour hr 小时 hora": 3600, "d day 天 dia": 86400, "week 周 semana": 604800},
    "volume": {"l liter litre 升 litro": 1, "ml milliliter millilitre 毫升 mililitro": 0.001,
               "m3 cubic-meter 立方米": 1000, "gal gallon 加仑 galão": 3.785411784, "cup 杯": 0.2365882365,
               "floz fluid-ounce": 0.0295735295625},
    "area": {"m2 square-meter 平方米": 1, "km2 square-kilometer 平方公里": 1e6, "ha hectare 公顷 hectare": 1e4,
             "acre 英亩": 4046.8564224, "ft2 square-foot square-feet 平方英尺": 0.09290304},
    "speed": {"m/s": 1, "km/h kmh kph": 1 / 3.6, "mph mi/h": 0.44704, "kn knot 节": 1852 / 3600},
    "data": {"B byte 字节": 1, "kB kilobyte": 1e3, "MB megabyte": 1e6, "GB gigabyte": 1e9, "TB terabyte": 1e12,
             "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "bit": 0.125},
    "energy": {"J joule 焦耳": 1, "kJ kilojoule": 1000, "cal calorie": 4.184, "kcal 千卡": 4184, "kWh": 3.6e6},
    "temperature": {"C celsius °C 摄氏度": 1, "F fahrenheit °F 华氏度": 5 / 9, "K kelvin": 1},
}
#: temperatures also begin elsewhere: kelvin at the zero of the scale
_ZERO_K = {"C": 273.15, "F": 459.67 * 5 / 9, "K": 0.0}


class UnitProblem(ValueError):
    """Why a value cannot be converted, as a sentence."""


def _spelled(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().replace("degrees ", "").replace(" ", "-")


_EXACT: dict[str, tuple[str, str, float]] = {}
for _kind, _units in _KINDS.items():
    for _names, _size in _units.items():
        for _name in _names.split():
            _EXACT[_spelled(_name)] = (_kind, _names.split()[0], _size)
#: without regard to capitals, where that is no other unit (MB and mb are the same here, Mm is not looked for)
_LOOSE = {name.casefold(): unit for name, unit in reversed(_EXACT.items())}


def _unit(name: str) -> tuple[str, str, float]:
    """Kind, shown name and size of a unit; raises ``UnitProblem``."""
    spelled = _spelled(name)
    folded = spelled.casefold()
    singular = [folded.removesuffix("s"), folded.removesuffix("es")]
    for known, wanted in ((_EXACT, spelled), (_LOOSE, folded), *((_LOOSE, one) for one in singular)):
        if wanted in known:
            return known[wanted]
    raise UnitProblem(f"There is no unit {name[:40]!r}; there are "
                      f"{', '.join(names.split()[0] for units in _KINDS.values() for names in units)}.")


def convert(value: float, from_unit: str, to_unit: str) -> tuple[float, str]:
    """``value`` in ``to_unit``, and how that unit is written; raises ``UnitProblem``."""
    kind, source, size = _unit(from_unit)
    wanted_kind, target, wanted_size = _unit(to_unit)
    if kind != wanted_kind:
        raise UnitProblem(f"{source} is a unit of {kind} and {target} one of {wanted_kind}.")
    if kind == "temperature":
        return (value * size + _ZERO_K[source] - _ZERO_K[target]) / wanted_size, target
    return value * size / wanted_size, target
