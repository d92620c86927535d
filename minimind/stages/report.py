"""What the data of a run comes to: documents, tokens, lengths, what is left out, and the shares of a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minimind.data.mixture import Source
from minimind.data.packing import Rows


def data_report(sources: Sequence[Source], splits: Sequence[tuple[np.ndarray, np.ndarray]], parts: Sequence[Rows],
                mixed: Rows, left_out: Mapping[str, int], max_seq_len: int) -> dict:
    """Numbers of the training documents, as JSON has them; every document once, whatever the shares of a mixture.

    ``splits``: documents to train on and held out, of each source; ``parts``: its rows; ``mixed``: all rows.
    ``used_tokens + cut_tokens + dropped_tokens = tokens``. ``fill``: used tokens of those that the rows have room for.
    ``learnt_share``: used tokens that are somebody's target.
    """
    lengths = np.concatenate([s.cache.sizes[train] for s, (train, _) in zip(sources, splits)])
    total, used = int(lengths.sum()), int(mixed.tokens.sum())
    dropped = left_out.get("dropped_tokens", 0)
    held = [s.cache.sizes[documents] for s, (_, documents) in zip(sources, splits)]
    return {
        "documents": len(lengths), "tokens": total,
        "document_tokens": {"mean": round(float(lengths.mean()), 1), "median": float(np.median(lengths)),
                            "longest": int(lengths.max())},
        "rows": len(mixed), "max_seq_len": max_seq_len, "used_tokens": used,
        "fill": round(used / (len(mixed) * max_seq_len), 4),
        "cut_documents": left_out.get("cut", 0), "cut_tokens": total - used - dropped,
        "dropped_documents": left_out.get("dropped", 0), "dropped_tokens": dropped,
        "learnt_share": round(int(mixed.targets.sum()) / used, 4),
        "held_out_documents": sum(map(len, held)), "held_out_tokens": int(sum(sizes.sum() for sizes in held)),
        "sources": _sources(sources, splits, parts, mixed) if mixed.mixture else [],
    }


def _sources(sources: Sequence[Source], splits: Sequence[tuple[np.ndarray, np.ndarray]], parts: Sequence[Rows],
             mixed: Rows) -> list[dict]:
    assert mixed.mixture is not None
    return [{"name": source.name, "documents": len(train), "tokens": int(source.cache.sizes[train].sum()),
             "rows": len(rows), "rows_per_epoch": quota, "share": round(quota / len(mixed), 4),
             "held_out_documents": len(held)}
            for source, (train, held), rows, quota in zip(sources, splits, parts, mixed.mixture.quotas)]


def in_words(report: dict) -> str:
    """The report as one line of a log."""
    lengths = report["document_tokens"]
    parts = [f"Data: {report['documents']:,} documents of {report['tokens']:,} tokens (mean {lengths['mean']:,.0f}, "
             f"median {lengths['median']:,.0f}, longest {lengths['longest']:,}) in {report['rows']:,} rows of "
             f"{report['max_seq_len']:,}, {report['fill']:.1%} full; {report['learnt_share']:.1%} of the tokens are "
             "learnt"]
    if report["cut_tokens"] or report["dropped_tokens"]:
        parts.append(f"left out are {report['cut_tokens']:,} tokens that were cut off and {report['dropped_tokens']:,} "
                     "of documents in which nothing is learnt")
    parts.append(f"held out: {report['held_out_documents']:,} documents, {report['held_out_tokens']:,} tokens")
    if report["sources"]:
        parts.append("an epoch takes " + ", ".join(
            f"{s['share']:.1%} {s['name']} ({s['rows_per_epoch'] / s['rows']:.2f} times its {s['rows']:,} rows)"
            for s in report["sources"]))
    return "; ".join(parts) + "."
