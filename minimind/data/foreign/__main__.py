"""Say what a file holds, or convert it: ``python -m minimind.data.foreign FILE [--mapping JSON] [--out data.jsonl]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from minimind.data.foreign import Source, write_canonical
from minimind.errors import MiniMindError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m minimind.data.foreign", description=__doc__)
    parser.add_argument("file", type=Path, help="the file to read")
    parser.add_argument("--mapping", type=json.loads, default=None, metavar="JSON",
                        help="what its columns mean (docs/data.md)")
    parser.add_argument("--out", type=Path, default=None, help="where to write the rows, as jsonl")
    options = parser.parse_args(arguments)
    try:
        if not options.file.is_file():
            raise MiniMindError(f"There is no file {options.file}.", hint="Check the path.")
        with Source(options.file, mapping=options.mapping) as source:
            count = write_canonical(source, options.out) if options.out else sum(1 for _ in source.rows())
            print(f"{source.shown}: {source.layout} ({source.parts[0].container}, {source.parts[0].encoding}) -> "
                  f"{count:,} rows of {source.canonical}")
            print(f"mapping: {json.dumps(source.parts[0].mapping, ensure_ascii=False)}")
            for warning in source.report.warnings:
                print(f"warning: {warning}")
    except MiniMindError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
