"""`launch list`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("list")(list_profiles)


def list_profiles(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """List the known profiles: the shipped ones and one's own."""
    from launcher.errors import ProfileError
    from launcher.profiles import is_local, load_all
    from launcher.render.profiles import render_profiles, render_profiles_json
    from launcher.render.text import render_error

    def warn(fault: ProfileError) -> None:
        typer.echo(render_error(fault).replace("error[", "warning[", 1).rstrip("\n"), err=True)

    profiles = load_all(warn)
    local = [artifact for profile in profiles for artifact in profile.artifacts if is_local(artifact)]
    render = render_profiles_json if json else render_profiles
    typer.echo(render(profiles, local), nl=False)
