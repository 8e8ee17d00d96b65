"""Pages, the list of them, and what a log says: as text and as JSON. Pure; it must not know how a log was read."""

from collections.abc import Iterable, Iterator

import msgspec

from launcher.domain import SCHEMA_VERSION
from launcher.findings import Diagnosis, LogReading
from launcher.pages import PAGES, Kind, Page
from launcher.render.text import encodable, wrapped
from launcher.units import format_bytes

_ANSWERS = {
    "step-down": "the launcher goes on with a smaller plan, the next one down its ladder, and remembers what was missing",
    "restart": "the launcher starts the engine again, with growing delays and within bounds",
    "give-up": "the launcher gives up at once: no other plan would end otherwise",
}
_KINDS = {
    Kind.ERROR: "errors: a command ended with exit code 1 or 2",
    Kind.REFUSAL: "refusals: a plan was refused, exit code 3",
    Kind.CAUSE: "causes by which engines are lost",
    Kind.SIGN: "signs in logs of engines",
    Kind.FINDING: "findings of `launch doctor`",
}
_MAX_SHOWN = 12


def _text(lines: Iterable[str]) -> str:
    return "".join("".join(c if c.isprintable() else "\ufffd" for c in line) + "\n" for line in lines)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(encodable(value)), indent=2).decode() + "\n"


# --- Pages ------------------------------------------------------------------------------------------------------


def render_page(page: Page) -> str:
    """Return a page: what the code means, how it comes about, what to do."""
    return _text(_page(page))


def _page(page: Page) -> Iterator[str]:
    yield f"{page.code} ({', '.join(page.kinds)})"
    yield from wrapped(page.means, first="  ", rest="  ")
    yield ""
    yield from wrapped(page.comes, first="  ", rest="  ")
    yield ""
    yield "what to do"
    for way in page.do:
        yield from wrapped(way, first="  - ", rest="    ")


def page_json(page: Page) -> str:
    """Return a page as JSON."""
    return _json({"schema_version": SCHEMA_VERSION, "page": page._asdict()})


def render_pages() -> str:
    """Return all codes by kind, each with what it means."""
    lines: list[str] = []
    for kind, heading in _KINDS.items():
        found = [page for page in PAGES.values() if kind in page.kinds]
        width = max(len(page.code) for page in found)
        lines += [heading, *(f"  {page.code.ljust(width)}  {page.means}" for page in found), ""]
    return _text([*lines, "`launch explain CODE` has the page of each; `launch explain FILE` reads a log"])


def pages_json() -> str:
    """Return all pages as JSON."""
    return _json({"schema_version": SCHEMA_VERSION, "pages": [page._asdict() for page in PAGES.values()]})


# --- Logs -------------------------------------------------------------------------------------------------------


def render_reading(reading: LogReading) -> str:
    """Return what a log says: how much was read, the cause with its lines, what the launcher does, what a person can do."""
    cut = ", of which the middle was left out" if reading.is_cut else ""
    lines = [f"{reading.source}: {reading.n_lines} lines, {format_bytes(reading.n_bytes)}{cut}", ""]
    if reading.diagnosis is not None:
        lines += _diagnosis(reading.diagnosis)
    elif not reading.codes:
        lines += ["no known sign of a failure is in it"]
        if reading.last_lines:
            lines += ["its most telling lines", *(f"  {line.strip()}" for line in reading.last_lines)]
    if reading.codes:
        lines += ["", "the launcher's own errors in it", *_codes(reading.codes)]
    return _text(lines)


def _codes(codes: Iterable[str]) -> Iterator[str]:
    for code in codes:
        page = PAGES.get(code)
        yield f"  error[{code}]" + (f": {page.means}" if page is not None else "")
        if page is not None:
            yield f"    launch explain {code}"


def _diagnosis(found: Diagnosis) -> Iterator[str]:
    size = None if found.n_bytes is None else format_bytes(found.n_bytes)
    of = " of ".join(part for part in (size, found.memory) if part)
    yield from wrapped(f"{found.code}: {found.meaning}" + (f" ({of})" if of else ""), first="", rest="  ")
    yield from (f"  {line.strip()}" for line in found.lines[-_MAX_SHOWN:])
    yield ""
    yield f"cause: {found.cause}"
    yield from wrapped(_ANSWERS.get(found.answer, found.answer), first="then: ", rest="  ")
    page = PAGES.get(found.code)
    for way in page.do if page is not None else ():
        yield from wrapped(way, first="help: ", rest="  ")
    yield f"    launch explain {found.code}"


def reading_json(reading: LogReading) -> str:
    """Return the same as JSON."""
    return _json({"schema_version": SCHEMA_VERSION, "log": reading})
