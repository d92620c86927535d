"""The security checklist, from outside: one running studio, raw sockets, and the mistakes that other tools have made.

Each test carries the number of its line in the list. Lines whose feature does not exist yet are tested at what is
nearest: S2 has no websocket tickets (cookie and Bearer token are all there is); S8 unpacks no archive anywhere, so
archives must end as unreadable text; S19 keeps no wandb key of its own (it is read from the environment, nothing is
encrypted; secrets are files of mode 0600); S22 knows no TLS flag, a password alone opens other addresses. S9, S10 and
S14 wait for imports from files and hubs, S15, S17 and S18 for browsers, passwords that change and shared studios.
That each start makes another login token, and that ``up`` refuses other addresses without a password, is tested in
``test_up.py``; the tables of every Host, Origin and header in ``tests/app``.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from minimind.tokenizer import Tokenizer
from tests.integration import security_rig as rig
from tests.integration.material import SMALL, TWO_RANKS, dialogues_jsonl, ready_dataset, text_jsonl, upload
from tests.integration.security_rig import CANARY_TEXT, CANARY_VARIABLE, NAMES, TOUCH, Answer, Ping, Raw, in_a_path
from tests.integration.studio import ROOT, RunningStudio

pytestmark = pytest.mark.integration

#: what may be asked without a login; anything under /static/ too
PUBLIC = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/favicon.ico"), ("GET", "/login"), ("POST", "/login"),
          ("POST", "/api/v1/login")}
EVIL = "http://evil.example"
WANDB_KEY = secrets.token_hex(20)
LISTS = ("runs", "pipelines", "datasets", "tokenizers", "checkpoints", "conversations", "jobs")
ID = re.compile(r"[a-z0-9]{12}")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outside of the data directory, which the studio makes in it; ``canary.txt`` is not the studio's."""
    path = tmp_path_factory.mktemp("security")
    (path / "canary.txt").write_text(CANARY_TEXT)
    return path


@pytest.fixture(scope="module")
def canary(home: Path) -> Path:
    """The file that exists as soon as anything executes what it was told."""
    return home / "executed"


@pytest.fixture(scope="module")
def studio(home: Path, canary: Path) -> Iterator[RunningStudio]:
    running = RunningStudio(home / "data", **{CANARY_VARIABLE: str(canary), "WANDB_API_KEY": WANDB_KEY})
    running.start()
    try:
        yield running
    finally:
        running.close()


@pytest.fixture(autouse=True)
def nothing_was_executed_or_touched(studio: RunningStudio, home: Path, canary: Path) -> Iterator[None]:
    yield
    assert not canary.exists(), "something was executed"
    assert (home / "canary.txt").read_text() == CANARY_TEXT
    assert sorted(p.name for p in home.iterdir()) == ["canary.txt", "data"]
    assert studio.process.poll() is None and studio.client.http.get("/readyz").status_code == 200


@pytest.fixture(scope="module")
def raw(studio: RunningStudio) -> Raw:
    """With the API token."""
    return Raw(studio.url, studio.token)


@pytest.fixture(scope="module")
def nobody(studio: RunningStudio) -> Raw:
    return Raw(studio.url)


@pytest.fixture(scope="module")
def login(studio: RunningStudio, nobody: Raw) -> Answer:
    """What the printed address answers."""
    return nobody("GET", f"/?token={studio.login_token}")


@pytest.fixture(scope="module")
def cookie(login: Answer) -> str:
    """A logged-in browser's Cookie header."""
    return login.headers["set-cookie"].split(";")[0]


@pytest.fixture(scope="module")
def operations(raw: Raw) -> list[tuple[str, str, dict]]:
    """Method, path and description of everything in the OpenAPI document."""
    paths = raw("GET", "/api/v1/openapi.json").json()["paths"]
    found = [(method.upper(), path, what) for path, methods in paths.items() for method, what in methods.items()]
    assert len(found) > 40
    return found


@pytest.fixture(scope="module")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict]:
    """A small ``tokenizer.json`` and its configuration."""
    place = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["Marta brought a letter to the old mill."], 300).save(place)
    return (place / "tokenizer.json").read_bytes(), json.loads((place / "tokenizer_config.json").read_text())


@pytest.fixture(scope="module")
def dialogues(studio: RunningStudio) -> dict:
    return ready_dataset(studio.client, dialogues_jsonl(rows=3))


def pages() -> list[tuple[str, str]]:
    """Method and path of every route of the application, the pages among them."""
    from app.main import create_app

    def walk(routes: Any) -> Iterator[tuple[str, str]]:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                yield from walk(inner.routes)
            else:
                yield from ((method, route.path) for method in getattr(route, "methods", None) or ())

    return list(walk(create_app(own_process=False).routes))


def rows(raw: Raw) -> dict[str, list[tuple]]:
    """What there is, by the lists of the API."""
    return {name: [(i["id"], i.get("name"), i.get("title"), i.get("state")) for i in
                   raw("GET", f"/api/v1/{name}?limit=500").json()["items"]] for name in LISTS}


def says_nothing(studio: RunningStudio, answer: Answer) -> None:
    """No answer carries anything from outside the data directory, nor tells where things lie."""
    for forbidden in (CANARY_TEXT, "root:x:0:0", "[build-system]", "Traceback", "site-packages", str(studio.data_dir),
                      str(ROOT), studio.login_token, WANDB_KEY):
        assert forbidden not in answer.text, (forbidden, answer.text[:500])


# -- who may come in ----------------------------------------------------------------------------------------------


def test_s1_nothing_but_the_doors_answers_without_a_login(
        studio: RunningStudio, nobody: Raw, operations: list[tuple[str, str, dict]]) -> None:
    walked = {(method, path) for method, path, _ in operations} | set(pages())
    assert {("GET", "/chat"), ("GET", "/runs/new"), ("GET", "/api/docs")} <= walked, "the pages are walked too"
    for method, path in sorted(walked | {("GET", "/nowhere"), ("GET", "/api/v1/nowhere"), ("DELETE", "/v1/nowhere"),
                                         ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/.git/config")}):
        target = path.replace("{", "").replace("}", "")
        answer = nobody(method, target, {"Accept": "text/html"} if len(path) % 2 else {})
        if (method, path) in PUBLIC or (method == "HEAD" and ("GET", path) in PUBLIC):
            assert answer.status != 401 or method == "POST", (method, path)
        else:
            assert answer.status == 401, (method, path, answer.status)
            says_nothing(studio, answer)
    assert nobody("GET", "/static/favicon.svg").status == 200
    for wrong in ("x" * 43, studio.login_token, studio.token[:-1], ""):
        assert nobody("GET", "/api/v1/runs", {"Authorization": f"Bearer {wrong}"}).status == 401
        assert nobody("GET", f"/?token={wrong}" if wrong != studio.login_token else "/").status == 401
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", studio.login_token), "256 bits that nobody chose"


def test_s2_a_websocket_without_a_session_is_refused_before_it_opens(nobody: Raw, studio: RunningStudio) -> None:
    assert nobody.handshake() == 401
    assert nobody.handshake(Origin=studio.url) == 401
    assert nobody.handshake(Authorization="Bearer " + "x" * 43) == 401
    assert nobody.handshake(Authorization=f"Basic {studio.token}") == 401
    assert nobody.handshake(Cookie="studio_00000000=x", Origin=studio.url) == 401
    assert nobody.handshake(Authorization=f"Bearer {studio.token}") == 101


def test_s3_a_websocket_of_a_foreign_page_is_refused(nobody: Raw, studio: RunningStudio, cookie: str) -> None:
    port = studio.url.rsplit(":", 1)[1]
    for origin in (EVIL, "null", f"http://localhost.evil.example:{port}", f"http://127.0.0.1.evil.example:{port}",
                   f"http://localhost:{port}", "http://127.0.0.1:1", "http://127.0.0.1", "", None):
        assert nobody.handshake(Cookie=cookie, Origin=origin) == 403, origin
    assert nobody.handshake(Cookie=cookie, Origin=studio.url, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert nobody.handshake(Authorization=f"Bearer {studio.token}", Origin=EVIL) == 403
    assert nobody.handshake(Cookie=cookie, Origin=studio.url) == 101


def test_s4_no_foreign_page_changes_anything(studio: RunningStudio, raw: Raw, nobody: Raw, cookie: str, dialogues: dict,
                                             operations: list[tuple[str, str, dict]]) -> None:
    run = raw.json("POST", "/api/v1/runs", {"stage": "pretrain", "config": {**SMALL, "max_steps": 2}}).json()
    studio.client.post(f"/runs/{run['id']}/cancel")
    studio.client.wait_run(run["id"])
    talk = studio.client.post("/conversations", {"title": "mine"})
    there = {"runs": run["id"], "datasets": dialogues["id"], "conversations": talk["id"]}
    before = rows(raw)
    body = {"stage": "pretrain", "name": "x", "title": "x", "token": studio.login_token, "config": {"max_steps": 1}}
    good = {"/api/v1/runs": {"stage": "pretrain"}, "/api/v1/preflight": {"stage": "pretrain"},
            "/api/v1/runs/{id}": {"name": "x"}, "/api/v1/pipelines": {"name": "x", "stages": [{"stage": "pretrain"}]},
            "/api/v1/datasets": {"source": {"kind": "starter"}}, "/api/v1/tokenizers": {"dataset_id": dialogues["id"]},
            "/api/v1/login": {"token": studio.login_token}}
    text = {"Content-Type": "text/plain"}
    foreign = [{"Origin": EVIL}, {"Origin": "null"}, {"Origin": EVIL, **text}, text, {"Sec-Fetch-Site": "cross-site"},
               {"Sec-Fetch-Site": "same-site", "Origin": studio.url},
               {"Origin": EVIL, "Authorization": f"Bearer {studio.token}"}]
    unsafe = [(m, p, w) for m, p, w in operations if m not in ("GET", "HEAD")]
    unsafe += [("POST", "/login", {}), ("POST", "/logout", {}), ("PUT", "/api/v1/runs/{id}", {})]
    assert len(unsafe) > 20
    for method, path, what in unsafe:
        target = path.replace("{id}", there.get(path.split("/")[3] if path.count("/") > 2 else "", "none"))
        for headers in foreign:
            answer = nobody.json(method, target, body, Cookie=cookie, **headers)
            assert answer.status == 403, (method, target, headers, answer.status)
        if "application/json" in what.get("requestBody", {}).get("content", {}) and what["requestBody"].get("required"):
            # our own page and a body that would do, but of a type that a plain form could have sent as well
            valid = good.get(path, {"title": "x"})
            answer = nobody.json(method, target, valid, Cookie=cookie, Origin=studio.url, **text)
            assert answer.status in (415, 422) and "set-cookie" not in answer.headers, (method, target, answer.status)
    assert rows(raw) == before
    assert nobody("GET", "/api/v1/me", {"Cookie": cookie}).status == 200, "nobody was logged out"
    own = nobody.json("DELETE", f"/api/v1/conversations/{talk['id']}", None, Cookie=cookie, Origin=studio.url)
    assert own.status == 204, "the same from our own page"


def test_s5_an_origin_is_ours_only_letter_by_letter(nobody: Raw, studio: RunningStudio, cookie: str) -> None:
    port = studio.url.rsplit(":", 1)[1]
    here = f"127.0.0.1:{port}"
    origins = [
        f"HTTP://{here}", f"http://{here}/", f"http://{here}/x", f"http://{here}?", f"http://{here}#",
        f"http://{here} x", f"http://user@{here}", f"http://{here}@evil.example", f"http://evil.example@{here}",
        f"http://{here}.evil.example", f"http://evil.example/{here}", f"http://evil.example#{here}",
        f"http://127.0.0.1.:{port}", f"http://{here}0",
        f"http://127.0.0.1:0{port}", "http://127.0.0.1", f"http://localhost:{port}", f"http://[::1]:{port}",
        f"http://[::ffff:127.0.0.1]:{port}", f"http://2130706433:{port}", f"http://0x7f.1:{port}",
        f"http://１２７.0.0.1:{port}", f"http://127。0。0。1:{port}", f"ws://{here}", f"file://{here}",
        "null", "NULL", "", f"http://{here}, {EVIL}", f"{EVIL}, http://{here}", f"//{here}", here,
    ]
    for origin in origins:
        answer = nobody("DELETE", "/api/v1/runs/none", {"Cookie": cookie, "Origin": origin})
        assert answer.status == 403, (origin, answer.status)
    for origin in (f"http://{here}", f"https://{here}"):  # https: a proxy may stand in between
        assert nobody("DELETE", "/api/v1/runs/none", {"Cookie": cookie, "Origin": origin}).status == 404
    two = {"Cookie": cookie, "Origin": f"http://{here}\r\nOrigin: {EVIL}"}
    assert nobody("DELETE", "/api/v1/runs/none", two).status == 403


def test_s6_a_name_that_is_not_ours_is_refused(raw: Raw, studio: RunningStudio) -> None:
    port = studio.url.rsplit(":", 1)[1]
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", f"localhost.:{port}",
                 f"127.0.0.1:{port}@evil.example", f"169.254.169.254:{port}", f"0.0.0.0:{port}", f"[::]:{port}",
                 f"2130706433:{port}", f"localhost:{port}/x", "", None,
                 f"127.0.0.1:{port}\r\nHost: evil.example"):
        for path in ("/", "/api/v1/runs", "/static/favicon.svg", "/healthz"):
            assert raw("GET", path, {"Host": host}).status == 400, (host, path)
        assert raw("POST", "/api/v1/runs", {"Host": host, "Origin": f"http://{host}"}).status in (400, 403), host
        assert raw.handshake(Host=host) == 400, host
        assert raw.handshake(Host=host, Origin=f"http://{host}") in (400, 403), host
    # a browser that was rebound still sends the attacker's name, whatever it says of itself
    assert raw("GET", "/api/v1/runs", {"Host": "evil.example", "User-Agent": "curl/8"}).status == 400
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost"):
        assert raw("GET", "/api/v1/runs", {"Host": host}).status == 200, host
        assert raw.handshake(Host=host, Origin=f"http://{host}") == 101, host


# -- names, files, templates --------------------------------------------------------------------------------------


def test_s7_no_name_in_an_address_is_a_path(studio: RunningStudio, raw: Raw, home: Path,
                                            operations: list[tuple[str, str, dict]]) -> None:
    known = [(m, p) for m, p, _ in operations if "{" in p] + [("GET", p) for m, p in pages() if m == "GET" and "{" in p
                                                              and not p.startswith(("/api", "/v1"))]
    assert len(known) > 25
    opening = ("/download", "/logs", "/preview", "{id}", "{model_id}")  # those that end in a file, or in a row
    for method, path in sorted(set(known)):
        names = NAMES if method == "GET" and path.endswith(opening) else NAMES[:4]
        for name in names:
            for segment in in_a_path(name):
                target = re.sub(r"\{\w+\}", lambda _, segment=segment: segment, path)
                answer = raw.json(method, target, {})
                assert 400 <= answer.status < 500, (method, path, name, answer.status)
                says_nothing(studio, answer)
    up = "../" * 12
    for name in [*NAMES, "../../pyproject.toml", "../pyproject.toml", "js/../../pyproject.toml", up + "etc/passwd",
                 f"{up}{home}/canary.txt".replace("//", "/"), str(home / "canary.txt"), "manifest.json\0.css"]:
        for prefix in ("/static/", "/static/dist/"):
            for segment in {*in_a_path(name), quote(name), name.replace("../", "%2e%2e/").replace("\0", "%00")}:
                if segment.isascii() and segment.isprintable() and " " not in segment:
                    answer = raw("GET", prefix + segment)
                    assert answer.status in (400, 404), (prefix, segment, answer.status)
                    says_nothing(studio, answer)
    for name in NAMES:
        shown = {"Cookie": f"studio_language={quote(name)}; studio_theme={quote(name)}", "Accept-Language": quote(name)}
        assert raw("GET", "/system", shown).status == 200, name


def test_s7_no_name_of_a_thing_is_a_path(studio: RunningStudio, raw: Raw, tokenizer_files: tuple[bytes, dict]) -> None:
    content, _ = tokenizer_files
    for name in NAMES:
        for given in (name.encode(), quote(name, safe="").encode()):
            answer = raw.upload("/api/v1/tokenizers", {"file": (given.replace(b'"', b""), content)})
            if answer.status == 201:
                shown = answer.json()["name"]
                assert not re.search(r"[/\\\x00-\x1f]", shown) and len(shown) <= 200, (given, shown)
            else:  # a header with a zero byte is no header
                assert answer.status == 422, (given, answer.text)
            says_nothing(studio, answer)
        for place, body in (
                ("runs", {"stage": name, "dataset_id": name, "config": {"tokenizer": name}}),
                ("runs", {"stage": "sft", "base_checkpoint_id": name}),
                ("runs", {"stage": "pretrain", "config": {"data_path": name, "from_weight": name, "out": name}}),
                ("tokenizers", {"dataset_id": name}), ("conversations", {"checkpoint_id": f"{name}/x"}),
                ("datasets", {"source": {"kind": "path", "path": name}}),
                ("pipelines", {"name": "x", "stages": [{"stage": "pretrain", "dataset_id": name}]})):
            answer = raw.json("POST", f"/api/v1/{place}", body)
            assert answer.status == 422, (place, name, answer.status)
            assert CANARY_TEXT not in answer.text
        key = raw.json("POST", "/api/v1/conversations", {"title": "kept"}, **{"Idempotency-Key": quote(name)})
        assert key.status in (201, 422), name
    made = sorted(p.name for p in (studio.data_dir / "tokenizers").iterdir())
    assert len(made) > len(NAMES) and all(ID.fullmatch(name) for name in made), "ids of ours alone"
    assert list((studio.data_dir / "uploads").iterdir()) == []


def test_s8_archives_are_no_text_and_nobody_unpacks_them(studio: RunningStudio, raw: Raw, home: Path) -> None:
    packed = rig.archives(home)
    web = studio.role("web")[0].pid
    before = {p for p in studio.data_dir.rglob("*") if "runs" not in p.parts}
    with Ping(raw, web) as ping:
        for name, content in packed.items():
            answer = raw.upload("/api/v1/tokenizers", {"file": (b"tokenizer.json", content)})
            assert answer.status == 422, (name, answer.text)
            says_nothing(studio, answer)
        imported = {name: upload(studio.client, packed[name], name).json() for name in
                    ("bomb.zip", "links.tar.gz", "rows.jsonl.gz")}
        for name, dataset in imported.items():
            dataset = studio.client.wait_ready("datasets", dataset["id"])
            assert dataset["state"] == "failed" and dataset["error"]["message"], (name, dataset)
    left = {p for p in studio.data_dir.rglob("*") if "runs" not in p.parts} - before
    assert all("logs" in p.parts or p.name.startswith("studio.db") for p in left), left
    assert ping.grown_mb < 150, f"{ping.grown_mb:.0f} MB for archives of {max(map(len, packed.values())) / 1e6:.1f} MB"


#: chat templates that want more than to write down a dialogue
TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    f"{{{{ cycler.__init__.__globals__.os.popen('{TOUCH}').read() }}}}",
    f"{{{{ (messages|attr('__class__')).__base__.__subclasses__()[0]('{TOUCH}') }}}}",
    f"{{{{ lipsum.__globals__['os'].system('{TOUCH}') }}}}", "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}", "{{ namespace.__init__.__globals__ }}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}{{ os.system('id') }}", "{{ messages.append(1) }}",
    "{% for i in range(10**9) %}x{% endfor %}", "{% for i in range(1000000000) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**9 }}", "{{ 'a' * 1000000000 }}", "{{ 9**9**9 }}",
    "{{ ['x' * 8000000] * 15 }}", "{{ [[['x' * 800000] * 100] * 100] * 100 }}",
    "{{ [[['x'] * 999] * 999] * 99|tojson }}",
    "{% set a = ['x'] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "{% set a = {'k': 1} %}" + "{% set a = dict(x=a, y=a) %}" * 40 + "{{ a|string }}",
    "{% set a = (1,) %}{% set b = (1,) %}" + "{% set a = (a, a) %}{% set b = (b, b) %}" * 40 + "{{ a == b }}",
    "{% set n = namespace(s='') %}{% set l = [n] * 99999 %}{% set n.s = 'x' * 8000000 %}{{ l }}",
    "{% set b = 'x' * 8000000 %}{{ range(99999)|map(attribute='z', default=b)|list|join }}",
]


def test_s11_a_chat_template_is_a_program_that_gets_nowhere(
        studio: RunningStudio, raw: Raw, tokenizer_files: tuple[bytes, dict], dialogues: dict) -> None:
    content, config = tokenizer_files

    def taken(template: Any) -> Answer:
        with_it = json.dumps({**config, "chat_template": template}).encode()
        return raw.upload("/api/v1/tokenizers", {"file": (b"tokenizer.json", content),
                                                 "config": (b"tokenizer_config.json", with_it)})

    for too_much in ("x" * (1 << 20), ["x"], {"default": "x"}, 7):
        assert taken(too_much).status == 422
    with Ping(raw, studio.role("web")[0].pid) as ping:
        for template in TEMPLATES:
            answer = taken(template)
            if answer.status == 201:  # it is only run when somebody has something to say
                id = answer.json()["id"]
                for path in (f"preview?tokenizer={id}", f"tokens?tokenizer={id}")[:1 if len(template) > 200 else 2]:
                    answer = raw("GET", f"/api/v1/datasets/{dialogues['id']}/{path}", timeout_s=60)
                    assert answer.status == 422 and "template" in answer.text, (template, answer.text[:300])
                    says_nothing(studio, answer)
            assert answer.status == 422, template
    assert ping.typical_s < 1 and ping.grown_mb < 500, (ping.typical_s, ping.grown_mb)
    fine = taken(config["chat_template"]).json()["id"]
    assert raw("GET", f"/api/v1/datasets/{dialogues['id']}/preview?tokenizer={fine}").status == 200


QUERIES = [
    "' OR 1=1 --", "\" OR \"\"=\"", "%' OR '1'='1", "1; DROP TABLE run; --", "%", "_", "\\", "\\%",
    "name:x AND state:*", "run.state == 'failed'", "lambda: 0", "__import__('os').system('touch x')", f"$({TOUCH})",
    "{{31337*7}}", "{0.__class__}", "%s%n%x", "(((((((((((", "[a-z]*+?", "(a+)+$", "a" * 200, "NULL", "-1", "1e999",
    "NaN", "\u202e", "😀",
]


def test_s13_a_filter_is_text_and_nothing_is_evaluated(studio: RunningStudio, raw: Raw) -> None:
    """Every query parameter of every list and page, filled with things that some language would evaluate."""
    before = rows(raw)
    asked = [f"/api/v1/runs?{k}=" for k in ("text", "tag", "stage", "state", "pipeline_id", "cursor", "limit")]
    asked += [f"/api/v1/{place}?{key}=" for place, key in (
        ("checkpoints", "run_id"), ("checkpoints", "stage"), ("jobs", "kind"), ("jobs", "state"),
        ("pipelines", "state"), ("tokenizers", "state"), ("datasets", "cursor"), ("conversations", "cursor"))]
    asked += [f"/runs?{k}=" for k in ("text", "tag", "stage", "state", "cursor")]
    asked += ["/checkpoints?stage=", "/checkpoints?run=", "/datasets?cursor=", "/chat?checkpoint=", "/runs/new?clone=",
              "/runs/new?stage=", "/runs/new?dataset=", "/runs/new?checkpoint="]
    for target in asked:
        for query in QUERIES:
            answer = raw("GET", target + quote(query), {"Accept": "text/html"})
            assert answer.status in (200, 303, 404, 422), (target, query, answer.status)
            says_nothing(studio, answer)
            if answer.status == 200 and target.startswith(("/api/v1/runs", "/api/v1/checkpoints", "/api/v1/jobs")):
                assert answer.json()["items"] == [], (target, query)
            assert "219359" not in answer.text, (target, "a template was rendered")
    assert raw("GET", "/api/v1/runs?text=%00").status == 422
    assert rows(raw) == before


def test_s16_the_session_is_in_a_cookie_that_no_script_sees(login: Answer, studio: RunningStudio) -> None:
    name, *flags = [part.strip() for part in login.headers["set-cookie"].split(";")]
    assert {"httponly", "samesite=strict", "path=/"} <= {flag.lower() for flag in flags}
    assert "domain" not in login.headers["set-cookie"].lower() and len(name.split("=")[1]) >= 43
    assert name.split("=")[1] not in login.text and studio.login_token not in login.text
    assert login.headers["cache-control"] == "no-store" and login.headers["referrer-policy"] == "same-origin"
    for path in sorted((ROOT / "static" / "js").rglob("*.js")):
        source = path.read_text()
        assert not re.search(r"\b(localStorage|sessionStorage|indexedDB|openDatabase)\b", source), path.name
        for written in re.findall(r"document\.cookie\s*=[^;]*", source):
            assert "${cookie}" in written, (path.name, written)
        if "document.cookie" in source:  # theme, language and the wish for tokens are all that a script keeps
            kept = re.findall(r'\bkeep\("(\w+)"', source)
            assert kept and set(kept) <= {"studio_theme", "studio_language", "studio_tokens"}, (path.name, kept)


# -- a run that was told to do something else ---------------------------------------------------------------------


@dataclass
class Told:
    """A finished run of two ranks, and what was seen of the studio's processes while it lived."""

    run: dict
    argvs: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    heard: set[tuple[str, str, str]] = field(default_factory=set)  # process, address, kind


HOSTILE = [f"; {TOUCH};", f"$({TOUCH})", f"`{TOUCH}`", f"| {TOUCH} #", f"-x;{TOUCH}", "--resume=/etc/passwd", "-rf",
           f"'\"; {TOUCH} #", f"{{{{ {TOUCH} }}}}", "%(id)s {0} ${PATH}"]


@pytest.fixture(scope="module")
def embedded(studio: RunningStudio) -> Path:
    """The embedded broker's socket."""
    if not studio.role("broker"):
        pytest.skip("a broker was given (STUDIO_TEST_REDIS_URL): it is not ours to attack")
    return Path(re.search(r'^unixsocket "(.+)"$', (studio.data_dir / "broker" / "valkey.conf").read_text(),
                          re.MULTILINE)[1])


@pytest.fixture(scope="module")
def poisoned(studio: RunningStudio, embedded: Path, canary: Path) -> str:
    """The worker's log after the queue held a pickle, a task that is none, and rubbish."""
    import redis

    password = (studio.data_dir / "secrets" / "broker-password").read_text().strip()
    log = studio.data_dir / "logs" / "worker.log"
    with redis.Redis(unix_socket_path=str(embedded), password=password) as broker:
        deadline = time.monotonic() + 30
        while not (bound := broker.keys("*celery:_kombu.binding.wake")):  # Celery takes a moment to start
            assert time.monotonic() < deadline, broker.keys("*")
            time.sleep(0.1)
        queue = bound[0].replace(b"_kombu.binding.wake", b"wake")
        broker.lpush(queue, rig.pickled_task(canary), rig.unknown_task())
        while not ("content of type pickle" in log.read_text() and "'os.system'" in log.read_text()):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        assert broker.llen(queue) == 0
        broker.lpush(queue, rig.celery_message(b"{}", "application/json", encoding="utf-8"), "no message at all")
    return log.read_text()


@pytest.fixture(scope="module")
def told(studio: RunningStudio, raw: Raw, request: pytest.FixtureRequest) -> Told:
    if studio.role("broker"):
        request.getfixturevalue("poisoned")  # the run shows that the queue still works
    dataset = ready_dataset(studio.client, text_jsonl(rows=40), name=f"{HOSTILE[0]}.jsonl")
    body = {"stage": "pretrain", "name": HOSTILE[1], "dataset_id": dataset["id"], "devices": TWO_RANKS,
            "tags": HOSTILE, "notes": "\n".join(HOSTILE),
            "config": {**SMALL, "max_steps": 2, "vocab_size": 400, "use_wandb": True, "wandb_project": HOSTILE[2],
                       "wandb_run_name": "\n".join(HOSTILE)}}
    told = Told(raw.json("POST", "/api/v1/runs", body, **{"Idempotency-Key": "$(id)"}).json())
    over = threading.Event()
    watcher = threading.Thread(target=watch, args=(studio, told, over))
    watcher.start()
    try:
        told.run = studio.client.wait_run(told.run["id"], ("completed",), timeout_s=120)
    finally:
        over.set()
        watcher.join()
    return told


def watch(studio: RunningStudio, told: Told, over: threading.Event) -> None:
    """Write down what the studio's processes are called and where they listen, until it is over."""
    while not over.wait(0.1):
        for process in studio.processes():
            try:
                argv = tuple(process.cmdline())
                name = next((n for n in ("worker.runner", "worker.launcher", "train.py", "worker.cli", "worker.main",
                                         "valkey", "wandb") if any(n in a for a in argv)), "other")
                told.argvs.setdefault(name, set()).add(argv)
                told.heard |= {(name, c.laddr.ip, str(c.type)) for c in process.net_connections("inet")
                               if c.status in (psutil.CONN_LISTEN, psutil.CONN_NONE) and c.laddr}
            except psutil.Error:
                continue  # it has just ended


def test_s12_no_string_of_a_request_becomes_part_of_a_command(studio: RunningStudio, raw: Raw, told: Told) -> None:
    assert {"worker.runner", "worker.launcher", "train.py"} <= told.argvs.keys(), "runner, torchrun and ranks were seen"
    run_dir = str(studio.data_dir / "runs" / told.run["id"])
    for argv in told.argvs["train.py"] | told.argvs["worker.launcher"]:
        assert argv[argv.index("--out") + 1] == run_dir and "-c" not in argv
    for name, argvs in told.argvs.items():
        for argv in argvs:
            said = "\n".join(argv)
            assert CANARY_VARIABLE not in said and not any(text in argv for text in HOSTILE), (name, argv)
    shown = studio.client.get(f"/runs/{told.run['id']}")
    assert shown["name"] == HOSTILE[1] and shown["tags"] == HOSTILE and shown["config"]["wandb_project"] == HOSTILE[2]
    for hostile in [*HOSTILE, f"x\n{TOUCH}"]:
        for config in ({"preset": hostile}, {"dtype": hostile}, {"attention": hostile}, {"tokenizer": hostile},
                       {"languages": [hostile]}, {"optimizer": hostile}, {hostile: 1}, {"max_steps": hostile}):
            assert raw.json("POST", "/api/v1/runs", {"stage": "pretrain", "config": config}).status == 422, config
        for body in ({"stage": hostile}, {"devices": hostile}, {"devices": [hostile]}, {"nodes": hostile},
                     {"priority": hostile}, {"dataset_id": hostile}):
            assert raw.json("POST", "/api/v1/runs", {"stage": "pretrain", **body}).status == 422, body
    assert raw.json("PATCH", f"/api/v1/runs/{told.run['id']}", {"name": f"x\n{TOUCH}"}).status == 422


def test_s19_a_secret_of_the_environment_is_nowhere_else(studio: RunningStudio, raw: Raw, told: Told,
                                                         cookie: str) -> None:
    """The run used wandb (offline), so its key was in use."""
    run_id = told.run["id"]
    assert list((studio.data_dir / "runs" / run_id).rglob("*.wandb")), "wandb was there"
    password = studio.data_dir / "secrets" / "broker-password"
    secret = {"wandb key": WANDB_KEY, "login token": studio.login_token, "API token": studio.token,
              "session": cookie.split("=")[1]}
    if password.exists():
        secret["broker password"] = password.read_text().strip()
    for process in studio.processes():
        said = " ".join(process.cmdline())
        assert not any(value in said for value in secret.values()), process
    for argvs in told.argvs.values():
        assert not any(value in a for argv in argvs for a in argv for value in secret.values())
    kept = {password, studio.data_dir / "broker" / "valkey.conf"}  # where it belongs
    for path in studio.data_dir.rglob("*"):
        if path.is_file() and path not in kept:
            content = path.read_bytes()
            for name, value in secret.items():
                assert value.encode() not in content, f"the {name} is in {path}"
    for path in kept:
        assert not path.exists() or stat.S_IMODE(path.stat().st_mode) == 0o600
    checkpoint = studio.client.get(f"/runs/{run_id}/checkpoints")["items"][-1]["id"]
    for path in ("runs", f"runs/{run_id}", f"runs/{run_id}/events", f"runs/{run_id}/logs", "system", "jobs", "stages",
                 f"checkpoints/{checkpoint}", f"checkpoints/{checkpoint}/download", "me"):
        answer = raw("GET", f"/api/v1/{path}")
        assert answer.status == 200 and not any(v.encode() in answer.body for v in secret.values()), path
    for path in ("/system", f"/runs/{run_id}", "/metrics", "/readyz", "/api/docs"):
        assert not any(v in raw("GET", path).text for v in secret.values()), path


def test_s20_the_broker_is_private_and_carries_no_code(studio: RunningStudio, embedded: Path, poisoned: str,
                                                       told: Told) -> None:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    broker = studio.role("broker")[0]
    assert broker.net_connections("inet") == [], "no TCP listener"
    assert stat.S_IMODE(embedded.stat().st_mode) == 0o700 and stat.S_IMODE(embedded.parent.stat().st_mode) == 0o700
    assert embedded.stat().st_uid == embedded.parent.stat().st_uid == os.geteuid()
    with redis.Redis(unix_socket_path=str(embedded), retry=Retry(NoBackoff(), 0)) as stranger:
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
    assert "Refusing to deserialize untrusted content of type pickle" in poisoned
    assert "Received unregistered task of type 'os.system'" in poisoned
    assert told.run["state"] == "completed", "a run that was queued after it"


def test_s22_only_this_machine_and_this_user_are_let_in(studio: RunningStudio, raw: Raw, told: Told,
                                                        home: Path) -> None:
    assert stat.S_IMODE(studio.data_dir.stat().st_mode) == 0o700
    for path in studio.data_dir.iterdir():
        assert not path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o700, path
    heard = {(name, ip) for name, ip, _ in told.heard}
    assert ("worker.cli", "127.0.0.1") in heard and ("worker.launcher", "127.0.0.1") in heard
    assert {ip for _, ip in heard} <= {"127.0.0.1", "::1"}, heard
    for method, path, body in (
            ("GET", "/nowhere", b""), ("GET", "/api/v1/runs/none", b""), ("POST", "/api/v1/runs", b"{"),
            ("POST", "/api/v1/runs", b"\xff"), ("POST", "/api/v1/runs", b'{"stage": 1, "config": []}'),
            ("POST", "/api/v1/tokenizers", b"[]"), ("POST", "/api/v1/login", b'{"token": 1}'), ("PUT", "/runs", b""),
            ("GET", "/api/v1/runs?limit=x", b""), ("POST", "/v1/chat/completions", b'{"model": 1, "messages": 1}')):
        for accept in ("text/html", "application/json"):
            answer = raw(method, path, {"Content-Type": "application/json", "Accept": accept}, body)
            assert 400 <= answer.status < 500 and "server" not in answer.headers, (path, answer.status)
            says_nothing(studio, answer)
    alone = RunningStudio(home / "other")
    try:
        refused = alone.command("web", "--host", "0.0.0.0", "--port", "0")
        assert refused.returncode == 2 and "user add" in refused.stderr and "Traceback" not in refused.stderr
    finally:
        alone.close()
        shutil.rmtree(home / "other")


# -- too much -----------------------------------------------------------------------------------------------------


def test_s21_too_much_is_refused_and_hurts_nobody_else(studio: RunningStudio, raw: Raw) -> None:
    web = studio.role("web")[0].pid
    largest = max((p for p in (ROOT / "static").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    asset = "/static/" + largest.relative_to(ROOT / "static").as_posix()
    as_json = {"Content-Type": "application/json"}
    big = bytes(16 << 20)
    with Ping(raw, web) as ping:
        assert raw.upload("/api/v1/datasets", {"file": (b"x.txt", b"x")}, name="x" * (32 << 20)).status == 413
        assert raw.upload("/api/v1/datasets", {"file": (b"x.txt", b"x")},
                          **{f"f{n}": "x" for n in range(1000)}).status == 422
        assert raw("POST", "/login", {"Content-Type": "application/x-www-form-urlencoded"},
                   b"name=" + b"x" * (3 << 20)).status in (400, 413, 422)
        assert raw("POST", "/login", {"Content-Type": "application/x-www-form-urlencoded"}, b"a&" * 500_000).status in (
            400, 401, 413, 422)
        assert raw("POST", "/api/v1/runs", as_json, big).status == 413
        chunked = {**as_json, "Content-Length": None, "Transfer-Encoding": "chunked"}
        assert raw("POST", "/api/v1/runs", chunked, b"%x\r\n%s\r\n0\r\n\r\n" % (len(big), big)).status == 413
        for depth in (400, 900, 100_000):
            deep = b"[" * depth + b"]" * depth
            for path, body in (("/api/v1/runs", b'{"stage": "pretrain", "config": {"a": %s}}' % deep),
                               ("/api/v1/runs", b'{"stage": "pretrain", "devices": %s}' % deep),
                               ("/api/v1/preflight", b'{"stage": "pretrain", "config": {"a": %s}}' % deep),
                               ("/api/v1/datasets", b'{"source": %s}' % deep), ("/api/v1/conversations", deep),
                               ("/api/v1/tokenizers", b'{"dataset_id": %s}' % deep),
                               ("/v1/chat/completions", b'{"model": "x", "messages": %s}' % deep)):
                began = time.monotonic()
                assert raw("POST", path, as_json, body).status in (400, 413, 422), (path, depth)
                assert time.monotonic() - began < 4, (path, depth)
        assert raw("POST", "/api/v1/runs", as_json, b'{"stage": "pretrain", "config": {"max_steps": %s}}'
                   % (b"9" * 100_000)).status == 422
        for ranges in (",".join(f"{3 * n}-{3 * n}" for n in range(10_000)), ",".join(["0-"] * 20_000), "0-,-1" * 5000):
            answer = raw("GET", asset, {"Range": f"bytes={ranges}"})
            assert answer.status in (200, 206, 400, 416, 431), answer.status
            assert len(answer.body) < 2 * largest.stat().st_size + (4 << 20)
        assert raw("GET", "/healthz", {f"X-{n}": "x" * 100 for n in range(2000)}).status in (0, 200, 400, 431)
        assert raw("GET", "/api/v1/runs?text=" + "x" * 200_000).status in (400, 414, 422)
        for frame in ("x" * (1 << 20), "[" * 60_000, b"\0" * 1000):
            with connect(f"{studio.url.replace('http', 'ws')}/api/v1/live", proxy=None, open_timeout=20,
                         additional_headers={"Authorization": f"Bearer {studio.token}"}) as live:
                live.send(frame)
                try:
                    assert json.loads(live.recv(timeout=20))["type"] == "error"
                except ConnectionClosed as closed:
                    assert closed.rcvd.code in (1003, 1009, 4409)
    assert ping.typical_s < 1, f"nine of ten innocent requests took up to {ping.typical_s:.2f} s"
    assert ping.grown_mb < 300, f"{ping.grown_mb:.0f} MB more"
    assert list((studio.data_dir / "uploads").iterdir()) == []
