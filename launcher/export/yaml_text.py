"""Plain values as YAML that every reader takes for the same values.

Readers differ: what is a string to one (``1e3``, ``0o17``, ``no``) is a number or a truth value to another. So a string stands
without quotes only where it cannot be anything else. It must not know what is written.
"""

import re
from collections.abc import Sequence
from typing import Final

import yaml

_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+-]*(:[A-Za-z0-9_./@+-]+)*")
"""Beyond these, quotes; what YAML 1.1 takes for a truth value or nothing is quoted by the library."""
_BLOCK: Final = re.compile(r"[\x20-\x7e\n]*")
_SAFE_END: Final = re.compile(r"[^\n]\n\Z")


class Block(str):
    """A text of several lines, to be written as such where YAML can."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """A writer with the styles above; lists are indented below their key, nothing is an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's
        del indentless
        super().increase_indent(flow, False)  # noqa: FBT003 - the library takes it by position

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if _PLAIN.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_block(dumper: _Dumper, text: Block) -> yaml.ScalarNode:
    is_block = _BLOCK.fullmatch(text) and _SAFE_END.search(text) and not re.search(r"[ \t]\n|\A\s", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|" if is_block else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(Block, _represent_block)


def to_yaml(value: object, *, comments: Sequence[str] = ()) -> str:
    """Return a value of dicts, lists, strings and numbers as YAML, keys in their order, below lines of comment.

    Comments must be printable and have no line breaks.
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=float("inf"), allow_unicode=False)
    return "".join(f"# {line}\n" for line in comments) + text
