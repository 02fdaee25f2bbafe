"""Secrets in configs, command lines and environment variables are found, and blanked in all that is printed or written.

A value is secret for one of three reasons: the key above it names a secret (`hub_token`), it is the user or password of a URL, or the
value of a key of a URL's query that names one (`?api_key=`). A value that is secret somewhere is blanked wherever it appears.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

REDACTED = "<redacted>"
MIN_LENGTH = 4
"""Length in characters of the shortest secret that is blanked wherever it appears; a shorter one would blank half a text."""
ALWAYS = frozenset(
    [
        "secret",
        "secrets",
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "pwd",
        "pw",
        "credential",
        "credentials",
        "auth",
        "authentication",
        "authorization",
        "apikey",
        "apikeys",
        "accesskey",
        "secretkey",
        "privatekey",
        "authtoken",
        "hubtoken",
        "accesstoken",
        "hftoken",
        "bearer",
        "cookie",
    ]
)
"""Words of a key that make its value a secret."""
NO_TOKEN = frozenset(
    [
        "eos",
        "bos",
        "pad",
        "unk",
        "sep",
        "cls",
        "mask",
        "image",
        "video",
        "audio",
        "start",
        "end",
        "stop",
        "begin",
        "boi",
        "eoi",
        "special",
        "think",
        "thinking",
        "answer",
        "assistant",
        "user",
        "system",
        "added",
        "extra",
        "new",
        "first",
        "last",
        "next",
        "prev",
        "max",
        "min",
        "num",
        "number",
        "per",
        "each",
        "decoder",
        "forced",
        "draft",
        "placeholder",
    ]
)
"""Words before `token` that make it a token of a text, and no secret."""
NO_KEY = frozenset(
    [
        "problem",
        "question",
        "answer",
        "solution",
        "level",
        "column",
        "columns",
        "row",
        "rows",
        "sort",
        "group",
        "label",
        "text",
        "prompt",
        "response",
        "completion",
        "image",
        "index",
        "primary",
        "foreign",
        "public",
        "dict",
        "record",
        "sample",
        "num",
        "problems",
        "questions",
        "answers",
        "field",
        "name",
        "by",
        "dedup",
        "unique",
        "cache",
        "partition",
    ]
)
"""Words before `key` that make it the name of a column, and no secret."""
HOLDERS = frozenset(
    [
        "api",
        "auth",
        "access",
        "hub",
        "hf",
        "bearer",
        "refresh",
        "session",
        "secret",
        "id",
        "private",
        "signing",
        "encryption",
    ]
)
"""Words before `tokens` or `keys` that make them secrets."""
NO_VALUE = frozenset(["file", "files", "path", "paths", "dir", "folder", "env", "column", "columns"])
"""Last words of a key whose value is the place of a secret and not the secret."""
OF_TOKENS = frozenset(
    [
        "id",
        "ids",
        "level",
        "type",
        "count",
        "length",
        "limit",
        "budget",
        "size",
        "ratio",
        "rate",
        "truncate",
        "mask",
        "embedding",
        "embeddings",
        "index",
    ]
)
"""Last words of a key about tokens of a text, which are no secrets."""
SIGNATURES = frozenset(
    [
        "sig",
        "signature",
        "awsaccesskeyid",
        "x-amz-signature",
        "x-amz-credential",
        "x-amz-security-token",
        "x-goog-signature",
        "x-goog-credential",
        "policy",
        "jwt",
        "hmac",
    ]
)
"""Names in a URL's query that sign it."""
AUTHORITY = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^/\s?#'\"<>]*)@")
SLASHED_PASSWORD = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^/\s:@?#]*:(?!\d+[/?#])[^\s'\"]*)@")
"""A URL whose password has an unescaped slash, so that its beginning looks like a port."""
QUERY = re.compile(r"(?P<mark>[?&;#])(?P<name>[\w.%~-]+)=(?P<value>[^&;#\s'\"<>,}\])]+)")
SCHEME = re.compile(r"\b(?P<name>Bearer|Basic|Token)\s+(?P<value>[A-Za-z0-9+/_.~=-]{8,})")
SHAPES = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})"
)
"""Tokens that can be recognised by their prefix."""
NAMED = re.compile(
    r"""(?P<name>['"]?[\w.%-]+['"]?)(?P<sign>\s*=\s*|\s*:\s+|:(?=['"]))(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,{}\[\]\s][^,{}\[\]]*)"""
)
"""`name: value` and `name=value` inside the braces of an override."""
REFERENCE = re.compile(r"\$\{oc\.env:\s*\w+\s*\}")
"""A value that names an environment variable, and so holds no secret itself."""


def is_secret(key: str) -> bool:
    """True if a key names a secret: `hub_token`, `apiKey`, `client_secret`; not `max_tokens`, `eos_token`, `token_file`, `tokenizer`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key.rpartition(".")[2].strip("'\"+ "))
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced) if word]
    if not words or words[-1] in NO_VALUE:
        return False
    if ALWAYS & set(words):
        return True
    before = dict(zip(words[1:], words, strict=False))
    for word in words:
        earlier = before.get(word)
        if word == "token" and words[-1] not in OF_TOKENS and earlier not in NO_TOKEN:
            return True
        if word == "key" and earlier not in NO_KEY and (words[-1] in ("key", "value") or words[-2:] == ["key", "id"]):
            return True
        if word in ("tokens", "keys") and word == words[-1] and earlier in HOLDERS:
            return True
    return False


def redacted(value: Any, *, also: Iterable[str] = ()) -> Any:
    """A copy of `value` (a dict, a list, a text) in which its secrets, and those in `also`, are blanked."""
    secrets = sorted({*secrets_in(value), *also}, key=len, reverse=True)
    return _masked(value, "", [secret for secret in secrets if len(secret) >= MIN_LENGTH])


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with credentials of URLs, tokens with a known prefix, and `secrets` blanked."""
    for secret in sorted({item for item in secrets if len(item) >= MIN_LENGTH}, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    text = AUTHORITY.sub(rf"\g<scheme>{REDACTED}@", text)
    text = SLASHED_PASSWORD.sub(lambda match: match["scheme"] + REDACTED + "@", text)
    text = QUERY.sub(
        lambda match: f"{match['mark']}{match['name']}={REDACTED}" if _signs(match["name"]) else match[0], text
    )
    text = SCHEME.sub(rf"\g<name> {REDACTED}", text)
    return SHAPES.sub(REDACTED, text)


def redacted_word(word: str) -> str:
    """A word of a command line, `key=value`, with its secrets blanked."""
    key, equals, value = word.partition("=")
    if equals and value not in ("", "null") and is_secret(key) and not REFERENCE.fullmatch(value):
        return f"{key}={REDACTED}"
    if equals and value[:1] in ("{", "["):
        value = NAMED.sub(
            lambda match: f"{match['name']}{match['sign']}{REDACTED}" if is_secret(match["name"]) else match[0], value
        )
        word = f"{key}={value}"
    return without_secrets(word, secrets_in_words([word]))


def redacted_command(words: Sequence[str], *, also: Iterable[str] = ()) -> str:
    """The command line with its secrets blanked, quoted for a shell."""
    secrets = secrets_in_words(words) | set(also)
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and "=" not in before and is_secret(before)
        shown.append(REDACTED if is_value else without_secrets(redacted_word(word), secrets))
    return shlex.join(shown)


def secrets_in(value: Any, key: str = "") -> set[str]:
    """Secrets in a config: values of keys that name a secret, and credentials in URLs."""
    if isinstance(value, Mapping):
        return {secret for name, item in value.items() for secret in secrets_in(item, _below(key, str(name)))}
    if isinstance(value, (list, tuple)):
        return {secret for item in value for secret in secrets_in(item, key)}
    if _is_held(key) and _can_be_secret(value):
        return {str(value)}
    return set(_in_text(value)) if isinstance(value, str) else set()


def secrets_in_words(words: Sequence[str]) -> set[str]:
    """Secrets in the words of a command line, each as typed and without quotes."""
    found: set[str] = set()
    for word in words:
        key, equals, value = word.partition("=")
        named = [(key, value)] if equals else []
        if value[:1] in ("{", "["):
            named += [(match["name"], match["value"]) for match in NAMED.finditer(value)]
        for name, given in named:
            if is_secret(name) and given[:1] not in ("", "{", "[") and not REFERENCE.fullmatch(given):
                found |= {given, given.strip("'\" ")}
        found |= set(_in_text(word))
    return found - {"", "null", "true", "false", "True", "False"}


SHELLS = ("PWD", "OLDPWD")
"""Variables in which a shell keeps its working directories: `PWD` is no password."""


def secrets_in_environment() -> set[str]:
    """Secrets in the environment: values of HF_TOKEN, WANDB_API_KEY and the like, and passwords in URLs of proxies."""
    found = {
        value
        for name, value in os.environ.items()
        if is_secret(name) and name not in SHELLS and len(value) >= 8 and not value.isdigit()
    }
    return found | {secret for value in os.environ.values() for secret in _in_text(value)}


def hide_in_tracebacks(words: Sequence[str]) -> None:
    """Has Python print uncaught errors with the secrets of `words` and of the environment blanked."""

    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        print(without_secrets(text, secrets_in_words(words) | secrets_in_environment()), file=sys.stderr, end="")

    sys.excepthook = shown


def _masked(value: Any, key: str, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {_named(name, secrets): _masked(item, _below(key, str(name)), secrets) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(item, key, secrets) for item in value]
    if _is_held(key) and _can_be_secret(value):
        return REDACTED
    return without_secrets(value, secrets) if isinstance(value, str) else value


def _named(name: Any, secrets: Sequence[str]) -> Any:
    return without_secrets(name, secrets) if isinstance(name, str) else name


def _below(key: str, name: str) -> str:
    """The key of the value at `name` below `key`; everything below the name of a secret is secret, as in `auth: {user: ...}`."""
    return key if _is_held(key) else f"{key}.{name}" if key else name


def _is_held(key: str) -> bool:
    """True if the value at `key` is a secret; `data.key` names a column."""
    return key != "data.key" and is_secret(key)


def _can_be_secret(value: Any) -> bool:
    """True for a text, and for a number that is long for a setting (`password: 123456`)."""
    return len(value) > 0 if isinstance(value, str) else type(value) is int and value >= 1000


def _signs(name: str) -> bool:
    return name.lower() in SIGNATURES or is_secret(name)


def _in_text(text: str) -> Iterator[str]:
    """Secrets of the URLs in a text: `user:password`, and the password alone."""
    for pattern in (AUTHORITY, SLASHED_PASSWORD):
        for match in pattern.finditer(text):
            user, _, password = match["user"].partition(":")
            yield from filter(None, (match["user"], password or user))
    for match in QUERY.finditer(text):
        if _signs(match["name"]):
            yield match["value"]
    for match in SCHEME.finditer(text):
        yield match["value"]
    for match in SHAPES.finditer(text):
        yield match[0]
