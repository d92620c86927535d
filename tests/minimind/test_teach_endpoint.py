"""A teacher behind an address: servers that have their moods, and addresses that are not asked."""

from __future__ import annotations

import time

import pytest

from minimind.teach.address import check_ip, parse_address
from minimind.teach.endpoint import Endpoint
from minimind.teach.journal import Journal
from minimind.teach.loop import answer_all, said_of_left_out
from minimind.teach.teachers import Answer, TeacherError
from tests.teacher_rig import KEY, Server, asked, echo, write_questions


def endpoint(server: Server | str, **options: object) -> Endpoint:
    options = {"first_wait_s": 0.02, "patience_s": 1.0, "timeout_s": 5.0, **options}
    return Endpoint(server if isinstance(server, str) else server.url, "small", KEY, **options)


def ask(teacher: Endpoint, text: str = "hi") -> Answer:
    return teacher.ask([{"role": "user", "content": text}], 1, lambda: False)


# -- a server that has its moods ----------------------------------------------------------------------------------


def test_429_is_waited_for_as_the_server_asks(serve):
    server = serve(lambda body, count: (429, {"Retry-After": "0.4"}, {}) if count == 1 else echo(body, count))
    began = time.monotonic()
    assert ask(endpoint(server)).content == "You asked: hi"
    assert time.monotonic() - began >= 0.4 and len(server.bodies) == 2


def test_a_longer_wait_than_our_patience_is_said_at_once(serve):
    server = serve(lambda body, count: (429, {"Retry-After": "3600"}, {"error": {"message": "quota"}}))
    with pytest.raises(TeacherError, match='status 429: "quota" .*it asks to wait 3600 s'):
        ask(endpoint(server))
    assert len(server.bodies) == 1


def test_a_server_that_fails_is_tried_again_and_given_up(serve):
    server = serve(lambda body, count: (503, {}, b"<html>busy</html>"))
    with pytest.raises(TeacherError, match="status 503.*try [0-9]+"):
        ask(endpoint(server, patience_s=0.3))
    assert 3 <= len(server.bodies) <= 10


def test_one_question_that_fails_alone_is_left_out(tmp_path, serve):
    server = serve(lambda body, count: (500, {}, {}) if asked(body) == "What is 2?"
                   else time.sleep(0.02) or echo(body, count))
    questions = write_questions(tmp_path / "q.jsonl", 20)
    with Journal(tmp_path / "part", {}) as journal:
        answer_all(questions, endpoint(server, patience_s=0.3), journal, total=20, concurrency=2)
        assert (journal.answered, journal.left_out) == (19, {"failed": 1})
        assert said_of_left_out(journal) == "1 question was left out: 1 failed again and again."


def test_a_slow_server_is_asked_again(serve):
    server = serve(lambda body, count: time.sleep(1.0 if count == 1 else 0) or echo(body, count))
    assert ask(endpoint(server, timeout_s=0.2)).content == "You asked: hi" and len(server.bodies) == 2
    drips = serve(lambda body, count: (200, {"Content-Length": "100"}, b"{"))
    with pytest.raises(TeacherError, match="has not answered within 0.2 s|broke"):
        ask(endpoint(drips, timeout_s=0.2, patience_s=0.4))


def test_an_answer_that_is_too_large_is_not_read(serve, monkeypatch):
    monkeypatch.setattr("minimind.teach.endpoint.MAX_ANSWER_BYTES", 1 << 20)
    with pytest.raises(TeacherError, match="larger than 1 MiB"):
        ask(endpoint(serve(lambda body, count: (200, {}, b"x" * (2 << 20))), patience_s=0.1))


@pytest.mark.parametrize(("reply", "words"), [
    ((401, {}, {"error": {"message": f"wrong key {KEY}"}}), "refuses the key .status 401.: \"wrong key …\""),
    ((404, {}, {"error": {"message": "no such model"}}), "knows no model small.*It serves small, large"),
    ((307, {"Location": "http://169.254.169.254/v1"}, b""), "sends on to http://169.254.169.254/v1"),
    ((405, {}, b"<html>"), "refuses the request .status 405."),
    ((200, {}, b"<html>Welcome to nginx"), 'not a chat completion of OpenAI\'s shape: "<html>Welcome'),
    ((200, {}, {"choices": []}), "not a chat completion"),
    ((200, {}, {"choices": [{"message": {"content": 3}}]}), "not a chat completion"),
    ((200, {}, b"[" * 200_000), "not a chat completion"),
])
def test_what_will_not_pass_is_one_sentence_at_once(serve, reply, words):
    server = serve(lambda body, count: reply)
    with pytest.raises(TeacherError, match=words) as caught:
        ask(endpoint(server, patience_s=30))
    assert KEY not in str(caught.value) and len(server.bodies) == 1


def test_nobody_there(serve):
    server = serve()
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(TeacherError, match="Nobody answers at http://127.0.0.1.*refused"):
        ask(endpoint(url, patience_s=30))
    began = time.monotonic()  # one that has answered before is waited for
    with pytest.raises(TeacherError, match="try"):
        ask(endpoint(url, patience_s=0.3, has_answered=True))
    assert time.monotonic() - began > 0.1


def test_newer_models_count_their_tokens_under_another_name(serve):
    def reply(body: dict, count: int) -> tuple:
        if "max_tokens" in body:
            return 400, {}, {"error": {"message": "Use 'max_completion_tokens' instead of max_tokens."}}
        return echo(body, count)

    server = serve(reply)
    teacher = endpoint(server, max_tokens=9)
    assert ask(teacher).content and ask(teacher).content
    assert [b.get("max_completion_tokens") for b in server.bodies] == [None, 9, 9]


# -- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "url"), [
    ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1"), ("https://api.example.com/v1/", "https://api.example.com/v1"),
    (" https://a.example:443/x/v2/chat/completions ", "https://a.example/x/v2"), ("http://[::1]:80/v1", "http://[::1]/v1"),
])
def test_addresses_as_people_type_them(typed, url):
    assert parse_address(typed).url == url


@pytest.mark.parametrize("typed", [
    "", "localhost:8000", "file:///etc/passwd", "ftp://a.example", "gopher://a", "http://", "http://u:p@a.example/v1",
    "http://a.example/v1?x=1", "http://a.example/#x", "http://a.example:99999/v1", "http://a b/v1", "http://a\n.example",
    "http://169.254.169.254/v1", "http://[fe80::1%25eth0]/v1", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/v1",
    "http://100.100.100.200/", "http://[fd00:ec2::254]/", "http://224.0.0.1/", "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::]/", "http://a.example/" + "x" * 3000, "http://0xA9FEA9FE/v1", "http://2852039166/v1",
    "http://169.254.43518/", "http://0251.0376.0251.0376/", "http://0/v1", "http://a..example/v1",
    f"http://{'a' * 64}.example/v1",
])
def test_addresses_that_are_refused(typed):
    with pytest.raises(TeacherError) as caught:
        parse_address(typed)
    assert caught.value.field == "endpoint" and caught.value.hint


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "192.168.1.7", "10.0.0.1", "fd12::1", "8.8.8.8"])
def test_ones_own_machines_are_allowed(address):
    check_ip(address)


def test_a_name_is_looked_at_where_it_leads_to(monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))])
    with pytest.raises(TeacherError, match="leads to 169.254.169.254, where no teacher may be"):
        ask(endpoint("http://rebinding.example/v1"))
