"""Which language a request is answered in, and the catalogues in ``locale/``.

English stands in the source. ``locale/LANG/LC_MESSAGES/studio.po`` holds the rest, for templates and scripts alike;
catalogues are read once per process, there is no compiled copy to go stale.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import cache
from io import BytesIO
from pathlib import Path

from babel import Locale, negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from starlette.requests import Request

LOCALE_DIR = Path(__file__).resolve().parent.parent / "locale"
DOMAIN = "studio"
DEFAULT_LANGUAGE = "en"
LANGUAGE_COOKIE = "studio_language"

current_language: ContextVar[str] = ContextVar("language", default=DEFAULT_LANGUAGE)


@cache
def languages() -> dict[str, str]:
    """Code and own name of every language that the studio speaks, English first."""
    there = sorted(p.parent.parent.name for p in LOCALE_DIR.glob(f"*/LC_MESSAGES/{DOMAIN}.po"))
    return {code: _own_name(code) for code in (DEFAULT_LANGUAGE, *there)}


def _own_name(code: str) -> str:
    locale = Locale.parse(code)
    name = locale.get_language_name(code) or code
    return name[:1].upper() + name[1:]


@cache
def translations(language: str) -> NullTranslations:
    """The catalogue of a language; English is what stands in the source."""
    path = LOCALE_DIR / language / "LC_MESSAGES" / f"{DOMAIN}.po"
    if language == DEFAULT_LANGUAGE or not path.is_file():
        return NullTranslations()
    with open(path, "rb") as file:
        catalogue = read_po(file, locale=language)
    compiled = BytesIO()
    write_mo(compiled, catalogue)
    compiled.seek(0)
    return Translations(compiled, domain=DOMAIN)


@cache
def script_messages(language: str) -> dict[str, str | list[str]]:
    """What scripts say in this language: a text, or its plural forms, by the English one."""
    path = LOCALE_DIR / language / "LC_MESSAGES" / f"{DOMAIN}.po"
    if language == DEFAULT_LANGUAGE or not path.is_file():
        return {}
    with open(path, "rb") as file:
        catalogue = read_po(file, locale=language)
    found: dict[str, str | list[str]] = {}
    for message in catalogue:
        if not message.id or message.fuzzy or not any(name.endswith(".js") for name, _ in message.locations):
            continue
        if isinstance(message.id, tuple):
            if all(message.string):
                found[message.id[0]] = list(message.string)
        elif message.string:
            found[message.id] = message.string
    return found


def language_of(request: Request) -> str:
    """The language that the visitor chose, else the best that the browser asks for."""
    known = list(languages())
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    if chosen in known:
        return chosen
    wanted = [part.split(";")[0].strip().replace("-", "_") for part in
              request.headers.get("accept-language", "")[:500].split(",")]
    wanted = [code for code in wanted if code]
    found = negotiate_locale(wanted + [code.split("_")[0] for code in wanted], known)
    return found or next((code for want in wanted for code in known
                          if code.split("_")[0] == want.split("_")[0]), DEFAULT_LANGUAGE)


def gettext(text: str) -> str:
    return translations(current_language.get()).gettext(text)


def ngettext(one: str, many: str, count: int) -> str:
    return translations(current_language.get()).ngettext(one, many, count)
