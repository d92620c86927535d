"""What an attacker has: raw sockets, hostile names, hostile files; and a canary that shows whether one of them won."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import io
import json
import os
import socket
import tarfile
import threading
import time
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

#: in the environment of the whole studio: the file that a hostile text makes, where anything executes it
CANARY_VARIABLE = "STUDIO_TEST_CANARY"
TOUCH = f'touch "${CANARY_VARIABLE}"'
#: stands in a file beside the data directory
CANARY_TEXT = "CANARY-8b1f: no answer of the server may ever hold this line"

#: names that want to be paths, options, commands or devices
NAMES = [
    "..", "../canary.txt", "../../canary.txt", "../secrets/broker-password", "%2e%2e%2fcanary.txt", "..%2fcanary.txt",
    "%252e%252e%252fcanary.txt", "..\\canary.txt", "..\\..\\canary.txt", "....//canary.txt", "..;/canary.txt",
    "\u2024\u2024/canary.txt", "\uff0e\uff0e\uff0fcanary.txt", "\u2025/canary.txt", "/etc/passwd", "//etc/passwd",
    "C:\\Windows\\win.ini", "\\\\server\\share", "file:///etc/passwd", "CON", "NUL.txt", "COM1", "aux.jsonl", "~root",
    "canary.txt\0.jsonl", "\0", "*", "a#b", "a?b", "-rf", "$(id)", ".", "\u202egpj.exe", "x" * 4096,
]


@dataclass
class Answer:
    status: int  # 0: the connection was closed without one
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.body)


class Raw:
    """Sends exactly the bytes that it is told to; no client library makes them harmless."""

    def __init__(self, url: str, token: str = ""):
        self.url, self.token = url, token
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port

    def __call__(self, method: str, target: str, headers: dict[str, str | None] | None = None, body: bytes = b"",
                 timeout_s: float = 20) -> Answer:
        """``headers`` replace the defaults (Host, length, the token), None leaves one out."""
        sent = {"Host": f"{self.host}:{self.port}", "Connection": "close", "Content-Length": str(len(body)),
                "Authorization": f"Bearer {self.token}" if self.token else None} | (headers or {})
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items() if v is not None), "", ""]
        with socket.create_connection((self.host, self.port), timeout=timeout_s) as connection:
            with contextlib.suppress(OSError):  # refused in the middle: the answer may be there
                connection.sendall("\r\n".join(lines).encode() + body)
            with http.client.HTTPResponse(connection, method=method) as response:
                try:
                    response.begin()
                    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
                except (http.client.HTTPException, OSError):
                    return Answer(0, {}, b"")

    def json(self, method: str, path: str, value: object, **headers: str | None) -> Answer:
        return self(method, path, {"Content-Type": "application/json", **headers}, json.dumps(value).encode())

    def upload(self, path: str, files: dict[str, tuple[bytes, bytes]], **fields: str) -> Answer:
        """A multipart body whose file names (bytes, as they are) stand in it unescaped."""
        parts = [b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (k.encode(), v.encode())
                 for k, v in fields.items()]
        parts += [b'--cut\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n'
                  % (k.encode(), name, content) for k, (name, content) in files.items()]
        return self("POST", path, {"Content-Type": "multipart/form-data; boundary=cut"},
                    b"".join(parts) + b"--cut--\r\n")

    def handshake(self, **headers: str | None) -> int:
        """The status of a websocket handshake, 101 where it is accepted."""
        return self("GET", "/api/v1/live", {
            "Content-Length": None, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(), **headers}).status


def in_a_path(name: str) -> list[str]:
    """Ways to write ``name`` as one segment of a path: as it is where HTTP allows it, encoded once and twice."""
    once = quote(name, safe="")
    plain = [name] if name.isascii() and name.isprintable() and " " not in name and "#" not in name else []
    return list(dict.fromkeys([*plain, once, quote(once, safe="")]))


class Ping:
    """How long an innocent request takes while somebody else attacks."""

    def __init__(self, raw: Raw, pid: int):
        import psutil

        self._raw, self._process = raw, psutil.Process(pid)
        self._over = threading.Event()
        self.seconds: list[float] = []
        self.most_bytes = self.first_bytes = self._process.memory_info().rss

    def __enter__(self) -> Ping:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.03):
            began = time.monotonic()
            assert self._raw("GET", "/api/v1/me").status == 200
            self.seconds.append(time.monotonic() - began)
            self.most_bytes = max(self.most_bytes, self._process.memory_info().rss)

    @property
    def grown_mb(self) -> float:
        return (self.most_bytes - self.first_bytes) / 1e6

    @property
    def typical_s(self) -> float:
        """Nine of ten answers came within this time."""
        return sorted(self.seconds)[int(0.9 * len(self.seconds))]


# -- hostile files ------------------------------------------------------------------------------------------------


def _zip(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _tar(*members: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return packed.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, size
    return member


def archives(outside: Path) -> dict[str, bytes]:
    """Archives that would write, link or swell, if anybody unpacked them; ``outside`` is what they aim at."""
    row = b'{"text": "The ferry left at nine."}\n'
    bomb = _zip({"rows.jsonl": bytes(50 << 20)})
    return {
        "traversal.zip": _zip({"../../unpacked.jsonl": row, "rows.jsonl": row}),
        "absolute.zip": _zip({str(outside / "unpacked.jsonl"): row}),
        "bomb.zip": bomb,
        "nested.zip": _zip({f"{n}.zip": bomb for n in range(20)}),
        "many.zip": _zip({f"{n}.jsonl": b"" for n in range(5000)}),
        "traversal.tar.gz": _tar(_member("../../unpacked.jsonl", size=10)),
        "links.tar.gz": _tar(_member("out", tarfile.SYMTYPE, str(outside)), _member("out/unpacked.jsonl", size=10),
                             _member("hard", tarfile.LNKTYPE, str(outside / "canary.txt"))),
        "device.tar.gz": _tar(_member("disk", tarfile.BLKTYPE), _member("pipe", tarfile.FIFOTYPE)),
        "rows.jsonl.gz": gzip.compress(bytes(50 << 20)),
    }


def celery_message(body: bytes, content_type: str, *, task: str = "worker.wake", encoding: str = "binary") -> str:
    """A message as Celery's Redis transport keeps it in a list."""
    id = str(uuid.uuid4())
    return json.dumps({
        "body": base64.b64encode(body).decode(), "content-encoding": encoding, "content-type": content_type,
        "headers": {"lang": "py", "task": task, "id": id, "root_id": id, "parent_id": None, "group": None,
                    "argsrepr": "()", "kwargsrepr": "{}", "retries": 0, "eta": None, "expires": None,
                    "timelimit": [None, None]},
        "properties": {"correlation_id": id, "reply_to": id, "delivery_mode": 2, "priority": 0,
                       "delivery_info": {"exchange": "", "routing_key": "wake"}, "body_encoding": "base64",
                       "delivery_tag": id}})


def pickled_task(canary: Path) -> str:
    """Whoever unpickles its body calls ``os.system``."""
    call = f"cposix\nsystem\n(S'touch {canary}'\ntR."
    return celery_message(call.encode(), "application/x-python-serialize")


def unknown_task() -> str:
    return celery_message(json.dumps([[TOUCH], {}, {"callbacks": None, "errbacks": None, "chain": None,
                                                    "chord": None}]).encode(), "application/json",
                          task="os.system", encoding="utf-8")
