"""API keys: where they come from, and who gets past them."""

from pathlib import Path

import pytest

from launcher.domain import Address
from launcher.errors import ApiKeyError, UsageError
from launcher.gateway.keys import KEY_ENV, Keys, check_exposure, read_keys

ONE, TWO = "0123456789abcdef", "fedcba9876543210"


def _file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_any_one_key_opens(tmp_path: Path) -> None:
    """Keys of the file and of the environment; sent bare or as a bearer token, in any case of that word."""
    keys = read_keys({KEY_ENV: TWO}, _file(tmp_path, f"# mine\n\n{ONE}\n"))
    assert keys
    for sent in (ONE, TWO, f"Bearer {ONE}", f"bearer  {TWO}"):
        assert keys.admit(sent)
    assert not keys.admit(None)
    for sent in ("", "Bearer", ONE[:-1], ONE + "0", f"Basic {ONE}", f"{ONE} {TWO}", "\udcff"):
        assert not keys.admit(sent)


def test_without_keys_everybody_passes() -> None:
    """No key is required where none is set."""
    keys = read_keys({})
    assert not keys
    assert keys.admit(None)
    assert keys.admit("Bearer whatever")


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("# nothing\n", 0o600, "there is no API key"),
        ("short\n", 0o600, "has 5 characters"),
        (f"{ONE}\n{ONE} x\n", 0o600, "line 2"),
        (f"{ONE}é\n", 0o600, "cannot be sent"),
        (f"{ONE}\n", 0o644, "open to other users (mode 644)"),
    ],
)
def test_unusable_keys_are_refused_without_being_shown(tmp_path: Path, text: str, mode: int, words: str) -> None:
    """The fault names the line and the reason, never the key."""
    with pytest.raises(ApiKeyError) as caught:
        read_keys({}, _file(tmp_path, text, mode))
    assert words in caught.value.message
    assert ONE not in caught.value.message + str(caught.value.help)


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    """Not: no key required."""
    with pytest.raises(ApiKeyError, match="no such file"):
        read_keys({}, tmp_path / "none")


def test_keys_are_not_shown() -> None:
    """Neither by their representation nor by anything they hold."""
    keys = Keys((ONE,))
    assert repr(keys) == "Keys(1)"
    assert all(ONE.encode() not in digest for digest in keys._digests)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Whoever can reach it is on this machine."""
    check_exposure(Address(host=host), Keys())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])  # noqa: S104 - the very case
def test_beyond_loopback_a_key_is_required(host: str) -> None:
    """An unknown name counts as beyond."""
    with pytest.raises(UsageError, match="no API key"):
        check_exposure(Address(host=host), Keys())
    check_exposure(Address(host=host), Keys((ONE,)))


def test_a_service_finds_its_keys_among_its_credentials(tmp_path: Path) -> None:
    """Whatever mode they seem to have: systemd grants by an ACL, whose mask looks like the group's; a named file goes before."""
    folder, own = tmp_path / "credentials", tmp_path / "own"
    for path in (folder, own):
        path.mkdir()
    (folder / "api-key").write_text(f"{ONE}\n")
    (folder / "api-key").chmod(0o440)
    passed_on = {"CREDENTIALS_DIRECTORY": str(folder)}
    assert read_keys(passed_on).admit(ONE)
    assert read_keys({**passed_on, KEY_ENV: TWO}).admit(TWO)
    named = read_keys(passed_on, _file(own, TWO))
    assert (named.admit(ONE), named.admit(TWO)) == (False, True)
    (folder / "api-key").write_text("short")
    with pytest.raises(ApiKeyError, match="5 characters"):
        read_keys(passed_on)


@pytest.mark.parametrize("folder", ["", "relative", "/nonexistent"])
def test_without_such_a_credential_no_key_is_required(folder: str) -> None:
    """A service to which none was passed on is as any other process."""
    assert not read_keys({"CREDENTIALS_DIRECTORY": folder})
