"""How a page is made: the template environment, what every page knows, and where the built assets lie."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.requests import Request

from app import i18n
from app.auth.service import Identity
from minimind.events import finite

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "static"
DIST = STATIC / "dist"
THEME_COOKIE = "studio_theme"
THEMES = ("auto", "light", "dark")


@dataclass(frozen=True)
class NavItem:
    """One entry of the main navigation; ``prefix`` is what the addresses of its pages begin with."""

    path: str
    label: str
    icon: str

    def is_current(self, path: str) -> bool:
        return path == self.path or path.startswith(f"{self.path}/")


def navigation() -> list[NavItem]:
    _ = i18n.gettext
    return [NavItem("/start", _("First model"), "spark"), NavItem("/runs", _("Runs"), "curve"),
            NavItem("/pipelines", _("Pipelines"), "line"), NavItem("/datasets", _("Datasets"), "stack"),
            NavItem("/checkpoints", _("Checkpoints"), "box"), NavItem("/chat", _("Chat"), "talk"),
            NavItem("/system", _("System"), "chip"), NavItem("/api/docs", _("API"), "code")]


class Assets:
    """The manifest of ``static/dist``; read again when a build has replaced it."""

    def __init__(self, directory: Path):
        self._manifest = directory / "manifest.json"
        self._stamp: tuple[int, int] | None = None
        self._entries: dict[str, dict[str, Any]] = {}

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            seen = self._manifest.stat()
        except FileNotFoundError:
            return {}
        stamp = (seen.st_mtime_ns, seen.st_ino)
        if stamp != self._stamp:
            self._entries, self._stamp = json.loads(self._manifest.read_text()), stamp
        return self._entries

    @property
    def are_built(self) -> bool:
        return bool(self._load())

    def url(self, name: str) -> str | None:
        """Address of a built file by the name of its source, such as ``pages/run.js``."""
        entry = self._load().get(name)
        return None if entry is None else f"/static/dist/{entry['file']}"

    def styles(self, name: str) -> list[str]:
        """Style sheets that a script brings along."""
        return [f"/static/dist/{file}" for file in self._load().get(name, {}).get("css", [])]

    def preloads(self, *names: str) -> list[str]:
        """Shared pieces that the scripts ``names`` import, each once: fetched at the same time as the scripts."""
        found = dict.fromkeys(f for name in names for f in self._load().get(name, {}).get("imports", []))
        return [f"/static/dist/{file}" for file in found]


assets = Assets(DIST)


def _json_attribute(value: Any) -> str:
    """A value as the text of an attribute, which the template escapes; scripts read it with JSON.parse."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    elif isinstance(value, list):
        value = [v.model_dump(mode="json") if hasattr(v, "model_dump") else v for v in value]
    return json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))


def compact_number(value: float | None) -> str:
    """1234567 -> 1.23M"""
    if value is None:
        return "–"
    for limit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}" if isinstance(value, float) and value != int(value) else str(int(value))


def size(value: float | None) -> str:
    """Bytes for people, in powers of ten as disks are sold."""
    if value is None:
        return "–"
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{int(value)} B"


def percent(share: float) -> str:
    """0.1234 -> 12.3 %"""
    return f"{share * 100:.3g} %"


def duration(seconds: float | None) -> str:
    """Seconds as ``1 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days} d {hours_left} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Between two times of the API; until now where it has not ended."""
    if start is None:
        return None
    until = datetime.fromisoformat(end).timestamp() if end else time.time()
    return until - datetime.fromisoformat(start).timestamp()


def local_time(text: str | None) -> str:
    """A time of the API for a reader without scripts, which else put ``<time>`` elements into local time."""
    return "" if text is None else datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def sparkline(points: list[list[float]]) -> str:
    """``[[step, loss], ...]`` as the points of a polyline in a box of 100 by 24, its line 2 away from the edges."""
    if len(points) < 2:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    width, height = (xs[-1] - xs[0]) or 1, (max(ys) - min(ys)) or 1
    return " ".join(f"{(x - xs[0]) / width * 100:.1f},{2 + (max(ys) - y) / height * 20:.1f}"
                    for x, y in zip(xs, ys, strict=True))


def state_word(state: str) -> str:
    _ = i18n.gettext
    words = {"queued": _("queued"), "starting": _("starting"), "running": _("running"), "pausing": _("pausing"),
             "paused": _("paused"), "recovering": _("recovering"), "cancelling": _("cancelling"),
             "completed": _("completed"), "failed": _("failed"), "cancelled": _("cancelled"),
             "importing": _("importing"), "ready": _("ready"), "training": _("training")}
    return words.get(state, state)


def stage_word(stage: str) -> str:
    _ = i18n.gettext
    words = {"tokenizer": _("Tokenizer"), "pretrain": _("Pretraining"), "sft": _("Fine-tuning"), "lora": _("LoRA"),
             "dpo": _("Preferences (DPO)"), "distill": _("Distillation"), "import": _("Imported")}
    return words.get(stage, stage)


environment = Environment(loader=FileSystemLoader(ROOT / "templates"), undefined=StrictUndefined,
                          autoescape=select_autoescape(default=True, default_for_string=True),
                          extensions=["jinja2.ext.i18n"], trim_blocks=True, lstrip_blocks=True)
environment.install_gettext_callables(i18n.gettext, i18n.ngettext, newstyle=True)
environment.filters |= {"json_attribute": _json_attribute, "compact": compact_number, "size": size, "percent": percent,
                        "duration": duration, "local_time": local_time, "sparkline": sparkline,
                        "state_word": state_word, "stage_word": stage_word}
environment.globals |= {"assets": assets, "seconds_between": seconds_between}


def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render ``template`` in the visitor's language and theme. Every page knows ``user`` (None without a login)."""
    language = i18n.language_of(request)
    token = i18n.current_language.set(language)
    try:
        theme = request.cookies.get(THEME_COOKIE)
        user: Identity | None = request.scope.get("identity")
        html = environment.get_template(template).render(
            path=request.url.path, navigation=navigation(), language=language, languages=i18n.languages(),
            theme=theme if theme in THEMES else "auto", messages=i18n.script_messages(language),
            **{"user": user, **context})
    finally:
        i18n.current_language.reset(token)
    return HTMLResponse(html, status, headers={"Vary": "Cookie, Accept-Language", "Content-Language": language})
