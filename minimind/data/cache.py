"""Tokenize once: documents as one memory-mapped stream of ids, kept under the hash of all that decides it.

::

    cache/tokens/{hash}/  tokens.bin   uint16 (uint32 for large vocabularies), all documents one behind the other
                          mask.bin     one bit a token: is it learnt (conversations and pairs only)
                          offsets.npy  [documents + 1] first token of each document
                          hashes.npy   [documents] 64 bits of each document's content, for the held-out split
                                       (the two sides of a preference pair, one behind the other, share theirs)
                          learnt.npy   [documents] tokens of each that are learnt (its first one never is)
                          meta.json

The directory is written aside and renamed, so it is whole or not there; two processes that make the same one at
once both succeed, and one of the two results is thrown away.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data import layouts
from minimind.data.foreign import CONVERSION_VERSION, Report, is_foreign
from minimind.data.layouts import data_files
from minimind.errors import DataError, DiskFullError
from minimind.manifest import sha256_of
from minimind.run_dir import read_json, write_json
from minimind.tokenizer import Tokenizer

FORMAT_VERSION = 2
BATCH_ROWS, BATCH_BYTES = 512, 1 << 20  # of one unit of work, whichever comes first: long rows do not fill the memory
POOL_FROM_BYTES = 8 << 20  # smaller files are tokenized before a pool has started
MAX_UINT16_VOCABULARY = 1 << 16
#: layouts in which not every token is learnt
MASKED_LAYOUTS = ("conversations", "dpo")

#: ``progress(rows done, bytes of the files done)``; it may raise to stop the work
Progress = Callable[[int, int], None]


class TokenCache:
    """One tokenized data set, memory-mapped."""

    def __init__(self, path: Path):
        self.path = path
        self.meta: dict = read_json(path / "meta.json") or {}
        dtype = np.dtype(self.meta["dtype"])
        self.tokens = np.memmap(path / "tokens.bin", dtype=dtype, mode="r")
        self.offsets: np.ndarray = np.load(path / "offsets.npy")
        self.hashes: np.ndarray = np.load(path / "hashes.npy")
        self.num_learnt: np.ndarray = np.load(path / "learnt.npy")
        self.mask = np.memmap(path / "mask.bin", dtype=np.uint8, mode="r") if self.meta["masked"] else None

    @property
    def num_documents(self) -> int:
        return len(self.hashes)

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def fingerprint(self) -> str:
        return self.path.name

    @property
    def warnings(self) -> list[str]:
        """What converting a file of a foreign layout has found."""
        return self.meta.get("warnings", [])

    @property
    def is_masked(self) -> bool:
        """Whether some tokens are there to be read only (prompts), not learnt."""
        return self.mask is not None

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of each document."""
        return np.diff(self.offsets)

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        """Ids of the tokens at ``places`` [N], int64. A place behind the last token gives the last one."""
        return np.asarray(self.tokens).take(places, mode="clip").astype(np.int64)

    def is_learnt_at(self, places: np.ndarray) -> np.ndarray:
        """Whether the tokens at ``places`` [N] are learnt, bool."""
        assert self.mask is not None
        bits = np.asarray(self.mask).take(places >> 3, mode="clip")
        return (bits >> (places & 7).astype(np.uint8) & 1).astype(bool)

    def learnt(self, start: int, end: int) -> np.ndarray:
        """Whether each token of ``start``..``end - 1`` is learnt, bool."""
        assert self.mask is not None
        first = start // 8
        bits = np.unpackbits(self.mask[first:-(-end // 8)], bitorder="little")
        return bits[start - 8 * first:end - 8 * first].astype(bool)

    def split(self, eval_fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """``(training, held-out)`` documents: ``split_documents`` of this cache alone."""
        return split_documents([self], eval_fraction)[0]


def split_documents(caches: Sequence[TokenCache], eval_fraction: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """``(training, held-out)`` documents of each cache, chosen by the hash of their content.

    Equal documents fall on one side, also where they stand in several caches. Of ten or more documents of a cache at
    least one is held out, and at least one is left to train on.
    """
    limit = np.uint64(min(max(eval_fraction, 0.0), 0.5) * 2**64)
    held = [cache.hashes < limit for cache in caches]
    extra = [cache.hashes.min() for cache, h in zip(caches, held)
             if limit and not h.any() and cache.num_documents >= 10]
    if extra:
        held = [h | np.isin(cache.hashes, extra) for cache, h in zip(caches, held)]
    freed = [cache.hashes for cache, h in zip(caches, held) if h.all()]
    if freed:
        held = [h & ~np.isin(cache.hashes, np.concatenate(freed)) for cache, h in zip(caches, held)]
    return [(np.flatnonzero(~h), np.flatnonzero(h)) for h in held]


def content_hash(path: Path | str, progress: Progress | None = None) -> str:
    """sha256 over the names' order and the content of all data files of ``path``, and how those of others are read."""
    digest = hashlib.sha256()
    for file in data_files(path):
        if progress:
            progress(0, 0)
        digest.update(sha256_of(file).encode() + file.suffix.encode() + b"\n")
        if is_foreign(file):
            digest.update(f"converted {CONVERSION_VERSION}\n".encode())
    return digest.hexdigest()


def cache_key(content: str, layout: str, tokenizer: Tokenizer) -> str:
    identity = [FORMAT_VERSION, content, layout, tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def open_cache(path: Path | str, layout: str, tokenizer: Tokenizer, cache_dir: Path, *, content: str,
               workers: int = 0, progress: Progress | None = None) -> TokenCache:
    """The tokenized form of ``path``, made now unless it is there. ``content``: its ``content_hash``.

    ``workers``: processes that tokenize; 0 takes one per core. ``progress`` is called between units of work and
    may raise. Raises ``DataError`` at the first bad row and ``DiskFullError``; nothing half-made is left.
    """
    target = Path(cache_dir) / "tokens" / cache_key(content, layout, tokenizer)
    if not (target / "meta.json").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        aside = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
        aside.mkdir()
        try:
            _write(aside, path, layout, tokenizer, content, workers or os.cpu_count() or 1, progress)
            try:
                aside.rename(target)
            except OSError:
                if not (target / "meta.json").exists():  # else another process was faster
                    raise
        except OSError as error:
            if error.errno in (28, 122):  # ENOSPC, EDQUOT
                raise DiskFullError(f"The disk is full: the tokenized data does not fit into {cache_dir}.",
                                    hint="Free some space or set another --cache_dir.") from None
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return TokenCache(target)


def _remove_abandoned(parent: Path) -> None:
    """Directories of makers that are gone (their pid stands in the name)."""
    for path in parent.glob(".*.tmp"):
        pid = path.name.split(".")[2]
        if not pid.isdigit() or not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def _write(directory: Path, path: Path | str, layout: str, tokenizer: Tokenizer, content: str, workers: int,
           progress: Progress | None) -> None:
    masked = layout in MASKED_LAYOUTS
    sizes: list[np.ndarray] = []
    hashes: list[np.ndarray] = []
    learnt: list[np.ndarray] = []
    bits = np.zeros(0, dtype=bool)  # of the mask, too few for a byte yet
    rows = text_bytes = 0
    reports: list[Report] = []
    with open(directory / "tokens.bin", "wb") as tokens_file, open(directory / "mask.bin", "wb") as mask_file:
        for bytes_done, (ids, lengths, digests, mask, size) in _encoded(path, layout, tokenizer, workers,
                                                                              reports):
            tokens_file.write(ids.tobytes())
            sizes.append(lengths)
            hashes.append(digests)
            learnt.append(_count_learnt(lengths, mask))
            if mask is not None:
                bits = np.concatenate([bits, mask])
                whole = len(bits) // 8 * 8
                mask_file.write(np.packbits(bits[:whole], bitorder="little").tobytes())
                bits = bits[whole:]
            rows, text_bytes = rows + len(lengths), text_bytes + size
            if progress:
                progress(rows, bytes_done)
        mask_file.write(np.packbits(bits, bitorder="little").tobytes())
        for file in (tokens_file, mask_file):
            file.flush()
            os.fsync(file.fileno())
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    np.save(directory / "offsets.npy", offsets)
    np.save(directory / "hashes.npy", np.concatenate(hashes))
    np.save(directory / "learnt.npy", np.concatenate(learnt))
    write_json(directory / "meta.json", {
        "version": FORMAT_VERSION, "dtype": _dtype(tokenizer).name, "masked": masked, "layout": layout,
        "documents": len(offsets) - 1, "tokens": int(offsets[-1]), "text_bytes": text_bytes, "content": content,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "warnings": [warning for report in reports for warning in report.warnings]})


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    """The narrowest type that holds every id."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= MAX_UINT16_VOCABULARY else np.uint32)


def _count_learnt(lengths: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Learnt tokens of each document of a batch; the first token of a document has nothing to be predicted from."""
    if mask is None:
        return lengths - 1
    ends = np.cumsum(lengths)
    counted = np.concatenate([[0], np.cumsum(mask)])
    return (counted[ends] - counted[np.minimum(ends - lengths + 1, ends)]).astype(np.int64)


#: ids, tokens of each document, 64-bit hashes, learnt flags or None, bytes of text
Encoded = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, int]
Row = tuple[int, dict]  # its line number and what stands there


def _encoded(path: Path | str, layout: str, tokenizer: Tokenizer, workers: int,
             reports: list[Report]) -> Iterator[tuple[int, Encoded]]:
    """``(bytes of the files done, batch of documents)`` in file order, encoded here or by a pool of processes.

    Reading and checking rows is a small part of the work (a core reads at 200 MB/s and encodes at 5), so this process
    reads for all. Processes and not threads, because templates and the lists of ids are Python objects.
    """
    size = sum(f.stat().st_size for f in data_files(path))
    batches = _batches(path, layout, size, reports)
    if workers == 1 or size < POOL_FROM_BYTES:
        for done, batch in batches:
            yield done, encode_rows(tokenizer, layout, batch)
        return
    snapshot = Path(tempfile.mkdtemp(prefix="minimind-tokenizer-"))
    try:
        tokenizer.save(snapshot)  # the processes load it from there
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker,
                                 (str(snapshot), layout)) as pool:
            waiting: deque[tuple[int, Future[Encoded]]] = deque()
            try:
                for done, batch in batches:
                    waiting.append((done, pool.submit(_work, batch)))
                    if len(waiting) >= 2 * workers:
                        yield _result(waiting)
                while waiting:
                    yield _result(waiting)
            finally:
                for _, future in waiting:
                    future.cancel()
    except BrokenProcessPool:
        raise DataError("A process that tokenized the data ended suddenly, probably for lack of memory.",
                        hint="Set --num_workers to a smaller number.") from None
    finally:
        shutil.rmtree(snapshot, ignore_errors=True)


def _result(waiting: deque[tuple[int, Future[Encoded]]]) -> tuple[int, Encoded]:
    done, future = waiting.popleft()
    return done, future.result()


def _batches(path: Path | str, layout: str, size: int,
             reports: list[Report]) -> Iterator[tuple[int, list[Row]]]:
    """``(bytes read, rows)``. ``size``: bytes of all files; ``reports``: as of ``layouts.iter_places``."""
    batch: list[Row] = []
    done = begun = 0
    for done, line, row in layouts.iter_places(path, layout, reports):
        batch.append((line, row))
        if len(batch) == BATCH_ROWS or done - begun >= BATCH_BYTES:
            yield min(done, size), batch  # a last line may lack its newline
            batch, begun = [], done
    if batch:
        yield size, batch


_worker: dict[str, Any] = {}


def _start_worker(tokenizer_dir: str, layout: str) -> None:
    from minimind.lifeline import die_with_parent

    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent ends us
    _worker.update(tokenizer=Tokenizer.load(tokenizer_dir), layout=layout)


def _work(batch: list[Row]) -> Encoded:
    return encode_rows(_worker["tokenizer"], _worker["layout"], batch)


def encode_rows(tokenizer: Tokenizer, layout: str, rows: list[Row]) -> Encoded:
    """Encode rows of ``layout``. A text becomes ``<|im_start|>text<|im_end|>``, a dialogue what its template says, a
    pair two documents: the chosen side, then the rejected one."""
    masks: list[list[bool]] = []
    if layout in MASKED_LAYOUTS:
        documents, texts = [], []
        for line, row in rows:
            try:
                sides = _dialogues_of(tokenizer, layout, row)
            except DataError as error:
                raise DataError(f"Line {line}: {error.message}", line=line, field=error.field,
                                hint=error.hint) from None
            documents += [ids for ids, _ in sides]
            masks += [mask for _, mask in sides]
            texts += [json.dumps(row, sort_keys=True, ensure_ascii=False)] * len(sides)
    else:
        texts = [row["text"] for _, row in rows]
        documents = [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]
    contents = [t.encode("utf-8", "surrogatepass") for t in texts]
    digests = [hashlib.blake2b(c, digest_size=8).digest() for c in contents]
    lengths = np.array([len(d) for d in documents], dtype=np.int64)
    ids = np.fromiter(chain.from_iterable(documents), dtype=_dtype(tokenizer), count=int(lengths.sum()))
    mask = np.fromiter(chain.from_iterable(masks), dtype=bool) if layout in MASKED_LAYOUTS else None
    return ids, lengths, np.frombuffer(b"".join(digests), dtype=np.uint64), mask, sum(map(len, contents))


def _dialogues_of(tokenizer: Tokenizer, layout: str, row: dict) -> list[tuple[list[int], list[bool]]]:
    """``(ids, which of them are learnt)`` of the dialogues in a row."""
    from minimind.chat_format import encode_conversation, encode_pair

    if layout == "conversations":
        return [encode_conversation(tokenizer, row["conversations"], row.get("tools"))]
    pair = encode_pair(tokenizer, row["chosen"], row["rejected"], row.get("tools"))
    return [(pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask)]
