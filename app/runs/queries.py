"""What is read of runs: lists, events, samples, log files."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import String, cast, func, or_, select

from app.core.db import Session
from app.core.errors import Invalid
from app.core.models import Event, Run
from app.core.rest import Paging, like, newest_first
from app.core.settings import get_settings
from app.runs.metrics import cutoffs
from app.runs.schemas import EventOut, LogLine, LogPage, SampleOut
from minimind.events import finite
from minimind.run_dir import RunDir

#: what one page of a log holds at most
LOG_PAGE_BYTES = 256 << 10
#: a line beyond this is shown in pieces
MAX_LINE_BYTES = 64 << 10
_LOG_CURSOR = re.compile(r"(\d{1,9}):(\d{1,18})")


def list_runs(session: Session, paging: Paging, *, state: list[str] | None = None, stage: list[str] | None = None,
              tag: list[str] | None = None, text: str | None = None,
              pipeline_id: str | None = None) -> tuple[list[Run], str | None]:
    """A page of the runs that fit every filter, newest first."""
    query = select(Run)
    if state:
        query = query.where(Run.state.in_(state))
    if stage:
        query = query.where(Run.stage.in_(stage))
    if pipeline_id:
        query = query.where(Run.pipeline_id == pipeline_id)
    for each in tag or []:
        query = query.where(_has_tag(session, each))
    if text:
        pattern = like(text.lower())
        query = query.where(or_(*(func.lower(column).like(pattern, escape="\\")
                                  for column in (Run.name, Run.notes, Run.id))))
    return newest_first(session, query, Run, paging)


def _has_tag(session: Session, tag: str):
    """The column holds a JSON list of strings; both databases can look into it."""
    if session.get_bind().dialect.name == "postgresql":
        elements = func.json_array_elements_text(Run.tags).table_valued("value")
    else:
        elements = func.json_each(Run.tags).table_valued("value")
    return select(elements.c.value).where(cast(elements.c.value, String) == tag).exists()


def events_after(session: Session, topic: str, after: int, limit: int,
                 types: list[str] | None = None) -> tuple[list[Event], int | None]:
    """Events behind ``after`` in order; and, where there are more, the ``seq`` to go on from."""
    query = select(Event).where(Event.topic == topic, Event.seq > after).order_by(Event.seq).limit(limit + 1)
    if types:
        query = query.where(Event.type.in_(types))
    rows = list(session.scalars(query))
    return (rows, None) if len(rows) <= limit else (rows[:limit], rows[limit - 1].seq)


def event_out(event: Event) -> EventOut:
    """``data`` says by itself where it belongs: live clients get it without the rest of the row."""
    place = {"attempt": event.attempt, "t": event.t, "step": event.step, "tokens": event.tokens}
    return EventOut(seq=event.seq, type=event.type, **place, data=finite(place | event.data))


def samples(session: Session, run_id: str) -> list[SampleOut]:
    """What the model said along the curve; of a repeated step only the highest attempt's word counts."""
    cut = cutoffs(session, run_id)
    rows = session.scalars(select(Event).where(Event.topic == f"run:{run_id}", Event.type == "sample")
                           .order_by(Event.seq))
    found: dict[tuple, SampleOut] = {}
    for row in rows:
        if row.step > cut.get(row.attempt, float("inf")):
            continue
        index = row.data.get("prompt_index")
        found[row.step, index, row.data.get("prompt")] = SampleOut(
            step=row.step, tokens=row.tokens, attempt=row.attempt, t=row.t, prompt_index=index,
            prompt=str(row.data.get("prompt", "")), text=str(row.data.get("text", "")))
    return sorted(found.values(), key=lambda s: (s.step, -1 if s.prompt_index is None else s.prompt_index))


def log_page(run_id: str, rank: int, after: str | None) -> LogPage:
    """Whole lines of ``logs/rank{rank}.log``, one attempt after the other, from ``after`` on."""
    run_dir = RunDir(get_settings().runs_dir / run_id)
    attempt, offset = _log_place(after)
    items: list[LogLine] = []
    place = f"{attempt}:{offset}"
    left = LOG_PAGE_BYTES
    directories = [a for a in run_dir.attempts() if a.number >= attempt]
    for directory in directories:
        start = offset if directory.number == attempt else 0
        lines, end = _whole_lines(directory.log(rank), start, left, is_last=directory is directories[-1])
        items.extend(LogLine(attempt=directory.number, text=line) for line in lines)
        place = f"{directory.number}:{end}"
        left -= end - start
        if left <= 0:
            break
    return LogPage(items=items, next_cursor=place)


def _log_place(after: str | None) -> tuple[int, int]:
    if after is None:
        return 0, 0
    match = _LOG_CURSOR.fullmatch(after)
    if match is None:
        raise Invalid("after is not a place in a log.", field="after", hint="Use next_cursor of the page before.")
    return int(match[1]), int(match[2])


def _whole_lines(path: Path, start: int, limit: int, *, is_last: bool) -> tuple[list[str], int]:
    """Lines from byte ``start`` on and where the next look begins.

    A line without end is left for later, unless its writer is gone (a later attempt exists) or it is too long.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            block = file.read(limit)
            at_end = not file.read(1)
    except FileNotFoundError:
        return [], start
    whole = block.rfind(b"\n") + 1
    if (at_end and not is_last) or (whole == 0 and len(block) >= min(MAX_LINE_BYTES, limit)):
        whole = len(block)
    lines = block[:whole].decode("utf-8", "replace").split("\n")
    return lines[:-1] if lines[-1] == "" else lines, start + whole


def any_run(session: Session) -> bool:
    """Whether anything was ever trained here (and not deleted since)."""
    return session.scalar(select(Run.id).limit(1)) is not None
