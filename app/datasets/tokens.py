"""Rows of a dataset as the training stages read them: tokens, and which of them are learnt.

The web process cannot load the core's cache (it needs torch's half), so the ways in which a row becomes tokens stand
here once more, in one line each; a test holds them to ``minimind.data.cache.encode_rows``.
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.core.db import Session
from app.core.errors import Invalid
from app.core.inputs import stamp_of
from app.core.models import Checkpoint
from app.core.rest import find
from app.datasets.schemas import PreviewToken
from app.datasets.service import SIDES, ready_tokenizer
from minimind.chat_format import encode_conversation, encode_pair
from minimind.config import TrainConfig, stage_class
from minimind.errors import DataError
from minimind.tokenizer import TOKENIZER_FILE, Tokenizer

#: tokens of one row that are shown, and rows of one page that are shown as tokens
MAX_TOKENS, MAX_ROWS = 2000, 20
#: a dialogue goes through its template whole; beyond this many characters it is not shown as tokens
MAX_DIALOGUE_CHARS = 200_000
_FIRST_CHARS = 20_000

Encoded = tuple[list[int], list[bool], bool]


def tokenizer_dir(session: Session, tokenizer: str | None, checkpoint: str | None) -> Path | None:
    """Where the wanted tokenizer lies; None if none is wanted. Raises ``Invalid``."""
    if tokenizer is not None and checkpoint is not None:
        raise Invalid("There are both a tokenizer and a checkpoint.", field="tokenizer",
                      hint="Give one of them; a checkpoint brings its own tokenizer.")
    if tokenizer is not None:
        return Path(ready_tokenizer(session, tokenizer).path)
    if checkpoint is None:
        return None
    row = find(session, Checkpoint, checkpoint)
    if row is None or row.state != "ready":
        raise Invalid("There is no usable checkpoint of this id.", field="checkpoint",
                      hint="GET /api/v1/checkpoints lists them.")
    if not Path(row.path, TOKENIZER_FILE).is_file():
        raise Invalid("The files of this checkpoint are no longer there.", field="checkpoint",
                      hint="Choose another one.")
    return Path(row.path)


def loaded(directory: Path) -> Tokenizer:
    """The tokenizer there; who types asks for it again and again, and one of 6,400 entries takes 50 ms to load. Raises
    ``DataError``."""
    try:
        stamp = stamp_of(directory / TOKENIZER_FILE)
    except OSError:
        stamp = ""  # loading says what is wrong
    return _loaded(directory, stamp)


@lru_cache(maxsize=2)
def _loaded(directory: Path, stamp: str) -> Tokenizer:
    return Tokenizer.load(directory)


def check_stage(stage: str | None, layout: str) -> None:
    """Raises ``Invalid`` where ``stage`` does not learn from the tokens of such rows, ``ConfigError`` if unknown."""
    if stage is None:
        return
    kind = stage_class(stage)
    if not issubclass(kind, TrainConfig):
        raise Invalid(f"The stage {stage} does not learn from tokens.", field="stage",
                      hint="Leave stage out, or name one that trains a model.")
    if layout not in kind.layouts:
        raise Invalid(f"The stage {stage} cannot learn from a dataset of the layout {layout}.", field="stage",
                      hint=f"It learns from: {', '.join(kind.layouts)}.")


class TokenView:
    """Shows rows of one layout in the words of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, layout: str):
        self._tokenizer, self._layout = tokenizer, layout

    def fields(self, line: int, row: dict) -> dict[str, Any]:
        """``tokens``, ``rejected_tokens`` and ``tokens_cut`` of a preview row. Raises ``DataError``."""
        if self._layout == "questions":  # a teacher answers them; nothing of them is learnt
            sides = self._dialogues([[{"role": "user", "content": row["question"]}]], None)
        elif self._layout not in SIDES:
            sides = [self._text(row["text"])]
        else:
            try:
                sides = self._dialogues([row[name] for name in SIDES[self._layout]], row.get("tools"))
            except DataError as error:
                raise DataError(f"Line {line}: {error.message}", line=line, field=error.field,
                                hint=error.hint) from None
        shown = [tokens_of(self._tokenizer, *side) for side in sides]
        return {"tokens": shown[0], "rejected_tokens": shown[1] if len(shown) > 1 else None,
                "tokens_cut": any(len(ids) > MAX_TOKENS or not is_whole for ids, _, is_whole in sides)}

    def _text(self, text: str) -> Encoded:
        """``<|im_start|>text<|im_end|>``; every token but the first is predicted from those before it.

        Of a long text only the beginning is encoded: so much that the shown tokens stand far from where it is cut.
        """
        chars = _FIRST_CHARS
        while True:
            is_whole = chars >= len(text)
            ids = self._tokenizer.encode(text[:chars])
            if is_whole or len(ids) > 2 * MAX_TOKENS:
                break
            chars *= 2
        ids = [self._tokenizer.bos_id, *ids] + [self._tokenizer.eos_id] * is_whole
        return ids, [place > 0 for place in range(len(ids))], is_whole

    def _dialogues(self, sides: list[list[dict]], tools: list[dict] | None) -> list[Encoded]:
        """A conversation, or the chosen and the rejected side of a pair."""
        if max(map(chars_of, sides)) > MAX_DIALOGUE_CHARS:
            return [([], [], False)] * len(sides)
        if len(sides) == 1:
            ids, mask = encode_conversation(self._tokenizer, sides[0], tools)
            return [(ids, mask, True)]
        pair = encode_pair(self._tokenizer, *sides, tools)
        return [(pair.chosen_ids, pair.chosen_mask, True), (pair.rejected_ids, pair.rejected_mask, True)]


def chars_of(messages: list[dict]) -> int:
    return sum(len(str(message)) for message in messages)


def tokens_of(tokenizer: Tokenizer, ids: list[int], mask: list[bool], is_whole: bool) -> list[PreviewToken]:
    """The first tokens of ``ids`` as they are shown; ``is_whole``: these ids are all.

    A character over several tokens is the text of its last one; the others hold what stands before it.
    """
    tokens = []
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    for place, (id, is_target) in enumerate(zip(ids[:MAX_TOKENS], mask, strict=False)):
        written = tokenizer.token_bytes(id, skip_special=False)
        is_last = is_whole and place == len(ids) - 1  # half a character at the very end is shown as U+FFFD
        text = characters.decode(written, final=is_last)
        tokens.append(PreviewToken(
            text=text, id=id, is_target=is_target, is_partial=bool(characters.getstate()[0]),
            is_special=bool(written) and not tokenizer.token_bytes(id)))
    return tokens
