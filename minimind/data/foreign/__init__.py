"""Data as others publish it, read as rows of our own layouts: Alpaca, ShareGPT, OpenAI messages, questions with
answers, preference pairs, KTO's rated answers, Self-Instruct, dialogues of people, paragraphs; as jsonl, json, csv,
tsv, txt, each also in a .gz or .zip, in UTF-8, UTF-16, GB18030 or Big5.

========== =====================================================================================
members    a path as the data files in it; bounds of archives
text       bytes as text; ``encodings`` finds out which encoding
json_values, tables   text as records, one at a time, each with the line where it begins
recognise  the layout by the first records, as a mapping
mapping    what a user may say of a file that detection cannot know
convert, messages   one record as rows
source     all of it together, with a report
========== =====================================================================================

Nothing is raised to a training run that a reader of the file could not act on: a row that is broken is an error with
its line and field; one that holds nothing to learn (an empty answer) is left out and counted, up to a tenth of a file.

By hand: ``python -m minimind.data.foreign FILE [--mapping JSON] [--out data.jsonl]``. docs/data.md shows every layout.
"""

from minimind.data.foreign.mapping import LAYOUTS, checked
from minimind.data.foreign.source import (
    CONVERSION_VERSION,
    Report,
    Source,
    data_suffixes,
    inspect,
    is_foreign,
    write_canonical,
)

__all__ = ["CONVERSION_VERSION", "LAYOUTS", "Report", "Source", "checked", "data_suffixes", "inspect", "is_foreign",
           "write_canonical"]
