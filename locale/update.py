"""Brings the catalogues up to date with the source: ``.venv/bin/python locale/update.py [NEW_LANGUAGE ...]``.

Collects every text of templates, pages and scripts, and adds what is new to ``locale/LANG/LC_MESSAGES/studio.po``
with an empty translation; texts that are gone are dropped. ``--check`` only says what is missing (exit status 1).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minimind.config import PATH_KEYS, STAGES, stage_schema  # noqa: E402
from minimind.presets import PRESETS  # noqa: E402

LOCALE = ROOT / "locale"
SOURCES = {
    "templates": [("**.html", "jinja2.ext:babel_extract")],
    "app": [("**.py", "python")],
    "static/js": [("**.js", "javascript")],
}
OPTIONS = {"**.html": {"newstyle_gettext": "true", "trim_blocks": "true"}, "**.js": {"template_string": "true"}}
KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2), "t": None, "tn": (1, 2)}
PLACEHOLDER = re.compile(r"%\(\w+\)s|\{\w*\}")


def collect() -> Catalog:
    """Every text in the source, with where it stands."""
    catalog = Catalog(project="MiniMind Studio", charset="utf-8")
    for folder, methods in SOURCES.items():
        for name, line, text, comments, context in extract_from_dir(
                ROOT / folder, methods, OPTIONS, KEYWORDS, strip_comment_tags=True):
            there = catalog.get(text if isinstance(text, str) else text[0])
            if there is not None and there.id != text:  # a catalogue has one translation for both: one would be wrong
                raise SystemExit(f"{folder}/{name}:{line}: {text!r} is {there.id!r} elsewhere. Use another text.")
            catalog.add(text, None, [(f"{folder}/{name}", line)], auto_comments=comments, context=context)
    for text in schema_texts():
        catalog.add(text, None, [("minimind/config.py", 1)])
    return catalog


def schema_texts() -> list[str]:
    """What the core's schema says of stages, options, their units and presets; pages pass it through gettext."""
    options = [field.description for stage in STAGES.values() for name, field in stage.model_fields.items()
               if field.description and name not in PATH_KEYS]
    units = [schema["unit"] for stage in STAGES for schema in stage_schema(stage)["schema"]["properties"].values()
             if schema.get("unit")]
    return [*(stage.summary for stage in STAGES.values()), *dict.fromkeys(options), *dict.fromkeys(units),
            *(preset.description for preset in PRESETS.values())]


def po_files() -> dict[str, Path]:
    return {path.parent.parent.name: path for path in sorted(LOCALE.glob("*/LC_MESSAGES/studio.po"))}


def load(language: str, path: Path) -> Catalog:
    with open(path, "rb") as file:
        return read_po(file, locale=language)


def problems(source: Catalog, translated: Catalog) -> list[str]:
    """What a reader of this language would miss: texts without translation, other placeholders than the source's."""
    found = []
    for message in source:
        if not message.id:
            continue
        there = translated.get(message.id if isinstance(message.id, str) else message.id[0])
        forms = [] if there is None else [there.string] if isinstance(there.string, str) else list(there.string or [])
        shown = message.id if isinstance(message.id, str) else message.id[0]
        if not forms or not all(forms):
            found.append(f"not translated: {shown!r}")
            continue
        wanted = set(PLACEHOLDER.findall(message.id if isinstance(message.id, str) else message.id[1]))
        for form in forms:
            if set(PLACEHOLDER.findall(form)) != wanted:
                found.append(f"other placeholders: {shown!r} -> {form!r}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", nargs="*", metavar="NEW_LANGUAGE", help="languages to begin, such as zh or pt_BR")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    source = collect()
    missing = 0
    for language in args.new:
        (LOCALE / language / "LC_MESSAGES").mkdir(parents=True, exist_ok=True)
        (LOCALE / language / "LC_MESSAGES" / "studio.po").touch()
    for language, path in po_files().items():
        catalog = load(language, path) if path.stat().st_size else Catalog(locale=language, charset="utf-8")
        if not args.check:
            catalog.update(source, no_fuzzy_matching=True)
            catalog.obsolete.clear()
            catalog.fuzzy, catalog.project, catalog.version = False, "MiniMind Studio", ""
            catalog.header_comment = f"# MiniMind Studio, {catalog.locale.english_name}"
            catalog.last_translator = catalog.language_team = catalog.msgid_bugs_address = ""
            with open(path, "wb") as file:
                # line numbers would change with every edit; the file's name tells scripts' texts apart
                write_po(file, catalog, width=118, include_lineno=False, sort_by_file=True, omit_header=False)
        found = problems(source, catalog)
        missing += len(found)
        print(f"{language}: {len(catalog)} texts, {len(found)} to do")
        for line in found if args.check else []:
            print(f"  {line}")
    return 1 if args.check and missing else 0


if __name__ == "__main__":
    sys.exit(main())
