"""Hostile clients and web pages are refused with one JSON error per request, and the server keeps running."""

import pytest

from mlx_qwen3.errors import InputError
from mlx_qwen3.server import ServerSettings
from tests.support.running_server import Running

KEY = "sécret-key-of-this-test"


@pytest.fixture(scope="module")
def keyed(chat_folder):
    running = Running("--model", str(chat_folder), "--api-key", KEY, "--allow-origin", "https://good.example")
    yield running
    assert KEY not in running.log
    running.stop()


def check(answer, status, code=None):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    return error


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_other_machines_need_a_key(host):
    with pytest.raises(InputError, match="--api-key"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_key="k").host == host


@pytest.mark.parametrize(
    "options",
    [
        {"port": 70000},
        {"max_batch": 0},
        {"api_key": " "},
        {"api_key": "key\n"},
        {"api_key": "a\nb"},
        {"cache_bytes": -1},
        {"allow_origins": ("*",)},
        {"allow_origins": ("good.example",)},
        {"allow_origins": ("https://good.example/",)},
        {"allow_origins": ("https://Good.example",)},
        {"allow_hosts": ("name:8080",)},
        {"allow_hosts": ("*",)},
        {"allow_hosts": ("http://name",)},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(options):
    with pytest.raises(InputError):
        ServerSettings(**options)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "a b", ""])
def test_foreign_host_names_are_refused(server, host):
    check(server.client.get("/v1/models", headers={"host": host}), 400, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:80", "192.168.0.9", "LOCALHOST"])
def test_names_and_addresses_of_this_machine_are_accepted(server, host):
    assert server.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_other_origins_are_refused(server, keyed):
    answer = server.client.get("/v1/models", headers={"origin": "https://evil.example"})
    check(answer, 403)
    assert "access-control-allow-origin" not in answer.headers
    check(server.client.get("/v1/models", headers={"origin": "null"}), 403)
    own = f"http://127.0.0.1:{server.port}"
    assert server.client.get("/v1/models", headers={"origin": own}).status_code == 200
    preflight = {"origin": "https://good.example", "access-control-request-method": "POST"}
    answer = keyed.client.options("/v1/chat/completions", headers=preflight)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://good.example"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": b"Bearer \xff\xfe"},
        {"authorization": f"Basic {KEY}".encode()},
        {"authorization": KEY.encode()},
        {"authorization": f"Bearer{KEY}".encode()},
        {"authorization": f"Bearer {KEY}x".encode()},
        {"x-api-key": "wrong"},
        {"cookie": f"key={KEY}".encode()},
    ],
    ids=str,
)
def test_a_missing_or_wrong_key_is_401(keyed, headers):
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        check(keyed.client.get(path, headers=headers), 401, "invalid_api_key")


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
def test_the_key_is_accepted_in_each_of_its_headers(keyed, name):
    value = (f"Bearer {KEY}" if name == "authorization" else KEY).encode()
    assert keyed.client.get("/v1/models", headers={name: value}).status_code == 200
    assert keyed.client.get("/health").status_code == 200
    assert keyed.client.get("/").status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/../engine.py", "/page/%2e%2e%2fengine.py", "/page//etc/passwd", "/page/", "/..%2f"]
)
def test_no_path_reaches_the_file_system(server, path):
    answer = server.send_raw(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode(), timeout=10
    )
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"import" not in answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\nConnection: close\r\n\r\n",
    ],
    ids=["tls", "version", "nonsense", "no host", "length", "long header"],
)
def test_malformed_http_is_one_json_error(server, data):
    answer = server.send_raw(data, timeout=10)
    assert answer.startswith(b"HTTP/1.1 4")
    assert b'"error"' in answer
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b'{"prompt": "x", "max_tokens": 1.5}',
        b'{"prompt": "x", "logit_bias": {"x": 1}}',
        b'{"prompt": "x", "logit_bias": {"99999999": 1}}',
        b'{"prompt": [99999999]}',
        b'{"prompt": "x", "n": 99}',
        b'{"prompt": "x", "suffix": "y"}',
    ],
    ids=range(16),
)
def test_invalid_bodies_are_400(server, content):
    check(server.client.post("/v1/completions", content=content), 400)


def test_a_body_above_the_limit_is_413(server):
    check(server.client.post("/v1/completions", content=b" " * 17_000_000), 413, "body_too_large")

    def pieces():
        for _ in range(20):
            yield b" " * 1_000_000

    check(server.client.post("/v1/completions", content=pieces()), 413, "body_too_large")


def test_unknown_paths_and_models_are_404_and_wrong_methods_405(server):
    check(server.client.get("/v1/nothing"), 404)
    check(server.client.get("/v1/models/nobody"), 404, "model_not_found")
    check(server.complete("x", model="nobody"), 404, "model_not_found")
    answer = server.client.get("/v1/completions")
    check(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_template_variables_cannot_replace_the_template(server):
    kwargs = {"chat_template": "{{ 7 * 7 }}", "tokenize": True, "enable_thinking": False}
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    plain = server.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]
    assert (
        server.post("/v1/chat/completions", {**body, "chat_template_kwargs": kwargs}).json()["usage"]["prompt_tokens"]
        == plain
    )
