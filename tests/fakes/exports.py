"""Plans for reference machines, as `launch export` makes them, and what a written file says again."""

from functools import cache

from launcher.domain import Machines, Plan, Request
from launcher.inventory import load_machines
from launcher.planner.fit import decide
from launcher.profiles import load_profile


@cache
def planned(model: str, machine: str) -> tuple[Plan, Machines]:
    """Return the plan of a shipped profile for a shipped machine, and the machine."""
    machines = load_machines(machine)
    plan = decide(Request(profile=load_profile(model)), machines)
    assert isinstance(plan, Plan)
    return plan, machines


def split_exec(text: str) -> list[str]:
    """Return the words of ``Exec=`` as Podman 5 splits them and systemd then reads them, after podman's ``split.go``.

    Quotes may begin anywhere, a backslash escapes as in C, an empty word ends it; systemd then takes ``%%`` and ``$$`` for one.
    """
    words, word, quote, idx, begun = [], "", "", 0, False
    plain = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
    while idx < len(text):
        char = text[idx]
        if char == "\\":
            kind = text[idx + 1]
            n_hex = {"x": 2, "u": 4, "U": 8}.get(kind, 0)
            word += chr(int(text[idx + 2 : idx + 2 + n_hex], 16)) if n_hex else plain.get(kind, kind)
            assert n_hex or kind in plain or kind in "\\\"'"
            idx += 2 + n_hex
            continue
        idx += 1
        if quote:
            quote = "" if char == quote else quote
            word += char if quote else ""
        elif char in "\"'":
            quote, begun = char, True
        elif char in " \t\n\r":
            if word:
                words.append(word)
            assert word or not begun
            word, begun = "", False
        else:
            word += char
    assert not quote
    return [_expand(each) for each in [*words, word] if each]


def _expand(word: str) -> str:
    """Read a word as systemd does in ``ExecStart=``: no specifier, no variable is left in it."""
    for char in "%$":
        assert char not in word.replace(char * 2, "")
        word = word.replace(char * 2, char)
    return word
