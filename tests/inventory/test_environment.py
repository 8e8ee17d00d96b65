"""What started programs inherit, and what no text may hold."""

import os
from typing import Final

import pytest

from launcher.errors import LauncherError
from launcher.inventory.environment import inherited, redact, secrets_of
from launcher.inventory.proc import run_bounded

_SECRETS: Final = {
    "LAUNCHER_API_KEY": "sentinel-key-0123456789",
    "HF_TOKEN": "hf_sentinel",
    "RAY_AUTH_TOKEN": "sentinel-ray",
    "LLAMA_API_KEY": "sentinel-foreign",
    "PGPASSWORD": "sentinel-pg",
    "AWS_SECRET_ACCESS_KEY": "sentinel-aws",
    "GITHUB_PAT": "sentinel-pat",
    "SMTP_PASS": "sentinel-pass",
    "HTTPS_PROXY": "http://me:sentinel-proxy@proxy.example:3128",
    "http_proxy": "me:sentinel-bare@proxy.example:3128",
    "GIT_REMOTE": "https://sentinel-url-token@git.example/x.git",
}
_HARMLESS: Final = {
    "PATH": "/usr/bin",
    "CUDA_VISIBLE_DEVICES": "0",
    "EMAIL": "somebody@example.org",
    "NO_PROXY": "localhost",
    "ALL_PROXY": "http://proxy.example:3128",
    "TOKENIZERS_PARALLELISM": "false",
    "PS1": r"\u@\h:\w$ ",
    "XAUTHORITY": "/run/user/1000/auth",
    "SSH_AUTH_SOCK": "/run/user/1000/ssh",
}


def test_started_programs_inherit_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variables with the name of a secret, nor addresses with a password; all else stays."""
    for name, value in {**_SECRETS, **_HARMLESS}.items():
        monkeypatch.setenv(name, value)
    found = inherited()
    assert not any("sentinel" in value for value in found.values())
    assert {name: found.get(name) for name in _HARMLESS} == _HARMLESS


def test_programs_that_are_asked_see_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers ``--version`` is a program that was found on PATH."""
    for name, value in {**_SECRETS, "HARMLESS": "here"}.items():
        monkeypatch.setenv(name, value)
    answer = run_bounded(["/usr/bin/env"], timeout_s=20)
    assert "HARMLESS=here" in answer.stdout
    assert "sentinel" not in answer.stdout
    assert "sentinel" in "".join(os.environ.values())


def test_secrets_are_replaced() -> None:
    """Values of variables named like secrets and passwords of addresses, longest first; short and other values stay."""
    secrets = secrets_of({"HF_TOKEN": "hf_abcdef", "X_API_KEY": "hf_abcdef_longer", "PATH": "/usr/bin", "MY_KEY": "ab"})
    assert redact("got hf_abcdef_longer and hf_abcdef in /usr/bin ab", secrets) == "got *** and *** in /usr/bin ab"
    secrets = secrets_of({"ALL_PROXY": "socks5://me:very-secret@proxy:1080", "EMAIL": "somebody@example.org"})
    assert redact("proxy me:very-secret@ or very-secret; somebody@example.org", secrets) == (
        "proxy ***@ or ***; somebody@example.org"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("`https://me:pw@host/x` failed", "`https://***@host/x` failed"),
        ("`https:/me:pw@host/x` failed", "`https:/***@host/x` failed"),
        ("ftp://token@[::1]/", "ftp://***@[::1]/"),
        ("/opt/node_modules/@scope and /data/me@corp/x stay", "/opt/node_modules/@scope and /data/me@corp/x stay"),
    ],
)
def test_faults_show_no_password(said: str, told: str) -> None:
    """Whatever somebody typed or a file holds: message, details and help."""
    fault = LauncherError(said, help=said, details=(said,))
    assert (fault.message, str(fault), fault.help, fault.details) == (told, told, told, (told,))
