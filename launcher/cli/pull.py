"""``launch pull``: have a model's weights here, verified, before anybody waits for them."""

import sys
from typing import TYPE_CHECKING

import typer

from launcher.cli import options as opt

if TYPE_CHECKING:
    from launcher.domain import Artifact, Profile, Request
    from launcher.fetch.progress import Tell
    from launcher.fetch.pull import Pulled


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(pull)


def pull(name: opt.Name, quant: opt.Quant = None, json: opt.Json = False) -> None:
    """Download weights and verify them: those that would be served here, or the quantization that is named."""
    import time

    from msgspec import to_builtins

    from launcher.cli.pulling import interruptible, shown
    from launcher.render.pull import pulled_json, render_pulled

    name, quant = opt.split_quant(name, quant)
    began_s = time.monotonic()
    with interruptible() as interruption:
        try:
            profile = _describe(name, quant)
            chosen = _choose(profile, quant, name)
            with shown() as tell:
                pulled = _bring(profile, chosen, name, tell)
        except KeyboardInterrupt:
            typer.echo("interrupted; what came is kept, and the same command goes on from there", err=True)
            raise typer.Exit(interruption.exit_code) from None
    artifact = pulled.artifact
    files = to_builtins(pulled.files)
    path = artifact.local_path or ""
    if json:
        text = pulled_json(
            model=profile.name,
            quantization=artifact.quantization,
            weights_format=artifact.format,
            path=path,
            files=files,
        )
    else:
        text = render_pulled(profile.name, artifact.quantization, path, files, seconds=time.monotonic() - began_s)
    sys.stdout.write(text)


def _describe(name: str, quant: str | None) -> "Profile":
    """Return what NAME means; of a repository only what is asked for is read."""
    if name.startswith("hf:") and quant is not None:
        return opt.read_hub(f"{name}:{quant}", single=True)
    return opt.resolve_profile(name)


def _choose(profile: "Profile", quant: str | None, name: str) -> "Artifact":
    """Return the artifact that is named, by its quantization or as a file, or that would be served on this machine.

    Raises:
        UsageError: there is none of that quantization.
        Exit: nothing can be served here; the refusal is told.
    """
    from msgspec.structs import replace

    from launcher.cli.pulling import obtainable_part
    from launcher.domain import Request, Settings
    from launcher.errors import UsageError
    from launcher.profiles import is_local

    wanted = quant.strip().lower() if quant is not None else None
    named = [artifact for artifact in profile.artifacts if wanted in {None, artifact.quantization}]
    if not named:
        msg = f"`{profile.name}` has no {wanted}"
        raise UsageError(msg, help=f"it has {', '.join(artifact.quantization for artifact in profile.artifacts)}")
    profile = opt.find_weights(replace(profile, artifacts=tuple(named)))
    only = profile.artifacts[0] if len(named) == 1 else None
    if only is not None and (wanted is not None or _is_file(name) or is_local(only)):
        return only
    settings = Settings(quantization=wanted)
    return _plan(Request(profile=obtainable_part(profile, settings) or profile, settings=settings))


def _is_file(name: str) -> bool:
    """Whether a name is that of one file: an address, or a file of a repository."""
    return "://" in name or name.lower().endswith(".gguf")


def _plan(request: "Request") -> "Artifact":
    from launcher.cli.calibrate import read_known
    from launcher.domain import Refusal
    from launcher.errors import EXIT_REFUSED
    from launcher.planner.advice import plan as decide
    from launcher.render.plan import render_outcome

    machine = opt.read_inventory(None)
    others = opt.find_alternatives(inventory=None, min_quant=None, min_tps=None)
    outcome = decide(
        request, machine, argv=opt.echo_argv("serve"), alternatives=others, calibration=read_known(machine, None)
    )
    sys.stderr.write(render_outcome(outcome))
    if isinstance(outcome, Refusal):
        typer.echo("nothing was downloaded; `--quant` downloads one that this machine cannot serve", err=True)
        raise typer.Exit(EXIT_REFUSED)
    return outcome.artifact


def _bring(profile: "Profile", chosen: "Artifact", name: str, tell: "Tell") -> "Pulled":
    """Verify what is here, and download what is not, or is not as it should be."""
    from launcher.cli.pulling import fetch
    from launcher.errors import WeightsMissingError
    from launcher.fetch.pull import find_here
    from launcher.profiles import is_local

    key = (chosen.format, chosen.quantization)
    published = next(each for each in profile.artifacts if (each.format, each.quantization) == key)
    has_source = published.repository is not None or published.url is not None
    if is_local(chosen) or not has_source:
        try:
            return find_here(chosen, tell=tell)
        except WeightsMissingError as error:
            if not has_source:
                raise
            typer.echo(f"{error.message}; downloading it again", err=True)
    return fetch(published, name, tell)
