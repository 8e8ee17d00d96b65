"""Asks a Hugging Face hub which files a repository has.

Where the hub is and who asks is read from huggingface_hub's own environment variables. It must not know what is in a file.

The protocol: https://huggingface.co/docs/hub/api, and how huggingface_hub 1.x uses it. That library is not used here: it
neither bounds what it reads nor reads GGUF.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from launcher.credentials import HUB_TOKEN, credential_path
from launcher.errors import RemoteAccessError, RemoteError, RemoteMissingError, UsageError
from launcher.fetch.names import RemoteFile
from launcher.fetch.places import expand_path, hub_home_dir, is_offline, is_true
from launcher.fetch.web import DEFAULT_TIMEOUT_S, Token, Web, check_url, is_loopback, next_url, origin, show_url
from launcher.metadata.files import label
from launcher.units import MIB

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
REVISION: Final = "main"
MAX_PAGE_BYTES: Final = 16 * MIB
MAX_PAGES: Final = 20
MAX_FILES: Final = 20_000
"""Of a page the hub lists 1,000 files."""

_MAX_TOKEN_BYTES: Final = 4096
"""Tokens have some forty characters; whatever else the file is, memory does not grow with it."""
_NEXT: Final = re.compile(r"""<([^>]*)>\s*;[^,]*\brel="?next"?""")
_MAX_SIZE_BYTES: Final = 2**63 - 1
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_GIT_SHA1: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)

_Answered = TypeVar("_Answered")


class Settings(Struct, frozen=True, kw_only=True):
    """Where the hub is, and how it is asked."""

    endpoint: str = DEFAULT_ENDPOINT
    token: Token | None = None
    offline: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S


class _Lfs(Struct):
    size: int | None = None
    oid: str | None = None
    sha256: str | None = None


class _TreeEntry(Struct):
    type: str
    path: str
    oid: str | None = None
    size: int | None = None
    lfs: _Lfs | None = None


class _Sibling(Struct):
    rfilename: str
    blob_id: str | None = msgspec.field(default=None, name="blobId")
    size: int | None = None
    lfs: _Lfs | None = None


class _Model(Struct):
    siblings: list[_Sibling]


class _Revision(Struct):
    sha: str | None = None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_TOKEN_PATH``, ``HF_HUB_OFFLINE`` and ``HF_HUB_DOWNLOAD_TIMEOUT``.

    Raises:
        UsageError: one of them cannot be meant; a token is never shown.
    """
    endpoint = environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT
    try:
        check_url(endpoint, plain=True)  # a mirror in the clear is the choice of whoever runs this machine
    except UsageError as error:
        msg = f"HF_ENDPOINT is no address of a hub: {error.message}"
        raise UsageError(msg, help=f"unset it to ask {DEFAULT_ENDPOINT}") from None
    secret = _read_secret(environ)
    protected = endpoint.startswith("https://") or is_loopback(origin(endpoint)[1])
    token = Token(secret=secret, origin=origin(endpoint)) if secret and protected else None
    return Settings(
        endpoint=endpoint,
        token=token,
        offline=is_offline(environ),
        timeout_s=_read_timeout(environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")),
    )


def find_commit(web: Web, settings: Settings, repository: str) -> str:
    """Return the commit that a repository's main branch is at: what is read of one commit belongs together.

    Raises:
        RemoteAccessError, RemoteMissingError, RemoteError: as for ``list_files``.
    """
    model = f"{settings.endpoint}/api/models/{repository}"
    with told_of(settings, repository):
        try:
            found = _read_commit(web, f"{model}/revision/{REVISION}")
        except RemoteMissingError as error:
            if error.reason:
                raise
            found = _read_commit(web, model)  # some mirrors serve only this one
    if found is None or not _GIT_SHA1.fullmatch(found):
        msg = (
            f"{origin(settings.endpoint)[1]} does not say which commit the branch `{REVISION}` of `{repository}` is at"
        )
        raise RemoteError(msg, help="check HF_ENDPOINT: it must name a hub that speaks Hugging Face's protocol")
    return found


def list_files(web: Web, settings: Settings, repository: str, revision: str = REVISION) -> tuple[RemoteFile, ...]:
    """Return the files of a repository at a branch or commit.

    Names that cannot be shown are left out, as where weights are looked for on this machine: nobody can give them to a
    command. Pictures have such names: in those of macOS a narrow space stands before PM.

    Raises:
        RemoteAccessError: it is private or gated.
        RemoteMissingError: there is no such repository.
        RemoteError: the hub cannot be reached, or answers what cannot be used.
    """
    with told_of(settings, repository):
        try:
            files = tuple(_list_tree(web, settings, repository, revision))
        except RemoteMissingError as error:
            if error.reason:
                raise
            files = _list_siblings(web, settings, repository)  # some mirrors serve only this one
    for file in files:
        _check_file(file, settings, repository)
    return tuple(file for file in files if file.path.isprintable())


def file_url(settings: Settings, repository: str, path: str, revision: str = REVISION) -> str:
    """Return where a file of a repository at a branch or commit is read."""
    return f"{settings.endpoint}/{repository}/resolve/{revision}/{quote(path)}"


@contextmanager
def told_of(settings: Settings, repository: str) -> Iterator[None]:
    """Tell a fault inside as one of the repository, with what its user can do."""
    host = origin(settings.endpoint)[1]
    page = f"{settings.endpoint}/{repository}"
    try:
        yield
    except RemoteAccessError as error:
        sent = "no token was sent" if settings.token is None else "your token does not open it"
        if error.reason == "GatedRepo":
            msg = f"`{repository}` is gated: {host} asks for consent to its conditions first; {sent}"
            help_ = f"accept them at {page}, then set HF_TOKEN to your token"
        else:
            msg = f"`{repository}` is private, gated, or does not exist: {host} refuses it; {sent}"
            help_ = "check the name; for a private or gated repository set HF_TOKEN to a token that may read it"
        raise RemoteAccessError(msg, help=help_, details=(error.message,), reason=error.reason) from None
    except RemoteMissingError as error:
        if error.reason == "EntryNotFound":
            raise
        msg = f"{host} has no repository `{repository}` with a branch `{REVISION}`, or not this file of it"
        raise RemoteMissingError(msg, help="check the name: hf:OWNER/NAME", details=(error.message,)) from None


def _read_commit(web: Web, url: str) -> str | None:
    return _decode(web.get(url, limit_bytes=MAX_PAGE_BYTES).body, _Revision, url).sha


def _list_tree(web: Web, settings: Settings, repository: str, revision: str) -> Iterator[RemoteFile]:
    url = f"{settings.endpoint}/api/models/{repository}/tree/{revision}?recursive=true"
    seen: set[str] = set()
    n_files = 0
    while url:
        seen.add(url)
        if len(seen) > MAX_PAGES:
            raise _endless(repository)
        answer = web.get(url, limit_bytes=MAX_PAGE_BYTES)
        for entry in _decode(answer.body, list[_TreeEntry], url):
            n_files += 1
            if n_files > MAX_FILES:
                raise _endless(repository)
            if entry.type == "file":
                yield _file(entry.path, entry.size, entry.oid, entry.lfs)
        following = _NEXT.search(answer.headers.get("link", ""))
        url = next_url(url, following[1]) if following else ""
        if url in seen:
            raise _endless(repository)


def _list_siblings(web: Web, settings: Settings, repository: str) -> tuple[RemoteFile, ...]:
    url = f"{settings.endpoint}/api/models/{repository}?blobs=true"
    model = _decode(web.get(url, limit_bytes=MAX_PAGE_BYTES).body, _Model, url)
    if len(model.siblings) > MAX_FILES:
        raise _endless(repository)
    return tuple(_file(item.rfilename, item.size, item.blob_id, item.lfs) for item in model.siblings)


def _file(path: str, size: int | None, git_sha1: str | None, lfs: _Lfs | None) -> RemoteFile:
    if lfs is None:
        return RemoteFile(path=path, size_bytes=size, git_sha1=_digest(git_sha1, _GIT_SHA1))
    size = lfs.size if lfs.size is not None else size
    return RemoteFile(path=path, size_bytes=size, sha256=_digest(lfs.sha256 or lfs.oid, _SHA256))


def _digest(text: str | None, form: re.Pattern[str]) -> str | None:
    """Return a digest that is one: files of the cache are called after it, so nothing else may become a path."""
    return text if text is not None and form.fullmatch(text) else None


def _decode(body: bytes, kind: type[_Answered], url: str) -> _Answered:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        msg = f"{show_url(url)} is not what a hub answers"
        raise RemoteError(
            msg, help="check HF_ENDPOINT: it must name a hub that speaks Hugging Face's protocol"
        ) from None


def _check_file(file: RemoteFile, settings: Settings, repository: str) -> None:
    """Fault on names and sizes that no repository can have: whoever lists them is hostile or broken."""
    parts = file.path.split("/")
    has_controls = any(unicodedata.category(character) == "Cc" for character in file.path)
    hostile = any(part in {"", ".", ".."} for part in parts) or has_controls or "\\" in file.path
    absurd = file.size_bytes is not None and not 0 <= file.size_bytes <= _MAX_SIZE_BYTES
    if hostile or absurd:
        fact = f"`{label(file.path)}`" if hostile else f"`{label(file.path)}` with {file.size_bytes} bytes"
        msg = f"{origin(settings.endpoint)[1]} lists {fact} as a file of `{repository}`"
        raise RemoteError(msg, help="the hub or the repository is hostile or broken: do not use it")


def _endless(repository: str) -> RemoteError:
    msg = f"the list of the files of `{repository}` does not end within {MAX_PAGES} pages and {MAX_FILES} files"
    return RemoteError(msg, help="name the address of one file instead: https://HOST/PATH.gguf")


def _read_secret(environ: Mapping[str, str]) -> str | None:
    """Return the user's token, from the environment, a service's credentials or the file that ``hf auth login`` writes."""
    if is_true(environ, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    secret = environ.get("HF_TOKEN", "").strip() or environ.get("HUGGING_FACE_HUB_TOKEN", "").strip()
    source = "HF_TOKEN"
    if not secret:
        path = credential_path(environ, HUB_TOKEN) or _token_path(environ)
        source = str(path)
        try:
            with path.open("rb") as file:
                secret = file.read(_MAX_TOKEN_BYTES + 1).decode().strip()
        except (OSError, ValueError):
            return None
        if len(secret) > _MAX_TOKEN_BYTES:
            msg = f"the token from {source} is longer than any token"
            raise UsageError(msg, help="set HF_TOKEN to the token alone")
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        msg = f"the token from {source} has characters that no token has"
        raise UsageError(msg, help="set HF_TOKEN to the token alone")
    return secret or None


def _token_path(environ: Mapping[str, str]) -> Path:
    chosen = environ.get("HF_TOKEN_PATH")
    return expand_path(chosen) if chosen else hub_home_dir(environ) / "token"


def _read_timeout(text: str) -> float:
    try:
        seconds = float(text) if text.strip() else DEFAULT_TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:  # noqa: PLR2004  an hour; infinity and not-a-number fail too
        msg = f"HF_HUB_DOWNLOAD_TIMEOUT is `{label(text)}`, not a number of seconds"
        raise UsageError(msg, help="unset it, or set it to 10")
    return seconds
