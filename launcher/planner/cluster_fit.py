"""The choice over several machines: the best plan of any one of them, or vLLM over many.

What one machine could do is asked of whoever calls, what vLLM could do over them of ``vllm_fit.py``. llama.cpp knows one
host: its plans are for the best single machine, and say so. Advice is not its business.
"""

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    Cluster,
    Engine,
    Inventory,
    Outcome,
    Plan,
    Profile,
    Provenance,
    Refusal,
    RefusalCode,
    Request,
    Speed,
)
from launcher.planner.ask import merge_settings, resolve_ask
from launcher.planner.choice import explain, pareto_front, pick
from launcher.planner.forms import Form
from launcher.planner.hosts import devices_of, distinct_nodes, on_node
from launcher.planner.parameters import count_active
from launcher.planner.quality import kl_divergence
from launcher.planner.rivals import foreign_settings, is_rival

_NO_SPEED = Speed(generation_tps=0.0, basis=Provenance.ASSUMED)


class _Option(Struct, frozen=True):
    """A plan that can be weighed with others."""

    plan: Plan
    kl: float

    @property
    def engine(self) -> Engine:
        """Which engine it is for."""
        return self.plan.engine

    @property
    def speed(self) -> Speed:
        """Predicted tokens per second."""
        return self.plan.speed or _NO_SPEED

    @property
    def quantization(self) -> str:
        """The written name of the weights' quantization."""
        return self.plan.quantization

    @property
    def weights_bytes(self) -> int:
        """Size of the weights, as far as they are on devices or in host memory."""
        return self.plan.footprint.weights_bytes


def decide_on_cluster(
    request: Request,
    cluster: Cluster,
    decide_one: Callable[[Inventory], Outcome | None],
    forms: tuple[Form, ...],
) -> Outcome | None:
    """Plan or refuse; ``decide_one`` answers for one machine, ``None`` where it has nothing that is wanted."""
    kinds = distinct_nodes(cluster)
    answers = [(node, n, decide_one(node)) for node, n in kinds]
    plans = [_alone(plan, node, n, cluster) for node, n, plan in answers if isinstance(plan, Plan)]
    across = _decide_across(request, cluster, forms)
    if isinstance(across, Plan):
        # what vLLM could do on one machine was among its choices over all of them
        plans = [*(plan for plan in plans if plan.engine is not Engine.VLLM), across]
    if plans:
        return _best(request, plans)
    refusals = [(node, answer) for node, _, answer in answers if isinstance(answer, Refusal)]
    return _refuse(request, cluster, refusals, across) if refusals else None


def list_on_cluster(
    request: Request, cluster: Cluster, list_one: Callable[[Inventory], Sequence[Plan]], across: Iterable[Plan]
) -> tuple[Plan, ...]:
    """Return what no other plan beats in both quality and speed, best quality first."""
    found = [_alone(plan, node, n, cluster) for node, n in distinct_nodes(cluster) for plan in list_one(node)]
    options = _options(request.profile, [*across, *found])
    return tuple(option.plan for option in pareto_front(options))


def _decide_across(request: Request, cluster: Cluster, forms: tuple[Form, ...]) -> Outcome | None:
    """Return vLLM's answer over all machines; ``None`` where it is not to be chosen unasked."""
    if not is_rival(request, cluster):
        return None
    from launcher.planner.vllm_fit import decide_vllm  # noqa: PLC0415 - a tenth of the start-up, seldom needed

    return decide_vllm(request, cluster, forms)


def _why_not_across(request: Request, cluster: Cluster) -> str:
    """Return why vLLM was not asked."""
    settings = merge_settings(request.profile.pins, request.settings)
    if Engine.VLLM not in request.profile.engines:
        return "it is not among the profile's engines"
    if settings.engine is not None:
        return f"{settings.engine} was asked for"
    if foreign := foreign_settings(settings):
        return f"it has no {', '.join(foreign)}"
    devices = tuple(devices_of(cluster))
    if not devices:
        return "there is no GPU"
    if any(device.compute_capability is None for device in devices):
        return "the compute capability of a GPU is unknown"
    return "it is on none of these machines"


def _alone(plan: Plan, node: Inventory, n: int, cluster: Cluster) -> Plan:
    """Return one machine's plan as the cluster's, with what that leaves idle."""
    alike = f", one of {n} alike" if n > 1 else ""
    note = f"{plan.engine} serves from one machine: `{node.name}`{alike}"
    if len(cluster.nodes) > 1:
        note += f"; the rest of `{cluster.name}` is left alone"
    return replace(on_node(plan, node.name), notes=(note, *plan.notes))


def _best(request: Request, plans: Sequence[Plan]) -> Plan:
    """Pick by objective among those that are whole and give the context that was wished for, else among the rest."""
    ask = resolve_ask(request)

    def lacks(plan: Plan) -> tuple[bool, bool]:
        return not plan.is_whole, plan.n_ctx_per_request < ask.n_ctx_per_request

    least = min(map(lacks, plans))
    options = _options(request.profile, [plan for plan in plans if lacks(plan) == least])
    best = pick(options, ask.objective, ask.n_parallel)
    why = explain(best, options, ask.objective, ask.n_parallel)
    return replace(best.plan, notes=(why, *best.plan.notes)) if why else best.plan


def _options(profile: Profile, plans: Iterable[Plan]) -> list[_Option]:
    specs = [artifact.spec for artifact in profile.artifacts if artifact.spec is not None]
    n_active = count_active(min(specs, key=lambda spec: len(spec.tensors))) if specs else None
    return [_Option(plan, kl_divergence(plan.quantization, n_active)) for plan in plans]


def _refuse(
    request: Request, cluster: Cluster, refusals: Sequence[tuple[Inventory, Refusal]], across: Outcome | None
) -> Refusal:
    """Say why no machine serves it alone, from the largest of them, and why all together do not."""
    node, nearest = max(refusals, key=lambda pair: pair[1].available_bytes or 0)
    derivation = [f"on `{node.name}`: {nearest.fact}", *nearest.derivation]
    if isinstance(across, Refusal):
        derivation += [f"over several, vllm: {line}" for line in across.derivation]
    else:
        derivation.append(f"over several: vllm alone spans machines, and {_why_not_across(request, cluster)}")
    n = len(cluster.nodes)
    return replace(
        nearest,
        fact=f"`{request.profile.name}` is served by none of the {n} machines of `{cluster.name}`, nor by them together",
        derivation=tuple(derivation),
        certain=nearest.certain or nearest.code is RefusalCode.NO_ENGINE,
    )
