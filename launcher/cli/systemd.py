"""``launch systemd``: serve by systemd, as the machine's service or as one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from launcher.cli import serve as serving
from launcher.cli.completion import complete_unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import click

    from launcher.domain import DeviceKind, Outcome, Plan, Profile, Refusal, Request, Settings
    from launcher.gateway.keys import Keys
    from launcher.render.systemd import Scope, Units

User = Annotated[bool, typer.Option("--user", help="A unit of your own (`systemctl --user`), else one of the system.")]
Root = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="Act on the system below this folder, as systemctl does.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace or remove files also where a person has changed them.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--hub-token-file", metavar="FILE", help="A token for the Hugging Face hub.")
]
Group = Annotated[
    list[str] | None, typer.Option("--group", metavar="NAME", help="A group that may read the weights; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_ROOT = Path("/")
_PASSING = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": ["-h", "--help"]}
_REFUSED = ("detach", "cluster")
"""Options of `serve` that a unit cannot be given."""
_PASSED = "NAME and options are those of `launch serve`; the service is started with them."

group = typer.Typer(name="systemd", help="Units of systemd that serve a model.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(group, name="systemd")


class _Passing(TyperCommand):
    """A command that passes words on to `serve`: a shell that completes them is offered what `serve` takes."""

    def get_params(self, ctx: "click.Context") -> "list[click.Parameter]":
        """Return its own parameters, and those of `serve` while words are completed."""
        own = super().get_params(ctx)
        if not ctx.resilient_parsing:
            return own
        return [*(each for each in _serve_command().params if each.name not in _REFUSED), *own]


@group.command(
    cls=_Passing, context_settings=_PASSING, epilog=_PASSED, options_metavar="NAME [OPTIONS] [OPTIONS OF SERVE]"
)
def render(
    ctx: typer.Context,
    user: User = False,
    json: Json = False,
    root: Root = _ROOT,
    groups: Group = None,
    hub_token_file: TokenFile = None,
) -> None:
    """Print the files that `install` would write; exit code 3 if no plan fits this machine."""
    from launcher.render.systemd import render_json, render_text

    units, folder = _make_units(ctx, user=user, root=root, groups=groups, hub_token_file=hub_token_file)
    typer.echo(render_json(units, str(folder), str(root)) if json else render_text(units, str(folder)), nl=False)


@group.command(
    cls=_Passing, context_settings=_PASSING, epilog=_PASSED, options_metavar="NAME [OPTIONS] [OPTIONS OF SERVE]"
)
def install(
    ctx: typer.Context,
    user: User = False,
    overwrite: Overwrite = False,
    root: Root = _ROOT,
    groups: Group = None,
    hub_token_file: TokenFile = None,
) -> None:
    """Write the unit of a model; starts nothing. Exit code 3, and nothing written, if no plan fits this machine."""
    import os
    import sys

    from launcher.installation import files, places, standing
    from launcher.render.systemd import next_commands

    folder = places.units_folder(_scope(user), root, os.environ)
    places.check_writable(folder, (*places.running_program(), *sys.argv[1:]))
    units, folder = _make_units(ctx, user=user, root=root, groups=groups, hub_token_file=hub_token_file)
    changes = files.install(units, folder, overwrite=overwrite)
    for change in changes:
        typer.echo(f"{change.act:9} {change.path}")
    instance = units.unit.partition("@")[2].removesuffix(".service")
    is_changed = any(change.act not in {"unchanged", "kept"} for change in changes)
    state = standing.look_up(instance, units.scope, folder, ask=root == _ROOT)
    commands = list(next_commands(units, str(root)))
    if state.is_active:
        commands = [commands[0], commands[0].replace("daemon-reload", f"restart {units.unit}")] if is_changed else []
    typer.echo("next:" if commands else f"{units.unit} runs as it is installed")
    for command in commands:
        typer.echo(f"  {command}")


@group.command()
def uninstall(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The instance, as `launch ps` names it, or its profile.",
            autocompletion=complete_unit,
        ),
    ],
    user: User = False,
    overwrite: Overwrite = False,
    root: Root = _ROOT,
) -> None:
    """Remove what `install` wrote. Stops nothing: a unit that runs, or is enabled, stays."""
    import os
    import sys

    from launcher.errors import UnitError
    from launcher.installation import files, places, standing
    from launcher.render.systemd import unit_name

    scope = _scope(user)
    folder = places.units_folder(scope, root, os.environ)
    instance = _installed_name(name, folder)
    unit, option = unit_name(instance), " --user" if user else ""
    state = standing.look_up(instance, scope, folder, ask=root == _ROOT)
    if state.is_active or state.is_enabled:
        how = "runs" if state.is_active else "is enabled"
        at = f" --root={root}" if root != _ROOT else ""
        msg = f"{unit} {how}"
        raise UnitError(msg, help=f"systemctl{option}{at} disable{'' if at else ' --now'} {unit}")
    if folder.exists():
        places.check_writable(folder, (*places.running_program(), *sys.argv[1:]))
    changes = files.uninstall(instance, folder, overwrite=overwrite)
    for change in changes:
        typer.echo(f"{change.act:9} {change.path}")
    if not any(change.act == "removed" for change in changes):
        typer.echo(f"{unit} is not installed in {folder}")
        return
    if root != _ROOT:
        return
    typer.echo(f"next:\n  systemctl{option} daemon-reload")
    if not user:
        typer.echo(
            "what it served is remembered in /var/lib/private/launcher, its cache is in /var/cache/private/launcher"
        )


# --- What both do first ----------------------------------------------------------------------------------------------


def _scope(user: bool) -> "Scope":
    from launcher.render.systemd import Scope

    return Scope.USER if user else Scope.SYSTEM


def _installed_name(name: str, folder: Path) -> str:
    """Return the instance that NAME means: one that is installed, else that of the profile."""
    from launcher.cli import options as opt
    from launcher.errors import LauncherError
    from launcher.render.systemd import drop_in_folder
    from launcher.store import instance_name

    own = instance_name(name)
    if (folder / drop_in_folder(own)).is_dir():
        return own
    try:
        return instance_name(opt.resolve_profile(opt.split_quant(name, None)[0]).name)
    except LauncherError:
        return own


def _make_units(
    ctx: typer.Context, *, user: bool, root: Path, groups: list[str] | None, hub_token_file: Path | None
) -> "tuple[Units, Path]":
    """Plan as `serve` would, and return the unit of that with the folder that it belongs in."""
    import os
    import sys
    from tempfile import TemporaryDirectory

    from launcher.domain import Refusal
    from launcher.errors import EXIT_REFUSED, UsageError
    from launcher.fetch.hub import read_settings
    from launcher.gateway.keys import check_exposure
    from launcher.installation import places, reach
    from launcher.render.plan import render_outcome
    from launcher.render.systemd import TEMPLATE_NAME, Scope, Surroundings, render_units
    from launcher.resources import data_dir
    from launcher.store import instance_name

    scope = _scope(user)
    if scope is Scope.SYSTEM:
        places.see_as_service(os.environ, root, cache=ctx.with_resource(TemporaryDirectory(prefix="launcher-")))
    elif groups:
        msg = "--group is for a unit of the system: one of your own has your groups"
        raise UsageError(msg, help="leave --group out")
    parsed = _parse(ctx)
    params = parsed.params
    key_file = _existing(params["api_key_file"], "--api-key-file")
    token_file = _existing(hub_token_file, "--hub-token-file")
    keys = _read_keys(key_file)
    if token_file is not None:
        os.environ["HF_TOKEN_PATH"] = token_file
    read_settings(os.environ)  # a fault where an address has a password in it, which no unit may hold
    profile, plans, kinds = _plan(params)
    check_exposure(profile.address, keys)
    sys.stderr.write(render_outcome(plans if isinstance(plans, Refusal) else plans[0]))
    if isinstance(plans, Refusal):
        raise typer.Exit(EXIT_REFUSED)
    _tell_download(plans[0])
    program = places.running_program()
    names = _check_groups(groups or [])
    bound: tuple[str, ...] = ()
    if scope is Scope.SYSTEM:
        needed = reach.needed_paths(program[0], plans, profile.source, root)
        _check_readable(reach.find_unreadable(needed, names))
        bound = reach.hidden_paths(needed)
    around = Surroundings(
        program=program,
        words=_words(parsed, without=frozenset({"api_key_file"} if scope is Scope.SYSTEM else set())),
        environment=tuple(_environment(plans[0], scope)),
        key_file=key_file,
        token_file=token_file,
        bound_paths=bound,
        groups=names,
        gpu_groups=reach.gpu_groups(),
    )
    template = data_dir("systemd") / ("user" if user else "") / TEMPLATE_NAME
    units = render_units(
        template.read_text(encoding="utf-8"), instance_name(profile.name), plans, around, scope=scope, kinds=kinds
    )
    return units, places.units_folder(scope, root, os.environ)


def _serve_command() -> "click.Command":
    from typer.main import get_command

    app = typer.Typer()
    serving.register(app)
    return get_command(app)


def _parse(ctx: typer.Context) -> "click.Context":
    """Read the words that are not ours as `launch serve` would.

    Raises:
        UsageError: they ask for what a unit cannot do.
    """
    from launcher.errors import UsageError

    parsed = _serve_command().make_context(ctx.info_name, list(ctx.args), parent=ctx.parent)
    for name in _REFUSED:
        if parsed.params[name]:
            msg = f"a unit cannot be given --{name}"
            raise UsageError(msg, help="it stays in the foreground, and on this machine: leave the option out")
    return parsed


_FILES = (".toml", ".json", ".gguf", ".safetensors")


def _words(parsed: "click.Context", *, without: frozenset[str]) -> tuple[str, ...]:
    """Return NAME and the options that were given, as `serve` takes them from any folder."""
    import click

    from launcher.resources import from_home

    model = parsed.params["name"]
    words = [_absolute(model) if _is_path(model) or from_home(model).is_dir() else model]
    for param in parsed.command.params:
        name = param.name or ""
        given = parsed.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not given or name == "name" or name in without:
            continue
        value = parsed.params[name]
        words.append(param.opts[0])
        if value is not True:
            is_path = name == "api_key_file" or (name == "inventory" and _is_path(value))
            words.append(_absolute(str(value)) if is_path else str(value))
    return tuple(words)


def _is_path(word: str) -> bool:
    """Tell a path of a profile, of weights or of a machine from a name, whatever lies in this folder under that name."""
    return "/" in word or word.endswith(_FILES)


def _absolute(word: str) -> str:
    """Return a path of an existing file as it is called from anywhere; another word as it is."""
    from launcher.resources import from_home

    path = from_home(word)
    return str(path.absolute()) if path.exists() else word


def _existing(path: "str | Path | None", option: str) -> str | None:
    from launcher.errors import UsageError
    from launcher.resources import from_home

    if path is None:
        return None
    found = from_home(str(path)).absolute()
    if not found.is_file():
        msg = f"{option} names no file: {found}"
        raise UsageError(msg, help="the service manager reads it when the service starts: give its path")
    return str(found)


def _read_keys(key_file: str | None) -> "Keys":
    """Read the keys as the service will: the environment of this command is not its."""
    from launcher.gateway.keys import read_keys

    return read_keys({}, None if key_file is None else Path(key_file))


def _plan(params: "Mapping[str, Any]") -> "tuple[Profile, tuple[Plan, ...] | Refusal, frozenset[DeviceKind]]":
    """Plan as `serve` does now, and once more as it would if nothing else used the machine, at its next start perhaps.

    The kinds are of the devices that either plan uses.
    """
    from msgspec.structs import replace

    from launcher.cli import options as opt
    from launcher.cli.calibrate import read_known
    from launcher.domain import HOST_MEMORY, DeviceKind, Plan, Refusal, Request
    from launcher.fetch.places import is_offline
    from launcher.planner.advice import plan as decide
    from launcher.planner.freed import give_back

    name, quant = opt.split_quant(params["name"], params["quant"])
    fields = ("context", "ctx_size", "parallel", "batch_size", "ubatch_size", "n_gpu_layers", "n_cpu_moe")
    more = ("cache_type_k", "cache_type_v", "flash_attn", "threads", "engine")
    settings = opt.parse_settings(quant=quant, **{field: params[field] for field in (*fields, *more)})
    limits = {"min_quant": params["min_quant"], "min_tps": params["min_tps"]}
    profile = opt.apply_limits(opt.resolve_profile(name), **limits)
    profile = replace(profile, address=opt.with_address(profile.address, host=params["host"], port=params["port"]))
    inventory, rpc = params["inventory"], params["rpc"]
    workers = opt.parse_rpc(rpc, inventory)
    machine = opt.read_inventory(inventory, workers)
    argv = opt.echo_argv("plan", inventory=inventory, rpc=rpc, **limits)
    others = opt.find_alternatives(inventory=inventory, **limits)
    known = read_known(machine, inventory)

    def weigh(weights: "Profile") -> "tuple[Request, Outcome]":
        request = Request(profile=weights, settings=settings, force=params["force"])
        return request, decide(request, machine, argv=argv, alternatives=others, calibration=known)

    request, outcome = _weigh_as_serve(profile, settings, weigh, may_pull=not (params["no_pull"] or is_offline()))
    if isinstance(outcome, Refusal):
        return profile, outcome, frozenset()
    everything = {HOST_MEMORY: machine.host.total_bytes, **{each.name: each.total_bytes for each in machine.devices}}
    calm = decide(request, give_back(machine, everything, within_group=True), argv=argv, calibration=known)
    plans = (outcome, calm) if isinstance(calm, Plan) else (outcome,)
    used = {use.name for each in plans for use in each.footprint.devices}
    kinds = frozenset(device.kind for device in machine.devices if device.name in used) - {DeviceKind.RPC}
    return profile, plans, kinds


def _weigh_as_serve(
    profile: "Profile", settings: "Settings", weigh: "Callable[[Profile], tuple[Request, Outcome]]", *, may_pull: bool
) -> "tuple[Request, Outcome]":
    """Plan with the weights that are here, else with what the service would download at its first start.

    Raises:
        WeightsMissingError: nothing is here, and nothing is to be or can be downloaded.
    """
    from launcher.cli import options as opt
    from launcher.cli.pulling import local_part, obtainable_part
    from launcher.domain import Plan

    weights = opt.find_weights(profile)
    here = local_part(weights, settings)
    weighed = weigh(here) if here is not None else None
    if weighed is not None and isinstance(weighed[1], Plan):
        return weighed
    there = obtainable_part(weights, settings) if may_pull else None
    if there is not None:
        return weigh(there)
    return weighed or weigh(opt.keep_local(profile, settings))


def _tell_download(plan: "Plan") -> None:
    """Say that the first start takes a while, where it will."""
    import sys

    from launcher.profiles import is_local
    from launcher.units import format_bytes

    if not is_local(plan.artifact):
        size = format_bytes(plan.footprint.weights_bytes)
        sys.stderr.write(f"note: its weights are not here; the first start downloads them, about {size}\n")


_OF_ANYBODY = ("LAUNCHER_LLAMA_SERVER", "LAUNCHER_VLLM", "LAUNCHER_ACCEPT_HOLES")
_FOLDERS_OF_A_USER = (
    *("LAUNCHER_PROFILES", "LAUNCHER_STATE_DIR", "LAUNCHER_CACHE_DIR", "OLLAMA_MODELS"),
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"),
)
_WORDS_OF_A_USER = (
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
)


def _environment(plan: "Plan", scope: "Scope") -> "list[tuple[str, str]]":
    """Return what the service finds in its environment: what led this command to what it found, whatever folder it was in."""
    import os

    from launcher.installation import reach
    from launcher.render.systemd import Scope

    own = (*_FOLDERS_OF_A_USER, *_WORDS_OF_A_USER) if scope is Scope.USER else ()
    found = [(name, os.environ[name]) for name in (*_OF_ANYBODY, *own) if os.environ.get(name)]
    for idx, (name, value) in enumerate(found):
        is_path = name in _FOLDERS_OF_A_USER or (name in _OF_ANYBODY and "/" in value)
        if is_path and not value.startswith("~"):
            found[idx] = (name, str(Path(value).absolute()))
    path = reach.search_path(plan, os.environ)
    return found if path is None else [*found, ("PATH", path)]


def _check_groups(names: "Sequence[str]") -> tuple[str, ...]:
    import grp

    from launcher.errors import UsageError

    for name in names:
        try:
            grp.getgrnam(name)
        except KeyError:
            msg = f"there is no group `{name}`"
            raise UsageError(msg, help="make it with `groupadd --system NAME`, or leave --group out") from None
    return tuple(dict.fromkeys(names))


def _check_readable(lines: "Sequence[str]") -> None:
    from launcher.errors import UnitError

    if lines:
        msg = "the service has a user of its own, which cannot read what it needs"
        raise UnitError(
            msg, details=tuple(lines), help="open it as said, or name a group that may read it: --group NAME"
        )
