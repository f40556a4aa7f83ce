"""No password in what people read: lines, logs and pages show `user:***@host`.

Whatever shows an address, or words that another library said, goes through `masked`.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote

MASK = "***"
SECRETS = (
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN", "PGPASSWORD", "MYSQL_PWD"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN"),
)
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI")
WORDS = {"mlflow", "codetr", "postgres", "postgresql", "mysql", "sqlite"}  # as passwords hidden in addresses alone

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_NAME = r"(?:\w*(?:password|passwd|pwd|token|secret|credential|signature)\w*|sig|auth|key|api_?key|access_?key)"
_QUERY = re.compile(rf"([?&;]{_NAME}=)[^&;\s\"'#]+", re.IGNORECASE)
_SETTING = re.compile(rf"(\b{_NAME}\s?=\s?)(?!\s)('[^']*'|\"[^\"]*\"|[^\s,;&'\"]+)", re.IGNORECASE)
_HEADER = re.compile(r"\b(Basic|Bearer)\s+[A-Za-z0-9+/=._~-]{4,}")


class Login(NamedTuple):
    """An address in three parts: what stands before the user, the user with the password, and the rest."""

    before: str
    user: str
    password: str | None
    after: str  # begins with the @; the whole address where it names no user


def login_of(uri: str) -> Login:
    """Take an address apart. A password that holds @, / or ? unescaped is found too."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "", uri
    end = _end_of_login(scheme, rest)
    if end < 0:
        return Login("", "", None, uri)
    user, colon, password = rest[:end].partition(":")
    return Login(scheme + separator, user, password if colon else None, rest[end:])


def _end_of_login(scheme: str, rest: str) -> int:
    """Where the @ after the password stands; -1 where there is none."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return authority.rfind("@")
    host_and_port = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", authority)
    is_path = rest.startswith("/") or ":" not in authority or (host_and_port and scheme in ("http", "https"))
    return -1 if is_path else rest.rfind("@")


def shown(uri: str) -> str:
    """An address as people may read it: `postgresql://user:***@host/name`."""
    login = login_of(uri)
    if login.password is None:
        # Alone before the @ of a web address stands a token as often as a name.
        user = MASK if login.user and login.before in ("http://", "https://") else login.user
    else:
        user = f"{login.user}:{MASK}"
    return _QUERY.sub(rf"\1{MASK}", login.before + user + login.after)


def without_login(uri: str) -> str:
    """An address without user, password and query: what a link may hold."""
    login = login_of(uri)
    return re.split(r"[?#]", login.before + login.after.removeprefix("@"), maxsplit=1)[0]


def basic_login(uri: str) -> str | None:
    """The `Authorization` header that an address asks for; None where it names no user."""
    login = login_of(uri)
    if not login.before or not (login.user or login.password):
        return None
    text = f"{unquote(login.user)}:{unquote(login.password or '')}"
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def masked(text: str, uri: str = "") -> str:
    """`text` without passwords: those of any address in it, of `uri`, and those that the environment holds."""
    for secret in sorted(set(_secrets(uri)), key=len, reverse=True):
        # A short one may be part of any word.
        text = re.sub(re.escape(secret) if len(secret) > 5 else rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, text)
    text = _ADDRESS.sub(lambda found: shown(found[0]), text)
    text = _SETTING.sub(rf"\1{MASK}", _QUERY.sub(rf"\1{MASK}", text))
    return _HEADER.sub(rf"\1 {MASK}", text)


def _secrets(uri: str) -> Iterator[str]:
    passwords = [os.environ.get(name) for name in SECRETS]
    addresses = (uri, *(os.environ.get(name, "") for name in ADDRESSES))
    passwords += [login_of(address).password for address in addresses]
    for password in filter(None, passwords):
        plain = unquote(password)
        for form in (password, plain, quote(plain, safe=""), quote(plain)):
            if len(form) > 1 and form not in WORDS:
                yield form
