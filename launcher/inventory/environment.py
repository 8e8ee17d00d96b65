"""What programs that are started from here find in their environment: the user's, without what is secret.

It must not know which programs, nor keep any secret.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

_SECRET_NAME: Final = re.compile(
    r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?$|(?:^|_)(?:PASS|PAT|AUTH)$", re.IGNORECASE
)
_WAYS: Final = frozenset({"HF_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH", "CREDENTIALS_DIRECTORY"})
"""Names of files with secrets, which are read here and by nobody else."""
_USERINFO: Final = re.compile(r"(?<=://)([^/\s@]+)@")
_BARE_USERINFO: Final = re.compile(r"([^/\s@:\\]+:[^/\s@\\]+)@[\w.-]+(?::\d+)?/?\Z")
"""Of a proxy, which may be named without its scheme."""
_MIN_SECRET_LENGTH: Final = 6
"""Shorter values are words of ordinary log lines."""


def inherited() -> dict[str, str]:
    """Return what any program inherits: no key, token or password, nor an address with one in it, a proxy's for example.

    ``PYTHONSAFEPATH`` keeps Python programs from importing what lies in the current folder, which may be anybody's.
    """
    kept = {name: value for name, value in os.environ.items() if not _is_secret(name, value)}
    return {**kept, "PYTHONSAFEPATH": "1"}


def _is_secret(name: str, value: str) -> bool:
    return name in _WAYS or _SECRET_NAME.search(name) is not None or any(_userinfos(value))


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that must never be written, the longest first: of variables with the name of a secret, and passwords of addresses."""
    found = {value for name, value in environment.items() if _SECRET_NAME.search(name)}
    for value in environment.values():
        for userinfo in _userinfos(value):
            found |= {userinfo, userinfo.partition(":")[2]}
    return tuple(sorted((secret for secret in found if len(secret) >= _MIN_SECRET_LENGTH), key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...]) -> str:
    """Return the text with every secret replaced by asterisks."""
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, "***")
    return text


def _userinfos(value: str) -> Iterator[str]:
    """Yield what stands before the host in addresses: ``user:password``, or a token; without a scheme, what has both parts."""
    if "@" in value:
        yield from _USERINFO.findall(value)
        bare = _BARE_USERINFO.match(value)
        if bare is not None:
            yield bare[1]
