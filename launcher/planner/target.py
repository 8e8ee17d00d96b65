"""Where a request could run: an engine, the devices that it reaches, and what each memory can give.

It must not know models or how much they need.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from launcher.domain import (
    HOST_MEMORY,
    Budget,
    Calibration,
    Device,
    DeviceKind,
    Engine,
    EngineInstall,
    Host,
    Inventory,
    Refusal,
    RefusalCode,
    Request,
)
from launcher.planner.abilities import describe_lack, has_option, is_usable, missing_options
from launcher.planner.ask import Ask
from launcher.planner.calibration import prefer_fastest
from launcher.planner.footprint.llama_cpp import Backend
from launcher.tensor_types import TRAITS
from launcher.units import GIB, MIB

DEVICE_MARGIN_BYTES: Final = 512 * MIB
DEVICE_RESIDUAL_BYTES: Final = 450 * MIB
"""What a driver's context and pools take beside the engine's own account (published: llama.cpp PR 15860)."""
HOST_MARGIN_BYTES: Final = 1 * GIB
HOST_RESIDUAL_BYTES: Final = 256 * MIB
"""Assumed: the engine's code, its tokenizer and its HTTP threads."""
MAX_SEQUENCES: Final = 256
"""``LLAMA_MAX_SEQ`` (``src/llama-cparams.h``, build 11434): more are refused when the context is made."""


class Target(Struct, frozen=True, kw_only=True):
    """Where to run: an engine, the devices it reaches, what each memory can give, and what was measured there."""

    engine: Engine
    install: EngineInstall | None
    devices: tuple[Device, ...]
    engine_devices: tuple[str, ...]
    budgets: tuple[Budget, ...]
    host_budget: Budget
    host: Host
    calibration: Calibration | None = None

    @property
    def backend(self) -> Backend:
        """Which allocation rules apply."""
        if not self.devices:
            return Backend.CPU
        return Backend.RPC if self.devices[0].kind is DeviceKind.RPC else Backend.GPU

    @property
    def budget_bytes(self) -> int:
        """What all memories together can give."""
        return self.host_budget.budget_bytes + sum(budget.budget_bytes for budget in self.budgets)

    @property
    def known_budgets(self) -> tuple[Budget, ...]:
        """Every memory's budget, devices first, the host last."""
        return (*self.budgets, self.host_budget)

    def has_option(self, option: str) -> bool:
        """Tell whether the engine's build has an option that only some plans need."""
        return has_option(self.install, option)

    def without_margins(self) -> "Target":
        """Return the same target with nothing left free on purpose: what ``--force`` may use."""
        return replace(
            self,
            budgets=tuple(replace(budget, margin_bytes=0) for budget in self.budgets),
            host_budget=replace(self.host_budget, margin_bytes=0),
        )

    def first(self, n_devices: int) -> "Target":
        """Return the same target with its first devices only."""
        return replace(
            self,
            devices=self.devices[:n_devices],
            engine_devices=self.engine_devices[:n_devices],
            budgets=self.budgets[:n_devices],
        )


def device_budget(device: Device, residual_bytes: int) -> Budget:
    """Return what a plan may use of a device, beside what its driver takes."""
    return Budget(
        name=device.name,
        total_bytes=device.total_bytes,
        free_bytes=device.known_free_bytes,
        margin_bytes=DEVICE_MARGIN_BYTES,
        residual_bytes=residual_bytes,
    )


def host_budget(host: Host) -> Budget:
    """Return what a plan may use of host memory."""
    return Budget(
        name=HOST_MEMORY,
        total_bytes=host.total_bytes,
        free_bytes=host.free_bytes,
        margin_bytes=HOST_MARGIN_BYTES,
        residual_bytes=HOST_RESIDUAL_BYTES,
    )


def _driver_bytes(device: Device) -> int:
    return 0 if device.kind is DeviceKind.RPC else DEVICE_RESIDUAL_BYTES


def build_target(
    engine: Engine, install: EngineInstall | None, inventory: Inventory, calibration: Calibration | None = None
) -> Target:
    """Gather what an engine reaches, the fastest device first: what is split spills onto the slower ones last.

    Workers come after the devices of this machine, for a network lies between.
    """
    if install is None:
        reached = [("", device) for device in inventory.devices]
    else:
        by_name = {device.name: device for device in inventory.devices}
        reached = [(item.name, by_name[item.device]) for item in install.devices if item.device in by_name]
    reached.sort(
        key=lambda pair: (
            pair[1].kind is DeviceKind.RPC,
            -(pair[1].bandwidth_bytes_per_s or 0.0),
            -pair[1].total_bytes,
        )
    )
    if not all(has_option(install, word) for word in ("--split-mode", "--tensor-split")):
        reached = reached[:1]  # the build cannot be told how to share a model out: the fastest device alone
    names = tuple(name for name, _ in reached if name)
    devices = tuple(device for _, device in reached)
    return Target(
        engine=engine,
        install=install,
        devices=devices,
        engine_devices=names,
        budgets=tuple(device_budget(device, _driver_bytes(device)) for device in devices),
        host_budget=host_budget(inventory.host),
        host=inventory.host,
        calibration=calibration,
    )


_LLAMA_CPP: Final = (Engine.LLAMA_SERVER, Engine.LLAMA_CPP_PYTHON)


def choose_target(
    request: Request, ask: Ask, inventory: Inventory, calibration: Calibration | None = None
) -> Target | Refusal:
    """Choose the engine: the one that was asked for, else the profile's first that reaches the GPU, else its first.

    On a machine whose engines are unknown (a reference machine) the profile's first engine is assumed to be there.
    Where a calibration compared engines, the fastest of those that remain is taken.
    """
    wanted = (ask.settings.engine,) if ask.settings.engine else request.profile.engines
    engines = [engine for engine in wanted if engine in _LLAMA_CPP]
    if ask.n_parallel > 1:
        engines = [engine for engine in engines if engine is not Engine.LLAMA_CPP_PYTHON]
    if not engines:
        named = ", ".join(wanted) or "none"
        return Refusal(
            code=RefusalCode.UNSUPPORTED,
            model=ask.model,
            fact=f"no engine that was asked for ({named}) can serve `{ask.model}` with {ask.n_parallel} parallel "
            f"request{'s' if ask.n_parallel > 1 else ''}",
            derivation=(
                "this release plans for llama-server and llama-cpp-python; the latter serves one request at a time",
            ),
        )
    if inventory.engines is None:
        target = build_target(engines[0], None, inventory, calibration)
        return _refuse_settings(ask, target) or target
    found = [install for engine in engines for install in inventory.engines if install.engine is engine]
    if not found:
        have = ", ".join(sorted({install.engine for install in inventory.engines})) or "none"
        return Refusal(
            code=RefusalCode.NO_ENGINE,
            model=ask.model,
            fact=f"none of the engines that can serve `{ask.model}` is installed",
            derivation=(f"wanted {', '.join(engines)}; found {have}",),
        )
    usable = [install for install in found if is_usable(install)]
    if not usable:
        lacking = all(missing_options(install) for install in found)
        what = "has the options that a plan for `{}` is made of" if lacking else "may be used for `{}`"
        return Refusal(
            code=RefusalCode.ENGINE_TOO_OLD,
            model=ask.model,
            fact=f"no engine found {what.format(ask.model)}",
            derivation=tuple(describe_lack(install) for install in found),
        )
    found = usable
    with_gpu = [install for install in found if any(device.device for device in install.devices)]
    pool = (with_gpu or found) if inventory.devices else found
    install = prefer_fastest(pool, calibration)[0]
    target = build_target(install.engine, install, inventory, calibration)
    return _refuse_settings(ask, target) or target


def _refuse_settings(ask: Ask, target: Target) -> Refusal | None:
    """Refuse what the user fixed and this engine cannot do here: it is never dropped in silence."""
    install = " ".join(target.install.argv) if target.install else target.engine
    facts = []
    if ask.settings.n_gpu_layers and not target.devices:
        facts.append(f"--n-gpu-layers {ask.settings.n_gpu_layers}: no GPU is reached by `{install}`")
    if ask.settings.n_cpu_moe and not target.has_option("--n-cpu-moe"):
        facts.append(f"--n-cpu-moe {ask.settings.n_cpu_moe}: `{install}` has no such option")
    if ask.n_parallel > MAX_SEQUENCES:
        facts.append(f"--parallel {ask.n_parallel}: llama.cpp serves at most {MAX_SEQUENCES} requests at once")
    cache_v = ask.settings.cache_type_v
    if ask.settings.flash_attn is False and cache_v is not None and TRAITS[cache_v.tensor_type].block_size > 1:
        facts.append(f"--cache-type-v {cache_v}: a quantized V cache needs flash attention, which is off")
    if not facts:
        return None
    return Refusal(
        code=RefusalCode.UNSUPPORTED,
        model=ask.model,
        fact=f"`{ask.model}` cannot be served here as it was asked for",
        derivation=tuple(facts),
    )
