"""Every code that a user can meet has a page, no page is left without a code, and what pages name exists."""

import importlib
import pkgutil
import re
from pathlib import Path

import click
import pytest
import typer

import launcher
from launcher.cli import app
from launcher.domain import RefusalCode
from launcher.errors import LauncherError
from launcher.findings import FindingCode
from launcher.pages import PAGES, Kind, Page, near
from launcher.supervisor.signs import SIGNS, Cause

_COMMAND = re.compile(r"`launch ([^`]*)`")


def error_codes() -> set[str]:
    """The codes of all named faults that the program has, wherever they are defined."""
    for module in pkgutil.walk_packages(launcher.__path__, "launcher."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, waiting = set(), [LauncherError]
    while waiting:
        kind = waiting.pop()
        found.add(kind.code)
        waiting += kind.__subclasses__()
    return found


def codes_of(kind: Kind) -> set[str]:
    """The codes that have a page of this kind."""
    return {page.code for page in PAGES.values() if kind in page.kinds}


def test_errors() -> None:
    """Pages of errors are those of the named faults, no more and no less."""
    assert codes_of(Kind.ERROR) == error_codes(), "a new error has its page in launcher/pages/errors.py"


def test_refusals() -> None:
    """Pages of refusals are those of the planner's codes."""
    assert codes_of(Kind.REFUSAL) == set(RefusalCode)


def test_causes() -> None:
    """Pages of causes are those of the supervisor."""
    assert codes_of(Kind.CAUSE) == set(Cause)


def test_signs() -> None:
    """Each sign has a code of its own, and a page."""
    codes = [sign.code for sign in SIGNS]
    assert len(set(codes)) == len(codes)
    assert codes_of(Kind.SIGN) == set(codes)


def test_findings() -> None:
    """Pages of findings are those that the doctor can have."""
    assert codes_of(Kind.FINDING) == set(FindingCode)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_page_is_whole(page: Page) -> None:
    """It says three things in sentences, and each command that it names is one of the program's, with such options."""
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", page.code)
    assert page.do
    for text in (page.means, page.comes, *page.do):
        assert text.isprintable()
        assert text[0].isupper() or text.startswith(
            ("`", "/", "http", "vm.", "cuBLAS", "cudaMalloc", "vLLM", "llama", "systemd")
        )
        assert text.rstrip("`").endswith((".", ")")), text
        for words in _COMMAND.findall(text):
            check_command(words.split())


def check_command(words: list[str]) -> None:
    """Fail where a command or one of its options does not exist."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group), words[0])
    assert command is not None, words
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.partition("=")[0] for word in words[1:] if word.startswith("--")} - {"--help"}
    assert asked <= known, (words, asked - known)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("exceeds-memry", "exceeds-memory"), ("PORT-IN-USE", "port-in-use"), ("linger", "unit-no-linger")],
)
def test_near(typed: str, meant: str) -> None:
    """A code that is misspelt, or half of one, is recognised; three are proposed at most."""
    assert meant in near(typed)
    assert len(near(typed)) <= 3


def test_near_nothing() -> None:
    """What resembles no code brings no proposal."""
    assert near("zzzzzzzz") == ()


def test_the_manual_lists_the_findings() -> None:
    """``docs/doctor.md`` has each finding with the words of its page."""
    text = (Path(__file__).parents[2] / "docs/doctor.md").read_text()
    listed = dict(re.findall(r"^- `([a-z-]+)`: (.*)$", text, re.MULTILINE))
    pages = {page.code: page.means for page in PAGES.values() if Kind.FINDING in page.kinds}
    assert {code: words.lower() for code, words in listed.items()} == {
        code: means.lower() for code, means in pages.items()
    }
