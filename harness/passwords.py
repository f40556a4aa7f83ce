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
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
)
ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI")
WORDS = {"mlflow", "codetr", "postgres", "postgresql", "mysql", "sqlite"}  # as passwords hidden in addresses alone

_ADDRESS = re.compile(r"(?<![A-Za-z])[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_NAME = r"(?:\w*(?:password|passwd|pwd|token|secret|credential|signature)\w*|sig|auth|key|api_?key|access_?key)"
_QUERY = re.compile(rf"([?&;]{_NAME}=)[^&;\s\"'#]+", re.IGNORECASE)
_SETTING = re.compile(rf"(\b{_NAME}\s?=\s?)(?!\s)('[^']*'|\"[^\"]*\"|[^\s,;&'\"]+)", re.IGNORECASE)
_SCHEME = r"(?:Basic|Bearer|Digest|Token|ApiKey)\s+"
_HEADER = re.compile(
    rf"(\b(?:Basic|Bearer)\s+|(?i:\bAuthorization[\\'\"]*\s*[:=]\s*[\\'\"]*{_SCHEME}))[A-Za-z0-9+/=._~-]{{4,}}"
)
# After a colon, or an option, prose may go on, and models have tokens, too: `_or_prose` tells.
_TOKEN = r"(?:[\w-]*(?:access|api|auth|bearer|hf|hub|id|private|refresh|security|session|tracking)[-_])?token"
_KEY = r"(?:api|access|private|secret)[-_]?key"
_VALUE = r"(\\?['\"]).+?\3|[^\s,;&'\"\\(){}\[\]]+"
_SPOKEN = re.compile(
    rf"(?<![\w.-])((?:[\w-]*(?:password|passwd|pwd|passphrase|secret|{_KEY})|{_TOKEN}|authorization)\\?['\"]?\s*:\s*)"
    rf"(?![/~])({_VALUE})",
    re.IGNORECASE,
)
_OPTION = re.compile(
    rf"((?<![\w-])--[\w-]*(?:password|passwd|token|secret|{_KEY})['\"]?,?\s+)(?!-)({_VALUE})", re.IGNORECASE
)
_PROSE = re.compile(r"[A-Za-z]{1,12}")
_VARIABLE = re.compile(r"[A-Z]+(?:_[A-Z]+)+")
_CLAUSE_ENDS = re.compile(r"[ \t]*(?:$|[\n,;)}\]'\"]|[\w-]+\s?[:=])")
_WORD = re.compile(r"[A-Za-z]?[a-z]{1,7}|[A-Z]{1,8}")  # as a password it may be any word of a path or a sentence


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
        text = re.sub(_places(secret), MASK, text)
    text = _ADDRESS.sub(lambda found: shown(found[0]), text)
    text = _SETTING.sub(rf"\1{MASK}", _QUERY.sub(rf"\1{MASK}", text))
    text = _HEADER.sub(rf"\1{MASK}", text)
    return _OPTION.sub(_or_prose, _SPOKEN.sub(_or_prose, text))


def _places(secret: str) -> str:
    """Where a password is one, as a pattern: anywhere; a short one as a word; one that is any word never in a path.

    Such a word counts in an address, with or without its scheme, in quotes, after `=` and after `password`.
    """
    escaped = re.escape(secret)
    if _WORD.fullmatch(secret):
        begins = r"(?<=\w:)|(?<==)|(?<=['\"])|(?i:(?<=password )|(?<=password is ))"
        return rf"(?<!\w){escaped}(?=@)|(?:{begins}){escaped}(?!\w)"
    return escaped if len(secret) > 5 else rf"(?<!\w){escaped}(?!\w)"


def _or_prose(found: re.Match[str]) -> str:
    """What was found without its password; as it is where prose goes on: `password: those in …`, `--token or …`."""
    name, value = found[1], found[2]
    if found[3] is None:  # not in quotes
        goes_on = not _CLAUSE_ENDS.match(found.string, found.end())
        if _VARIABLE.fullmatch(value) or (goes_on and _PROSE.fullmatch(value)):
            return found[0]
    return name + MASK


def _secrets(uri: str) -> Iterator[str]:
    passwords = [os.environ.get(name) for name in SECRETS]
    addresses = (uri, *(os.environ.get(name, "") for name in ADDRESSES))
    passwords += [login_of(address).password for address in addresses]
    for password in filter(None, passwords):
        plain = unquote(password)
        for form in (password, plain, quote(plain, safe=""), quote(plain)):
            if len(form) > 1 and form not in WORDS:
                yield form
