"""`launch top`: what the served instances do and hold, as it changes."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli import options as opt
from launcher.cli.completion import complete_instance
from launcher.cli.reaching import ApiKeyFile

if TYPE_CHECKING:
    from launcher.domain import InstanceView, ProcessId
    from launcher.figures import Figures, Sighting

_N_AT_ONCE = 8


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(top)


def top(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="This instance alone.", autocompletion=complete_instance),
    ] = None,
    interval: Annotated[
        float,
        typer.Option("--interval", min=0.1, max=3600.0, callback=opt.finite, help="Seconds between two looks."),
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, so that there are rates, print one table and end.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the same as JSON with a stable schema.")] = False,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Show what is served as it changes: tokens per second of streams, requests, context, memory held and free, ladder steps."""
    import time

    from launcher.cli.reaching import read_key
    from launcher.render.top import render_top, render_top_json

    watch = _Watch(name, read_key(api_key_file))
    if not (once or json) and _has_screen():
        _follow(watch, interval)
        return
    sightings = watch.look()
    if any(sighting.figures is not None for sighting in sightings):
        time.sleep(interval)
        sightings = watch.look()
    typer.echo(render_top_json(sightings) if json else render_top(sightings), nl=False)


def _has_screen() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _follow(watch: "_Watch", interval: float) -> None:
    """Draw what is seen until Ctrl-C or ``q``."""
    import time

    from launcher.cli.terminal import ended_by_signals, own_screen
    from launcher.render.top import render_top

    try:
        with ended_by_signals(), own_screen() as screen:
            goes_on = True
            while goes_on:
                text = render_top(watch.look())
                screen.draw(text)
                until_s = time.monotonic() + interval
                while goes_on and (left_s := until_s - time.monotonic()) > 0:
                    goes_on = screen.wait(left_s)
                    screen.draw(text)  # the window may have another size
    except KeyboardInterrupt:
        pass


class _Watch:
    """Looks at instances again and again, and tells the rates from one look to the next."""

    def __init__(self, name: str | None, key: str | None) -> None:
        """Have seen nothing yet."""
        self._name = name
        self._key = key
        self._last: dict[ProcessId, tuple[float, Figures]] = {}

    def look(self) -> "tuple[Sighting, ...]":
        """Return what is served, or the one that was asked for, with its figures.

        Raises:
            NotServedError: the one that was asked for was never served.
        """
        from concurrent.futures import ThreadPoolExecutor

        from launcher.cli.reaching import find_named
        from launcher.store import list_instances

        if self._name is None:
            views = tuple(view for view in list_instances() if view.supervisor_alive or view.state == "failed")
        else:
            views = (find_named(self._name),)
        with ThreadPoolExecutor(_N_AT_ONCE) as pool:  # one that does not answer keeps no other waiting
            return tuple(pool.map(self._see, views))

    def _see(self, view: "InstanceView") -> "Sighting":
        """Return an instance with its figures, where it serves a model now."""
        import time

        from msgspec.structs import replace

        from launcher.cli.reaching import endpoint_of
        from launcher.client.look import look_at
        from launcher.errors import EndpointAccessError
        from launcher.figures import Sighting

        record = view.record
        if record is None or record.plan is None or not view.supervisor_alive:
            return Sighting(view=view)
        try:
            endpoint = endpoint_of(view, self._key)
        except EndpointAccessError as error:
            return Sighting(view=view, unread=error.message)
        if endpoint is None:
            return Sighting(view=view, unread="it does not listen yet")
        figures = look_at(endpoint)
        if isinstance(figures, str):
            return Sighting(view=view, unread=figures)
        now_s = time.monotonic()
        last = self._last.get(record.supervisor)
        self._last[record.supervisor] = (now_s, figures)
        if last is not None and now_s > last[0]:
            n_new = figures.n_stream_events - last[1].n_stream_events
            figures = replace(figures, stream_tps=max(0, n_new) / (now_s - last[0]))
        return Sighting(view=view, figures=figures)
