"""``launch serve --cluster``: what stands around an application on a Ray cluster, and how a plan becomes one."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from launcher.cli.service import GatewayFront
    from launcher.cluster.dashboard import Dashboard
    from launcher.cluster.serving import Room, Serving
    from launcher.domain import ClusterApplication, Machines, Outcome, Plan, Request, Settings
    from launcher.gateway.keys import Keys
    from launcher.store import Instance
    from launcher.supervisor.account import Account
    from launcher.supervisor.notices import Report


class Decide(Protocol):
    """Plans a request for some machines, or refuses."""

    def __call__(self, request: "Request", machines: "Machines", /) -> "Outcome":
        """Return the plan or the refusal."""


def check_for_cluster(settings: "Settings", *, inventory: str | None, rpc: str | None) -> None:
    """Make sure that nothing was asked for that a cluster does not have.

    Raises:
        UsageError: something was.
    """
    from launcher.domain import Engine
    from launcher.errors import UsageError
    from launcher.planner.rivals import foreign_settings

    for flag, value in (("--inventory", inventory), ("--rpc", rpc)):
        if value is not None:
            msg = f"--cluster and {flag} cannot both be given"
            raise UsageError(msg, help="each says by itself which machines are meant")
    if settings.engine not in {None, Engine.VLLM}:
        msg = f"{settings.engine} does not serve on a Ray cluster"
        raise UsageError(msg, help="leave --engine out: Ray Serve LLM runs vllm")
    if foreign := foreign_settings(settings):
        flags = ", ".join(
            f"--{name.removeprefix('n_') if name == 'n_threads' else name}".replace("_", "-") for name in foreign
        )
        msg = f"{flags}: vllm, which a Ray cluster serves with, has no such setting"
        raise UsageError(msg, help="leave it out, or serve on this machine without --cluster")


def serve_on_cluster(
    request: "Request",
    url: str,
    *,
    keys: "Keys",
    decide: Decide,
    report: "Report",
    stall_timeout_s: float,
) -> None:
    """Plan for the cluster as it is, have Ray Serve run that, and stay with it until it is told to stop.

    Raises:
        LauncherError: of whatever failed; nothing of ours is left on the cluster then, or that is said.
    """
    import asyncio
    import sys

    import typer
    from msgspec.structs import replace

    from launcher.cli.beginning import beginning
    from launcher.cluster.dashboard import open_dashboard
    from launcher.cluster.runner import ApplicationRun
    from launcher.cluster.serving import FollowOptions
    from launcher.domain import ClusterApplication, Engine, Refusal
    from launcher.errors import EXIT_REFUSED
    from launcher.render.plan import render_outcome
    from launcher.store import open_instance
    from launcher.supervisor.reclaim import reclaim
    from launcher.supervisor.signals import handling

    request = replace(request, settings=replace(request.settings, engine=Engine.VLLM))
    with (
        open_instance(request.profile.name) as instance,
        open_dashboard(url) as dashboard,
        open_dashboard(url) as log_reader,
    ):
        with beginning(instance, request.profile.address, report):
            reclaim(instance)
            tell_left(instance, dashboard.url, report)
            outcome = decide(request, _ask_for_ours(dashboard, request.profile.name))
            sys.stderr.write(render_outcome(outcome))
            if isinstance(outcome, Refusal):
                raise typer.Exit(EXIT_REFUSED)
            serving = _serving(outcome, dashboard)
        application = ClusterApplication(url=dashboard.url, name=serving.name)
        with _standing(instance, outcome, application, keys=keys, report=report) as (account, front):
            run = ApplicationRun(
                serving,
                dashboard,
                front,
                account,
                fetch_log=log_reader.get,
                explain=lambda: _explain(request, outcome, dashboard, decide),
                options=FollowOptions(unplaced_s=stall_timeout_s),
            )
            asyncio.run(run.run(handling))


def tell_left(instance: "Instance", url: str | None, report: "Report") -> None:
    """Say what an earlier run of this name may have left on a cluster other than the one at ``url``.

    The record that says where it is is about to be replaced.
    """
    from launcher.supervisor.notices import Notice

    record = instance.read()
    left = record.application if record is not None else None
    if left is not None and left.url != url:
        text = f"an earlier run may have left `{left.name}` on the Ray cluster at {left.url}: `launch stop {instance.name} --cluster {left.url}`"
        report(Notice(event="cluster.left", text=text))


def _ask_for_ours(dashboard: "Dashboard", model: str) -> "Machines":
    """Return the cluster, with the GPUs that an application of ours from an earlier run holds: it is about to be replaced.

    Raises:
        ForeignApplicationError: there is one of that name that is not ours.
    """
    from launcher.backends.ray_serve import application_name
    from launcher.cluster import ask_cluster
    from launcher.cluster.applications import check_ours
    from launcher.cluster.serve_details import held_gpus
    from launcher.cluster.submission import read_serve

    name = application_name(model)
    application = read_serve(dashboard).applications.get(name)
    if application is None:
        return ask_cluster(dashboard)
    check_ours(name, application)
    return ask_cluster(dashboard, given_back=held_gpus(application))


def _serving(plan: "Plan", dashboard: "Dashboard") -> "Serving":
    from launcher.backends.canary import CANARY_PATH, canary_body
    from launcher.backends.ray_serve import build_application
    from launcher.backends.vllm import CANARY_PROMPT
    from launcher.cluster.applications import choose_proxies
    from launcher.cluster.serving import Serving

    return Serving(
        application=build_application(plan, accelerator_type=_accelerator(plan, dashboard)),
        model=plan.model,
        canary_path=CANARY_PATH,
        canary_body=canary_body(plan.model, CANARY_PROMPT),
        proxies=choose_proxies(is_here=dashboard.is_here),
    )


def _accelerator(plan: "Plan", dashboard: "Dashboard") -> str | None:
    """Return Ray's name of the planned GPUs where the cluster has others as well, which Ray might take instead."""
    from launcher.cluster import NODES, SUMMARY
    from launcher.cluster.ray_nodes import read_accelerators

    kinds = read_accelerators(dashboard.url, nodes=dashboard.get(NODES), summary=dashboard.get(SUMMARY))
    wanted = {kinds.get(use.host or "") for use in plan.footprint.devices}
    return wanted.pop() if len(wanted) == 1 and len(set(kinds.values())) > 1 else None


@contextmanager
def _standing(
    instance: "Instance", plan: "Plan", application: "ClusterApplication", *, keys: "Keys", report: "Report"
) -> "Iterator[tuple[Account, GatewayFront]]":
    """Yield the account of the instance and its endpoint, which tells what the account says."""
    from launcher.cli.service import GatewayFront
    from launcher.gateway.gateway import Gateway
    from launcher.supervisor.account import Account
    from launcher.supervisor.options import RunOptions

    account = Account(instance, plan.address, plan, RunOptions(), report)
    try:
        front = GatewayFront(lambda: Gateway(plan.model, keys=keys), plan.address)  # vLLM queues well: no bound
        account.tell(lambda record: front.publish(record, None, {}))
        account.update(application=application)
        yield account, front
    finally:
        account.close()


def _explain(request: "Request", plan: "Plan", dashboard: "Dashboard", decide: Decide) -> "Room":
    """Tell whether what Ray does not place could be placed: Ray knows no difference between never and not now."""
    import shlex

    from launcher.cluster import ask_cluster
    from launcher.cluster.serving import Chance, Room
    from launcher.domain import Plan

    now = decide(request, ask_cluster(dashboard))
    if isinstance(now, Plan):
        if (now.tensor_parallel, now.pipeline_parallel) == (plan.tensor_parallel, plan.pipeline_parallel):
            return Room(Chance.NOW)
        return Room(
            Chance.BUSY,
            "others took what it was planned for, and another plan fits what is left",
            help=f"plan it anew: {shlex.join(['launch', 'serve', request.profile.name, '--cluster', dashboard.url])}",
        )
    advice = now.advice[0] if now.advice else None
    help_ = f"{advice.text}: {shlex.join(advice.argv)}" if advice is not None else None
    if isinstance(decide(request, ask_cluster(dashboard, as_if_empty=True)), Plan):
        words = "there would be if nothing else ran on the cluster: others hold what it takes"
        return Room(Chance.BUSY, words, help=help_, details=now.derivation)
    words = f"there never will be on this cluster: {now.fact}"
    return Room(Chance.NEVER, words, help=help_, details=now.derivation)


def take_off(name: str, left: "ClusterApplication | None", *, url: str | None, timeout_s: float) -> bool:
    """Take an application off a cluster that nobody of us serves any more; say whether there was one.

    ``left`` is what the instance's record says of it; ``url`` names the cluster where none is recorded, or another one.

    Raises:
        ForeignApplicationError: it is not ours.
        ClusterError: it could not be taken off.
    """
    from msgspec.structs import replace

    from launcher.backends.ray_serve import application_name
    from launcher.cli.reaching import profile_name
    from launcher.cluster.dashboard import open_dashboard
    from launcher.cluster.submission import remove
    from launcher.store import open_instance

    if left is not None and url is None:
        url, application = left.url, left.name
    else:
        application = application_name(profile_name(name))
    assert url is not None  # noqa: S101 - one of the two says it
    with open_dashboard(url) as dashboard, open_instance(name) as instance:
        sent = remove(dashboard, application, timeout_s=timeout_s)
        record = instance.read()
        if record is not None and record.application is not None:
            instance.write(replace(record, application=None))
    return sent.was_there
