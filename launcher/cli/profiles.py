"""`launch list`."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launcher.fetch.stores import Shelf
    from launcher.render.stores import StoredRow


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("list")(list_profiles)


def list_profiles(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    local: Annotated[
        bool, typer.Option("--local", help="List the weights that Ollama, LM Studio and the hub's cache have here.")
    ] = False,
) -> None:
    """List the known profiles, the shipped ones and one's own; or the weights that other programs have here."""
    if local:
        _list_stored(as_json=json)
        return
    from launcher.errors import ProfileError
    from launcher.fetch.stores import look, mark_found
    from launcher.profiles import is_local, load_all
    from launcher.render.profiles import render_profiles, render_profiles_json
    from launcher.render.text import render_error

    def warn(fault: ProfileError) -> None:
        typer.echo(render_error(fault).replace("error[", "warning[", 1).rstrip("\n"), err=True)

    shelf = look()
    profiles = tuple(mark_found(profile, shelf) for profile in load_all(warn))
    here = [artifact for profile in profiles for artifact in profile.artifacts if is_local(artifact)]
    render = render_profiles_json if json else render_profiles
    typer.echo(render(profiles, here), nl=False)


def stored_rows(shelf: "Shelf") -> "list[StoredRow]":
    """Return what ``launch list --local`` shows of the models on a shelf."""
    from launcher.render.stores import StoredRow

    return [
        StoredRow(
            name=model.name,
            format=model.format,
            quantization=model.quantization,
            size_bytes=model.size_bytes,
            store=model.store,
            path=model.path,
            unusable=model.unusable,
        )
        for model in shelf.models
    ]


def _list_stored(*, as_json: bool) -> None:
    """Print what the stores hold; what of them cannot be read is a warning on stderr."""
    from launcher.fetch.stores import checked, look
    from launcher.render.stores import render_shelf, render_shelf_json

    shelf = checked(look())
    rows = stored_rows(shelf)
    for fault in shelf.faults:
        typer.echo(f"warning[model-store]: {fault}", err=True)
    typer.echo(render_shelf_json(rows, shelf.faults) if as_json else render_shelf(rows), nl=False)
