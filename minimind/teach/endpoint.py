"""A teacher behind an OpenAI-compatible address: ``POST {base}/chat/completions``.

The standard library's client, since the core has no other; redirects are not followed and answers are bounded. What
may pass (429, 5xx, timeouts, a connection that breaks) is tried again after a growing wait, or after the one that the
server asks for; a wrong key, model or address is not.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from minimind.teach.address import Address, parse_address
from minimind.teach.teachers import Answer, TeacherError

MAX_ANSWER_BYTES = 16 << 20
#: of what a server said, so much is passed on
MAX_QUOTED_CHARS = 300
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
PASSES_BY = {408, 409, 425, 429}
REFUSES_QUESTION = {400, 413, 422}


class _MayPass(Exception):
    """Worth another try. ``wait_s``: what the server asked for; ``is_telling``: a mistake in the address if no answer
    has ever come from it."""

    def __init__(self, message: str, *, wait_s: float | None = None, is_telling: bool = False, hint: str | None = None):
        super().__init__(message)
        self.message, self.wait_s, self.is_telling, self.hint = message, wait_s, is_telling, hint


class Endpoint:
    """``key`` goes into one header and nowhere else. ``patience_s``: how long a server that fails is tried again;
    ``has_answered``: it is known to work, so that a refused connection is a pause and not a wrong address."""

    def __init__(self, url: str, model: str, key: str | None = None, *, temperature: float | None = None,
                 max_tokens: int | None = None, seed: int | None = None, timeout_s: float = 300.0,
                 patience_s: float = 180.0, first_wait_s: float = FIRST_WAIT_S, has_answered: bool = False,
                 max_concurrency: int = 64):
        if not model.strip():
            raise TeacherError("The endpoint's model has no name.", field="model", hint="Name a model that it serves.")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise TeacherError("The key of the endpoint is not plain ASCII text.", field="key", hint="Copy it again.")
        self.address: Address = parse_address(url)
        self.model = model
        self.max_concurrency = max_concurrency
        self._key = key
        self._options = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        self._timeout_s, self._patience_s, self._first_wait_s = timeout_s, patience_s, first_wait_s
        self._has_answered = has_answered
        self._answered_at = -1.0
        self._open: set[socket.socket] = set()
        self._closed = threading.Event()

    def identity(self) -> dict[str, Any]:
        return {"endpoint": self.address.url, "model": self.model}

    def close(self) -> None:
        self._closed.set()
        for open_socket in list(self._open):
            try:
                open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # it is closed already
                continue

    def ask(self, messages: list[dict], number: int, should_stop: Callable[[], bool]) -> Answer | None:
        began, tries = time.monotonic(), 0
        while True:
            try:
                answer = self._ask_once(messages)
                self._has_answered, self._answered_at = True, time.monotonic()
                return answer
            except _MayPass as problem:
                if should_stop() or self._closed.is_set():
                    return None
                if problem.is_telling and not self._has_answered:
                    raise TeacherError(problem.message, field="endpoint", hint=problem.hint) from None
                wait_s = min(self._first_wait_s * 2 ** min(tries, 10), LONGEST_WAIT_S) * random.uniform(0.7, 1.0)
                wait_s = max(wait_s, problem.wait_s or 0.0)
                tries += 1
                if time.monotonic() + wait_s > began + self._patience_s:
                    if self._answered_at > began:  # others are answered meanwhile: it is this question
                        return Answer(left_out="failed", note=problem.message)
                    raise TeacherError(
                        f"{problem.message} That was try {tries}, {time.monotonic() - began:.0f} s after the first"
                        + (f"; it asks to wait {problem.wait_s:.0f} s." if problem.wait_s else "."),
                        field="endpoint", hint=problem.hint or "Go on when the server is well again.") from None
                self._closed.wait(wait_s)

    # -- one request ----------------------------------------------------------------------------------------------

    def _ask_once(self, messages: list[dict]) -> Answer:
        body = {"model": self.model, "messages": messages, "stream": False,
                **{k: v for k, v in self._options.items() if v is not None}}
        status, headers, raw = self._request("POST", "/chat/completions", body)
        if status == 200:
            return self._answer_in(raw)
        said = self._said(raw)
        if status in (400, 422) and "max_tokens" in self._options and "max_completion_tokens" in said:
            self._options["max_completion_tokens"] = self._options.pop("max_tokens")  # newer models of OpenAI
            return self._ask_once(messages)
        if status in REFUSES_QUESTION:
            return Answer(left_out="refused", note=said or f"status {status}")
        quoted = f': "{said}"' if said else "."
        if status in PASSES_BY or status >= 500:
            raise _MayPass(f"The teacher at {self.address.url} answers with status {status}{quoted}",
                           wait_s=_retry_after(headers))
        raise self._refusal(status, headers, quoted)

    def _refusal(self, status: int, headers: http.client.HTTPMessage, quoted: str) -> TeacherError:
        where = f"The teacher at {self.address.url}"
        if status in (401, 403):
            told = "refuses the key" if self._key else "wants a key"
            return TeacherError(f"{where} {told} (status {status}){quoted}", field="key",
                                hint="Give a key that is valid there (MINIMIND_TEACHER_KEY), and try again.")
        if status == 404:
            known = self._models()
            return TeacherError(
                f"{where} knows no model {self.model}, or its address is another (status 404){quoted}", field="model",
                hint=f"It serves {', '.join(known)}." if known else "The address ends before /chat/completions, "
                                                                    "mostly in /v1.")
        if 300 <= status < 400:
            place = self._clean(headers.get("Location") or "")
            return TeacherError(f"{where} sends on to {place or 'another place'} (status {status}), where nobody goes.",
                                field="endpoint", hint="Give the address that it leads to, if you trust it.")
        return TeacherError(f"{where} refuses the request (status {status}){quoted}", field="endpoint",
                            hint="Its address ends before /chat/completions, mostly in /v1.")

    def _models(self) -> list[str]:
        """Names that ``GET /models`` gives, ten at most; none where it gives none."""
        try:
            status, _, raw = self._request("GET", "/models", None)
            listed = json.loads(raw)["data"] if status == 200 else []
            return [self._clean(str(item["id"]))[:100] for item in listed[:10]]
        except (_MayPass, TeacherError, ValueError, KeyError, TypeError):
            return []

    def _request(self, method: str, path: str, body: dict | None) -> tuple[int, http.client.HTTPMessage, bytes]:
        headers = {"Accept": "application/json", "User-Agent": "minimind-studio", "Connection": "close"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        payload = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            payload = json.dumps(body).encode()
        where, connection = f"The teacher at {self.address.url}", None
        deadline = time.monotonic() + self._timeout_s
        try:
            connection = self.address.connect(self._timeout_s)
            plain = connection.sock
            self._open.add(plain)
            try:
                connection.request(method, self.address.base + path, payload, headers)
                response = connection.getresponse()
                return response.status, response.headers, _read(response, deadline)
            finally:
                self._open.discard(plain)
        except socket.gaierror:
            raise _MayPass(f"There is no server named {self.address.host}, or no name service to find it.",
                           is_telling=True, hint="Check the endpoint's address.") from None
        except ConnectionRefusedError:
            raise _MayPass(f"Nobody answers at {self.address.origin}: the connection is refused.", is_telling=True,
                           hint="Start the server, or check its address and port.") from None
        except ssl.SSLError as error:
            raise _MayPass(f"{where} cannot be reached safely: {error.reason or error}.", is_telling=True,
                           hint="Is it https with a certificate that this machine trusts?") from None
        except TimeoutError:
            raise _MayPass(f"{where} has not answered within {self._timeout_s:g} s.") from None
        except (http.client.HTTPException, OSError) as error:
            raise _MayPass(f"The connection to {self.address.origin} broke: {error or type(error).__name__}.") from None
        finally:
            if connection is not None:
                connection.close()

    def _answer_in(self, raw: bytes) -> Answer:
        try:
            choice = json.loads(raw)["choices"][0]
            message = choice["message"]
            content, reason = message.get("content"), choice.get("finish_reason")
            if isinstance(content, list):  # parts, as some servers send them
                content = "".join(p.get("text") or "" for p in content if p.get("type") == "text")
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
            if not isinstance(content, str | None) or not isinstance(reasoning, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _MayPass(
                f"What {self.address.url} answers is not a chat completion of OpenAI's shape: "
                f'"{self._clean(raw[:80].decode(errors="replace"))}".', is_telling=True,
                hint="The address should end in front of /chat/completions, mostly in /v1.") from None
        if reason == "content_filter" or message.get("refusal"):
            return Answer(left_out="refused", note=str(message.get("refusal") or "content filter")[:MAX_QUOTED_CHARS])
        return Answer.of(content or "", reasoning, is_cut=reason == "length")

    def _said(self, raw: bytes) -> str:
        """The sentence of a refusal, without the key should it be quoted."""
        try:
            said = json.loads(raw)
            said = said.get("error", said)
            said = said.get("message", "") if isinstance(said, dict) else said
        except (ValueError, AttributeError, RecursionError):
            said = "" if raw.lstrip().startswith(b"<") else raw[:MAX_QUOTED_CHARS].decode(errors="replace")
        return self._clean(str(said))

    def _clean(self, text: str) -> str:
        text = " ".join(text.split())
        text = text.replace(self._key, "…") if self._key else text
        return "".join(c for c in text if c.isprintable())[:MAX_QUOTED_CHARS]


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, bounded in size and in time, however slowly it comes."""
    parts, size = [], 0
    while block := response.read1(1 << 16):
        size += len(block)
        if size > MAX_ANSWER_BYTES:
            raise http.client.HTTPException(f"its answer is larger than {MAX_ANSWER_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise TimeoutError
        parts.append(block)
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _retry_after(headers: http.client.HTTPMessage) -> float | None:
    """Seconds that ``Retry-After`` asks for, as a number or as a date."""
    value = (headers.get("Retry-After") or "").strip()
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None
