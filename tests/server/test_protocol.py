"""Unusual HTTP on raw sockets: framing, versions, targets, preflights and half-open connections."""

import json
import socket
import struct
import time

import httpx
import pytest

from tests.support.running_server import Running

BODY = b'{"prompt": [5, 6], "max_tokens": 1}'
HEADERS = "authorization, content-type, api-key, x-stainless-lang, openai-organization, openai-beta"


def request(line: str, *headers: str, body: bytes = b"", host: str = "localhost") -> bytes:
    lines = [line, f"Host: {host}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def check(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert head.split(b"\r\n")[0].count(b" ") >= 2, "the status line has no reason phrase"
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


POST = "POST /v1/completions HTTP/1.1"
CHUNKED = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(POST, "Content-Length: 5", "Transfer-Encoding: chunked", body=CHUNKED), 400),
        (request(POST, "Content-Length: -5", body=BODY), 400),
        (request(POST, "Content-Length: 5", "Content-Length: 6", body=BODY), 400),
        (request(POST, "Content-Length: " + "9" * 30), 400),
        (request(POST, "Transfer-Encoding: gzip, chunked", body=CHUNKED), 400),
        (request(POST, "Transfer-Encoding: chunked", body=b"zz\r\nab"), 400),
        (request("GET /health HTTP/1.1", "Host: evil.example"), 400),
        (request("GET http://evil.example/health HTTP/1.1"), 400),
        (request("GET //evil.example/health HTTP/1.1"), 404),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (request("CONNECT evil.example:443 HTTP/1.1"), 404),
        (request("OPTIONS * HTTP/1.1"), 404),
    ],
    ids=range(12),
)
def test_malformed_requests_get_one_json_error(server: Running, data: bytes, status: int) -> None:
    check(server.send_raw(data, timeout=20), status)
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize(
    "data",
    [
        request(POST, "Transfer-Encoding: chunked", body=CHUNKED),
        request(POST, f"Content-Length: {len(BODY)}", f"Content-Length: {len(BODY)}", body=BODY),
        request("POST /v1/completions HTTP/1.0", f"Content-Length: {len(BODY)}", body=BODY),
        request("POST http://localhost/v1/completions HTTP/1.1", f"Content-Length: {len(BODY)}", body=BODY),
        request("POST http://localhost:1/v1/completions?a=b HTTP/1.1", f"Content-Length: {len(BODY)}", body=BODY),
        request("GET http://localhost HTTP/1.1"),
        request("GET /health HTTP/1.1", host="[::1]:80"),
    ],
    ids=range(7),
)
def test_unusual_but_valid_requests_are_served(server: Running, data: bytes) -> None:
    assert server.send_raw(data, timeout=20).startswith(b"HTTP/1.1 200 OK\r\n")


def test_expect_continue_is_answered_before_the_body(server: Running) -> None:
    head = request(POST, f"Content-Length: {len(BODY)}", "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("line", "length", "status"),
    [(POST, 99_000_000, 413), ("POST /v1/nothing HTTP/1.1", 50, 404), ("POST /health HTTP/1.1", 50, 405)],
)
def test_a_refused_request_is_not_asked_for_its_body(server: Running, line: str, length: int, status: int) -> None:
    began = time.monotonic()
    check(server.send_raw(request(line, f"Content-Length: {length}", "Expect: 100-continue"), timeout=20), status)
    assert time.monotonic() - began < 2


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    head = f"{POST}\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    answer = server.send_raw((head + BODY) * 2 + request("GET /v1/nothing HTTP/1.1"), timeout=20)
    assert answer.count(b'"text_completion"') == 2
    assert answer.index(b'"not_found"') > answer.rindex(b'"text_completion"')


@pytest.mark.parametrize("abrupt", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("delay", [0.0, 0.05])
@pytest.mark.parametrize("stream", [False, True])
def test_requests_of_clients_that_leave_are_dropped(server: Running, stream: bool, delay: float, abrupt: bool) -> None:
    body = json.dumps(
        {
            "prompt": [5, 6, 7] * 300,
            "max_tokens": 3000,
            **{"logit_bias": {"257": -100, "258": -100, "256": -100}},
            "stream": stream,
            "n": 2,
        }
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        if abrupt:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request(POST, f"Content-Length: {len(body)}", body=body))
        time.sleep(delay)
    server.wait_idle()


def test_preflight_allows_the_headers_that_an_allowed_origin_names(chat_folder) -> None:
    running = Running("--model", str(chat_folder), "--allow-origin", "https://good.example")
    try:
        wanted = {"access-control-request-method": "POST", "access-control-request-headers": HEADERS}

        def preflight(**headers: str) -> httpx.Response:
            return running.client.options("/v1/chat/completions", headers={**wanted, **headers})

        answer = preflight(origin="https://good.example")
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-headers"] == HEADERS
        assert answer.headers["access-control-allow-origin"] == "https://good.example"
        assert answer.headers["vary"] == "Origin"
        local = {"access-control-request-private-network": "true", "origin": "https://good.example"}
        assert preflight(**local).headers["access-control-allow-private-network"] == "true"
        for origin in ("null", "https://good.example.evil.example", "http://good.example", "https://good.example:81"):
            answer = preflight(origin=origin)
            assert answer.status_code == 403
            assert not [name for name in answer.headers if name.startswith("access-control")]
        refused = running.client.get("/v1/nothing", headers={"origin": "https://good.example"})
        assert refused.status_code == 404
        assert refused.headers["access-control-allow-origin"] == "https://good.example"
    finally:
        running.stop()
