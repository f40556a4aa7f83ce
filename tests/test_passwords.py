"""No password in what people read, however the address is written and whoever quotes it."""

from __future__ import annotations

import socket
import time
import urllib.error

import pytest

from harness.errors import one_line
from harness.passwords import SECRETS, basic_login, masked, shown, without_login

ADDRESSES = {
    "postgresql://alice:SECRET@127.0.0.1:1/mlflow": "postgresql://alice:***@127.0.0.1:1/mlflow",
    "http://alice:SECRET@127.0.0.1:9": "http://alice:***@127.0.0.1:9",
    "http://alice:SECRET@[::1]:9/x": "http://alice:***@[::1]:9/x",
    "postgresql://alice:SEC@RET@host/mlflow": "postgresql://alice:***@host/mlflow",
    "postgresql://alice:SEC/RET@host/mlflow": "postgresql://alice:***@host/mlflow",
    "postgresql://alice:12/RET@host/mlflow": "postgresql://alice:***@host/mlflow",
    "mysql+pymysql://alice:SEC?RET#1@host/mlflow": "mysql+pymysql://alice:***@host/mlflow",
    "postgresql://alice:SEC%40RET@host/mlflow": "postgresql://alice:***@host/mlflow",
    "postgresql://alice:@host/mlflow": "postgresql://alice:***@host/mlflow",
    "redis://:SECRET@host": "redis://:***@host",
    "https://SECRETtoken@host/mlflow": "https://***@host/mlflow",
    "alice:SECRET@host:5432/mlflow": "alice:***@host:5432/mlflow",
    "https://host/?access_token=SECRET&x=1": "https://host/?access_token=***&x=1",
    "postgresql://host/db?user=alice&password=SECRET": "postgresql://host/db?user=alice&password=***",
}
PLAIN = (
    *("sqlite:////home/a:b@c/mlflow.db", "http://127.0.0.1:5000", "http://host:5000/a@b", "http://host:5000/?q=a@b"),
    *("postgresql://alice@host/mlflow", "./mlruns", "http://[::1]:5000/#/experiments/1/runs?viewStateShareKey=ab12"),
)


@pytest.mark.parametrize("uri", ADDRESSES)
def test_an_address_is_shown_without_its_password(uri: str) -> None:
    assert shown(uri) == ADDRESSES[uri]
    assert "SEC" not in masked(f"cannot parse {uri} at all", uri)
    assert "SEC" not in masked(f"Could not parse URL from string '{uri}'", uri)


@pytest.mark.parametrize("uri", PLAIN)
def test_an_address_without_a_password_is_shown_as_it_is(uri: str) -> None:
    assert shown(uri) == uri and masked(f"see {uri} now") == f"see {uri} now"


def test_words_of_another_library_lose_what_the_address_and_the_environment_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert masked("nonnumeric port: 'SECRET@127.0.0.1'", "http://alice:SECRET@127.0.0.1:9") == (
        "nonnumeric port: '***@127.0.0.1'"
    )
    decoded = masked("login with p@ss word failed", "http://alice:p%40ss%20word@host")
    assert decoded == "login with *** failed"
    assert "HF_TOKEN" in SECRETS
    for name in SECRETS:
        monkeypatch.setenv(name, f"value-of-{name}")
    assert "value-of" not in masked(" ".join(f"value-of-{name}" for name in SECRETS))
    for text in ("password=SECRET host=h", "password='SE CRET'", "Authorization: Bearer SECRET1", "token = SECRET"):
        assert "SECRET" not in masked(text) and "CRET'" not in masked(text)


SPOKEN = (
    *("password: hunt3rpw", "Password: 'hunt3rpw'", "db_password: hunt3rpw, host: h", "password: hunterpw host: h"),
    *('{"password": "hunt3rpw"}', "{'token': 'hunt3rpw', 'n': 1}", r'"{\"client_secret\": \"hunt3rpw\"}"'),
    *("X-Api-Key: hunt3rpw", "HF_TOKEN: hunt3rpw", "access token: hunt3rpw", "aws_secret_access_key: hunt3r/pw"),
    *("curl --token hunt3rpw", "--api-token 'hunt3rpw' run", "['--password', 'hunt3rpw']", "--password hunterpw"),
    *("Authorization: token hunt3rpw", "authorization: hunt3rpw", "{'Authorization': 'token hunterpw'}"),
)


@pytest.mark.parametrize("text", SPOKEN)
def test_what_is_called_a_password_is_none_to_read(text: str) -> None:
    told = masked(f"the server said: {text}")
    assert "hunt" not in told and "***" in told and masked(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "check user and password: those in MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME",
        "set the password: MLFLOW_TRACKING_PASSWORD",
        "give --token or set HF_TOKEN; --password, --token FILE or none",
        "class_token: true; null for none",
        "model.neck.num_tokens: expected 300, found 900",
        "size mismatch for backbone.cls_token: (1, 1, 768)",
        "unknown key: 'model.foo'",
        "authorization: the server wants one",
    ],
)
def test_words_about_passwords_stay(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("text", ["a-b_c" * 2000 + ": x", "password: '" + "x" * 20000, "--" + "token-" * 3000])
def test_a_long_line_takes_no_time(text: str) -> None:
    begun = time.monotonic()
    masked(text)
    assert time.monotonic() - begun < 5.0


def test_a_ruler_takes_no_time() -> None:
    begun = time.monotonic()
    assert masked("-" * 10_000) == "-" * 10_000
    assert time.monotonic() - begun < 5.0


def test_a_short_password_does_not_spoil_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert masked("a cat sat on user a", "http://u:at@h") == "a cat sat on user a"
    assert masked("mlflow db upgrade", "postgresql://mlflow:mlflow@host/mlflow") == "mlflow db upgrade"


def test_a_password_that_is_a_word_is_hidden_where_passwords_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "train")
    assert masked("/d/train/1.png: no split train") == "/d/train/1.png: no split train"
    for text in (
        "http://a:train@h",
        "a:train@h is unknown",
        "port 'train@h'",
        "login a:train failed",
        "password=train",
        "auth=('me', 'train')",
        "password is 'train'",
        "Access denied (using password train)",
        "https://host/?u=me&p=train",
    ):
        assert "train" not in masked(text)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "tr4in")
    assert masked("no login with tr4in") == "no login with ***"


def test_one_line_of_an_error_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:SECRET@127.0.0.1:9")
    assert one_line(ValueError("no route to http://alice:SECRET@127.0.0.1:9/health")).endswith(
        "http://alice:***@127.0.0.1:9/health"
    )
    assert "SECRET" not in one_line(urllib.error.URLError(socket.gaierror("alice:SECRET@127.0.0.1 is unknown")))


def test_a_link_names_neither_user_nor_password() -> None:
    assert without_login("http://alice:SECRET@host:5000/x?token=SECRET") == "http://host:5000/x"
    assert without_login("http://host:5000") == "http://host:5000"
    assert basic_login("http://host:5000") is None
    assert basic_login("http://alice:p%40@host") == "Basic YWxpY2U6cEA="
