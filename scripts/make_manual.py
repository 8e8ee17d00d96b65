#!/usr/bin/env python3
"""Write the manual page of `launch` from its commands' own help.

    python scripts/make_manual.py [--check] [docs/launch.1]

`--check` compares instead, and exits with 1 where the page is not what the commands say today. What no command says
(environment, files, exit codes) stands below. It must not know what any option means.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import typer

from launcher.cli import app

_NO_BOUND: Final = re.compile(r"\s*\[\d+<=x<=2147483647\]|; \d+<=x<=2147483647(?=\])")
"""A range that ends where C's integers do tells a reader nothing."""
_PAGE: Final = Path(__file__).parents[1] / "docs" / "launch.1"

_EXITS: Final = (
    ("0", "Done."),
    ("1", "Failed: a fault, with its code in brackets and a way out after `help:`."),
    ("2", "Wrong usage."),
    ("3", "Refused: understood, and the answer is no. What would be a yes was planned again before it was said."),
)
_ENVIRONMENT: Final = (
    ("LAUNCHER_LLAMA_SERVER", "The llama-server to use, before those on PATH."),
    ("LAUNCHER_VLLM", "vLLM's program, or the Python of its environment."),
    ("LAUNCHER_ACCEPT_HOLES", "Published faults, by id with commas, that do not keep an engine from being used."),
    ("LAUNCHER_PROFILES", "The folder of one's own profiles, instead of that in the user's configuration."),
    ("LAUNCHER_CACHE_DIR", "Where that is kept which can be found out or downloaded again."),
    ("LAUNCHER_STATE_DIR", "Where state is kept, instead of systemd's STATE_DIRECTORY or the user's state directory."),
    ("LAUNCHER_API_KEY", "The key that clients of the endpoint have to send; --api-key-file comes before it."),
    ("HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE", "As the hub's own client reads them."),
    ("OLLAMA_MODELS", "Where Ollama keeps its models."),
    ("RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH", "Ray's token, for --cluster."),
)
_FILES: Final = (
    ("~/.config/launcher/profiles/*.toml", "Profiles of one's own."),
    (
        "~/.local/state/launcher/",
        "Instances, their logs, calibrations and what was learnt of engines; for its owner alone.",
    ),
    ("~/.cache/launcher/", "What was found out about engines and files; may be removed."),
)
_EXAMPLES: Final = (
    ("launch plan gemma2-27b --inventory rtx4090", "What would be served on another machine."),
    ("launch serve gemma3-270m --detach", "Serve, and return once it answers."),
    ("launch plan hf:OWNER/NAME:q4_k_m", "A model that was not downloaded, by its headers alone."),
    ("launch systemd install gemma3-270m --user", "A service of one's own."),
)


def escape(text: str) -> str:
    """Return text as troff shows it: no backslash, hyphen or leading dot that it would read."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return re.sub(r"^([.])", r"\\&\1", text, flags=re.MULTILINE)


def sentences(text: str | None) -> str:
    """Return help as one paragraph."""
    return escape(" ".join((text or "").replace("\b", "").split()))


def tagged(tag: str, text: str) -> Iterator[str]:
    """Yield a term in bold and what it means."""
    yield from (".TP", f".B {escape(tag)}", sentences(text))


def option_lines(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the arguments and options of a command, but for its help."""
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            yield from tagged(record[0], _NO_BOUND.sub("", record[1]))


def command_lines(command: click.Command, path: str) -> Iterator[str]:
    """Yield the section of a command, then those of its own commands."""
    context = click.Context(command, info_name=path)
    yield f'.SS "{escape(path)}"'
    yield sentences(command.help)
    if command.epilog:
        yield from (".PP", sentences(command.epilog))
    yield from option_lines(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from command_lines(child, f"{path} {name}")


def page() -> str:
    """Return the whole page."""
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)  # noqa: S101 - it has commands
    context = click.Context(root, info_name="launch")
    lines = [
        r".\" Written by scripts/make_manual.py from the help of the commands.",
        '.TH LAUNCH 1 "" "launcher" "User Commands"',
        ".SH NAME",
        escape("launch - plan, start and supervise a language model server on one's own machine"),
        ".SH SYNOPSIS",
        ".B launch",
        r".I COMMAND",
        escape("[OPTIONS] [NAME]"),
        ".SH DESCRIPTION",
        sentences(
            "Chooses engine, quantization, context and placement for a model from its real metadata and the memory that is"
            " really free, starts the inference server, proves that it answers, and keeps it so. What does not fit is"
            " refused, with ways out that were checked. Reading commands take --json; data goes to the standard output,"
            " all else to the standard error."
        ),
        ".SH OPTIONS",
        *option_lines(root, context),
        ".SH COMMANDS",
    ]
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        if command is not None and not command.hidden:
            lines += command_lines(command, f"launch {name}")
    for title, pairs in (("EXIT STATUS", _EXITS), ("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
        lines.append(f'.SH "{title}"')
        for tag, text in pairs:
            lines += tagged(tag, text)
    lines.append(".SH EXAMPLES")
    for example, text in _EXAMPLES:
        lines += tagged(example, text)
    return "\n".join(line for line in lines if line) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("path", nargs="?", type=Path, default=_PAGE)
    options = parser.parse_args()
    text = page()
    if not options.check:
        options.path.write_text(text, encoding="utf-8")
        return 0
    if options.path.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{options.path} is not what the commands say today\nhelp: make golden\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
