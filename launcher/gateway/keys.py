"""Read the API keys of an endpoint, from a file or the environment, and compare them with what clients send.

It must not know HTTP beyond a header's value. Keys are kept as digests, are never shown, and are never in a message.
"""

import hashlib
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from launcher.credentials import API_KEY, credential_path
from launcher.domain import Address
from launcher.errors import ApiKeyError, UsageError
from launcher.inventory.addresses import is_loopback

KEY_ENV: Final = "LAUNCHER_API_KEY"
_MIN_KEY: Final = 16
"""Characters: 64 bits, were they random hexadecimal digits."""
_MAX_FILE: Final = 1 << 20
_PREFIX: Final = "bearer "
_MAKE_ONE: Final = "make one with `openssl rand -hex 24`"


class Keys:
    """Keys of which any one opens the endpoint; without any, it is open to everybody who reaches it."""

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        """Keep the keys' digests: they are of equal length, so comparing them tells nothing of the keys."""
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        """Whether a key is required."""
        return bool(self._digests)

    def __repr__(self) -> str:
        """Tell the number, not the keys."""
        return f"Keys({len(self._digests)})"

    def admit(self, sent: str | None) -> bool:
        """Whether a client that sent this header value (``Bearer KEY``, or the key) may pass.

        Takes as long whichever key it is, or none.
        """
        if not self._digests:
            return True
        sent = sent or ""
        if sent[: len(_PREFIX)].lower() == _PREFIX:
            sent = sent[len(_PREFIX) :]
        digest = _digest(sent.strip())
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(env: Mapping[str, str], file: Path | None = None) -> Keys:
    """Return the keys that `read_secrets` reads, as what a client sends is compared with them.

    Raises:
        ApiKeyError: as there.
    """
    return Keys(read_secrets(env, file))


def read_secrets(env: Mapping[str, str], file: Path | None = None) -> tuple[str, ...]:
    """Return the very keys in ``file`` (one a line, ``#`` begins a comment) and in the variable ``LAUNCHER_API_KEY``.

    Without a ``file`` the credential ``api-key`` is read, where a service manager passed it on. They are for whoever has
    to send one; nothing else may hold them.

    Raises:
        ApiKeyError: a key is too short or unusable, the file holds none, or others can read it.
    """
    passed_on = credential_path(env, API_KEY)
    if file is not None:
        keys = _read_file(file, is_private=False)
    else:
        keys = [] if passed_on is None else _read_file(passed_on, is_private=True)
    if KEY_ENV in env:
        keys.append(_check(env[KEY_ENV].strip(), f"${KEY_ENV}"))
    return tuple(keys)


def _read_file(file: Path, *, is_private: bool) -> list[str]:
    """Return the keys in a file; one that ``is_private`` is where no other user gets, whatever its mode says.

    Systemd lets a service read its credentials by an ACL, whose mask looks like rights of the group.
    """
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = stream.read(_MAX_FILE + 1).decode("utf-8", "surrogateescape")
    except OSError as error:
        message = f"cannot read the API keys in {file}: {(error.strerror or str(error)).lower()}"
        raise ApiKeyError(message) from error
    if not is_private and mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"the API keys in {file} are open to other users (mode {mode:03o})"
        raise ApiKeyError(message, help=f"chmod 600 {file}")
    lines = [line.strip() for line in text[:_MAX_FILE].splitlines()]
    keys = [(n, line) for n, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not keys:
        message = f"there is no API key in {file}"
        raise ApiKeyError(message, help=_MAKE_ONE)
    return [_check(key, f"line {n} of {file}") for n, key in keys]


def _check(key: str, where: str) -> str:
    if len(key) < _MIN_KEY:
        message = f"the API key in {where} has {len(key)} characters; {_MIN_KEY} are the least"
        raise ApiKeyError(message, help=_MAKE_ONE)
    if not key.isascii() or not key.isprintable() or " " in key:
        message = f"the API key in {where} has characters that cannot be sent in a header"
        raise ApiKeyError(message, help=_MAKE_ONE)
    return key


def check_exposure(address: Address, keys: Keys) -> None:
    """Refuse an address that other machines can reach, unless a key is required there.

    Raises:
        UsageError: the address is not of the loopback interface, and there is no key.
    """
    if not is_loopback(address.host) and not keys:
        message = f"{address.host} can be reached from other machines, and the endpoint has no API key"
        raise UsageError(
            message, help="give it one with `--api-key-file FILE`, or serve on 127.0.0.1 and use an SSH tunnel"
        )
