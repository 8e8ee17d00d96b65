"""What files take from a plan: GPUs, memory, weights, keys, images; and what they cannot take."""

from typing import Any, Final

import pytest
import yaml
from msgspec.structs import replace

from launcher.backends import build_command
from launcher.cluster.ray_holes import find_holes as find_ray_holes
from launcher.domain import (
    Address,
    Artifact,
    Device,
    DeviceKind,
    Engine,
    EngineDevice,
    EngineInstall,
    Inventory,
    Machines,
    Plan,
)
from launcher.errors import UsageError
from launcher.export import Target, export
from launcher.export.handover import Surroundings, hand_over, renumbered
from launcher.export.images import (
    LLAMA_BUILD,
    LLAMA_IMAGES,
    RAY_IMAGE,
    RAY_VERSION,
    RAY_VLLM_VERSION,
    SKYPILOT_GPUS,
    VLLM_IMAGE,
    VLLM_VERSION,
)
from launcher.inventory import list_machines, load_inventory
from launcher.inventory.holes import parse_release
from launcher.inventory.llama_holes import find_build_holes
from launcher.inventory.vllm_holes import find_holes
from launcher.units import GIB, MIB
from tests.fakes.exports import planned

_AT: Final = Address(port=8080)
_CONTAINER: Final = Surroundings(has_own_gpus=True, has_mounts=True, is_container=True)


def _file(found: tuple[Plan, Machines], target: Target, **options: Any) -> Any:
    return yaml.safe_load(export(*found, target, **{"address": _AT, **options}))


def _without_weights(plan: Plan) -> Plan:
    return replace(plan, artifact=Artifact(format=plan.format, quantization=plan.quantization))


@pytest.mark.parametrize(("model", "machine"), [("gemma2-27b", "rtx4090"), ("llama3.1-405b", "8xh100")])
def test_the_engine_is_told_what_serve_tells_it(model: str, machine: str) -> None:
    """All of the arguments are those of the backend's own command, but for where weights and clients are."""
    plan, machines = planned(model, machine)
    program = ("vllm", "serve") if plan.engine is Engine.VLLM else ("/app/llama-server",)
    install = EngineInstall(engine=plan.engine, argv=program)
    served = build_command(
        replace(plan, install=install, engine_devices=() if plan.vllm else ("CUDA0",)),
        weights_path="/models/w.gguf" if plan.vllm is None else "/models",
        address=replace(_AT, host="0.0.0.0"),  # noqa: S104 - inside of a container
        alias=plan.model,
    )
    around = hand_over(plan, machines, weights="/srv/w.gguf", address=_AT, around=_CONTAINER)
    assert around.nodes[0].argv == served.argv


def test_gpus_of_a_larger_machine_are_named() -> None:
    """A plan for some of a machine's GPUs takes those and no others, and numbers them anew where it sees only them."""
    gpu = Device(name="", kind=DeviceKind.CUDA, description="NVIDIA GeForce RTX 4090", total_bytes=24 * GIB)
    plan, machines = planned("gemma2-27b", "rtx4090")
    assert isinstance(machines, Inventory)
    machine = replace(machines, devices=tuple(replace(gpu, name=f"gpu{idx}") for idx in range(4)))
    uses = tuple(replace(plan.footprint.devices[0], name=name) for name in ("gpu3", "gpu1"))
    budgets = (plan.budgets[0], plan.budgets[0], plan.budgets[-1])
    split = replace(plan, footprint=replace(plan.footprint, devices=uses), budgets=budgets, tensor_split=(30.0, 17.0))
    engine = _file((split, machine), Target.COMPOSE)["services"]["engine"]
    assert engine["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["3", "1"]
    assert engine["command"][engine["command"].index("--device") + 1] == "CUDA1,CUDA0"
    assert engine["command"][engine["command"].index("--tensor-split") + 1] == "30,17"
    unit = export(split, machine, Target.QUADLET, address=_AT)
    assert [line for line in unit.splitlines() if line.startswith("AddDevice=")] == [
        "AddDevice=nvidia.com/gpu=3",
        "AddDevice=nvidia.com/gpu=1",
    ]


def test_numbers_keep_their_order() -> None:
    """Ten comes after nine; slices, which have names, come last."""
    assert renumbered(("10", "9", "MIG-b", "MIG-a")) == ("1", "0", "3", "2")


def test_memory_is_the_plans() -> None:
    """The limit is what the plan uses of the host's memory, with the margin, and shared memory where GPUs share layers."""
    plan, machines = planned("gemma2-27b", "rtx4090")
    engine = _file((plan, machines), Target.COMPOSE)["services"]["engine"]
    budget = plan.budgets[-1]
    n_bytes = plan.footprint.host.total_bytes + budget.margin_bytes + budget.residual_bytes
    assert engine["deploy"]["resources"]["limits"]["memory"] == f"{-(-n_bytes // MIB)}m"
    assert "shm_size" not in engine
    large = _file(planned("llama3.1-405b", "8xh100"), Target.COMPOSE)["services"]["engine"]
    assert large["shm_size"] == "8192m"


def test_no_key_is_in_any_file() -> None:
    """Where a key goes stands the name of a variable or secret; Compose and SkyPilot ask for one that is missing."""
    found = planned("llama3.1-405b", "8xh100")
    engine = _file(found, Target.COMPOSE)["services"]["engine"]
    assert engine["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY:?")
    assert _file(found, Target.SKYPILOT)["secrets"] == {"VLLM_API_KEY": None, "HF_TOKEN": ""}
    unit = export(*found, Target.QUADLET, address=_AT)
    assert "Secret=launcher-llama3-1-405b-key,type=env,target=VLLM_API_KEY" in unit
    texts = [export(*found, target, address=_AT) for target in Target if target is not Target.VLLM_MULTINODE]
    texts.append(export(*planned("llama3.1-405b", "2x8xa100-80g"), Target.VLLM_MULTINODE, address=_AT))
    assert not [text for text in texts if "--api-key" in text]


def test_the_endpoint_is_published_on_loopback_unless_told() -> None:
    """And nobody but SkyPilot's user is asked to open a port."""
    found = planned("gemma2-27b", "rtx4090")
    assert _file(found, Target.COMPOSE)["services"]["engine"]["ports"] == ["127.0.0.1:8080:8080"]
    at_all = Address(host="::", port=81)
    assert _file(found, Target.COMPOSE, address=at_all)["services"]["engine"]["ports"] == ["[::]:81:81"]
    assert "ports" not in _file(found, Target.SKYPILOT)["resources"]
    assert _file(found, Target.SKYPILOT, address=at_all)["resources"]["ports"] == 81


def test_weights_are_mounted_for_reading_alone() -> None:
    """From a path; a repository is asked for what the plan chose, and no token is needed without one."""
    found = planned("gemma2-27b", "rtx4090")
    engine = _file(found, Target.COMPOSE, weights="/srv/gemma/w.gguf")["services"]["engine"]
    mount = {"type": "bind", "source": "/srv/gemma", "target": "/models", "read_only": True}
    assert engine["volumes"][0] == {**mount, "bind": {"create_host_path": False}}
    assert engine["command"][:2] == ["--model", "/models/w.gguf"]
    assert "--offline" in engine["command"]
    assert "HF_TOKEN" not in engine["environment"]
    plan, machines = planned("llama3.1-405b", "mi300x")
    command = _file((plan, machines), Target.COMPOSE)["services"]["engine"]["command"]
    assert command[:3] == ["--hf-repo", f"{plan.artifact.repository}:{plan.quantization}", "--no-mmproj"]
    assert "--offline" not in command


def test_vllm_may_look_up_weights_only_where_they_are_not_mounted() -> None:
    """With a path the hub is not asked."""
    found = planned("llama3.1-405b", "8xh100")
    assert "HF_HUB_OFFLINE" not in _file(found, Target.COMPOSE)["services"]["engine"]["environment"]
    mounted = _file(found, Target.COMPOSE, weights="/srv/llama/")["services"]["engine"]
    assert mounted["environment"]["HF_HUB_OFFLINE"] == "1"
    assert mounted["command"][:2] == ["serve", "/models"]
    assert mounted["volumes"][0]["source"] == "/srv/llama"


def test_images_are_pinned_to_versions_without_known_holes() -> None:
    """No tag that moves, and none of a vLLM that we would not start."""
    for image in (VLLM_IMAGE, RAY_IMAGE, *LLAMA_IMAGES.values()):
        assert any(char.isdigit() for char in image.rpartition(":")[2])
    for version in (VLLM_VERSION, RAY_VLLM_VERSION):
        assert not find_holes(version)
        assert (parse_release(version) or ()) >= (0, 22)
    assert not find_build_holes(LLAMA_BUILD)
    assert find_build_holes("b8000")
    assert not find_ray_holes(RAY_VERSION)


def test_a_cpu_plan_asks_for_no_gpu() -> None:
    """It has the image for CPUs."""
    engine = _file(planned("gemma2-9b", "cpu-32g"), Target.COMPOSE)["services"]["engine"]
    assert engine["image"] == LLAMA_IMAGES[None]
    assert set(engine["deploy"]["resources"]) == {"limits"}
    assert engine["command"][engine["command"].index("--device") + 1] == "none"


def test_every_machine_that_is_rented_has_a_name_at_skypilot() -> None:
    """Advice that names such a machine names its export, too."""
    rented = [machine for machine in map(load_inventory, list_machines()) if machine.is_cloud]
    assert rented
    assert {device.description for machine in rented for device in machine.devices} <= set(SKYPILOT_GPUS)


def test_each_copy_on_ray_has_its_machines() -> None:
    """As many worker pods as machines are planned for all copies."""
    plan, machines = planned("llama3.1-405b", "2x8xa100-80g")
    spec = _file((replace(plan, replicas=3), machines), Target.KUBERAY)["spec"]
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (6, 6, 6)
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    assert application["args"]["llm_configs"][0]["deployment_config"] == {"num_replicas": 3}


def _uneven() -> tuple[Plan, Machines]:
    """Return a plan that takes eight GPUs of one machine and four of another."""
    plan, machines = planned("llama3.1-405b", "2x8xa100-80g")
    footprint = replace(plan.footprint, devices=plan.footprint.devices[:12])
    budgets = (*plan.budgets[:12], *plan.budgets[16:])
    return replace(plan, footprint=footprint, budgets=budgets), machines


def _on_unknown_gpu() -> tuple[Plan, Machines]:
    plan, machines = planned("gemma2-27b", "rtx4090")
    assert isinstance(machines, Inventory)
    return plan, replace(machines, devices=(replace(machines.devices[0], description="drawn"),))


def _by_python() -> tuple[Plan, Machines]:
    plan, machines = planned("gemma2-27b", "rtx4090")
    return replace(plan, engine=Engine.LLAMA_CPP_PYTHON), machines


def _by_workers() -> tuple[Plan, Machines]:
    plan, machines = planned("gemma2-27b", "rtx4090")
    install = EngineInstall(engine=plan.engine, argv=("l",), workers=("10.0.0.1:50052",))
    install = replace(install, devices=(EngineDevice(name="RPC0", description="10.0.0.1:50052"),))
    return replace(plan, install=install, engine_devices=("RPC0",)), machines


def _unpublished() -> tuple[Plan, Machines]:
    plan, machines = planned("gemma2-27b", "rtx4090")
    return _without_weights(plan), machines


@pytest.mark.parametrize(
    ("found", "target", "options", "message"),
    [
        (("llama3.1-405b", "2x8xa100-80g"), Target.COMPOSE, {}, "for 2 machines"),
        (("llama3.1-405b", "2x8xa100-80g"), Target.QUADLET, {}, "for 2 machines"),
        (("gemma2-27b", "rtx4090"), Target.KUBERAY, {}, "for llama-server"),
        (("gemma2-27b", "rtx4090"), Target.VLLM_MULTINODE, {}, "for llama-server"),
        (("llama3.1-405b", "8xh100"), Target.VLLM_MULTINODE, {}, "for one machine"),
        (_uneven, Target.SKYPILOT, {}, "alike"),
        (_uneven, Target.VLLM_MULTINODE, {}, "node0 8, node1 4"),
        (_on_unknown_gpu, Target.SKYPILOT, {}, "SkyPilot's name for `drawn`"),
        (_by_python, Target.COMPOSE, {}, "llama-cpp-python"),
        (_by_workers, Target.COMPOSE, {}, "RPC workers"),
        (_unpublished, Target.COMPOSE, {}, "nothing says where"),
        (("gemma2-27b", "rtx4090"), Target.COMPOSE, {"weights": "w.gguf"}, "not absolute"),
        (("gemma2-27b", "rtx4090"), Target.COMPOSE, {"weights": "/srv/\0.gguf"}, "as an argument"),
        (("gemma2-27b", "rtx4090"), Target.COMPOSE, {"weights": "/srv/\udc80.gguf"}, "as an argument"),
        (("gemma2-27b", "rtx4090"), Target.QUADLET, {"weights": "/srv/a:b/w.gguf"}, "cannot mount"),
        (("gemma2-27b", "rtx4090"), Target.COMPOSE, {"address": Address(host="a b", port=1)}, "not at `a b`"),
        (("gemma2-27b", "rtx4090"), Target.COMPOSE, {"address": Address(port=None)}, "needs a port"),
    ],
)
def test_what_a_file_cannot_say_is_refused_with_help(
    found: Any, target: Target, options: dict[str, Any], message: str
) -> None:
    """It is wrong usage, and the help names another way."""
    plan, machines = found() if callable(found) else planned(*found)
    with pytest.raises(UsageError, match=message) as caught:
        export(plan, machines, target, **{"address": _AT, **options})
    assert caught.value.help


def test_vllm_without_gpus_has_no_image() -> None:
    """Nor has a device that no image reaches."""
    plan, machines = planned("llama3.1-405b", "8xh100")
    bare = replace(plan, footprint=replace(plan.footprint, devices=()), budgets=plan.budgets[-1:])
    with pytest.raises(UsageError, match="without NVIDIA GPUs"):
        export(bare, machines, Target.COMPOSE, address=_AT)
    other, machine = planned("gemma2-27b", "rtx4090")
    assert isinstance(machine, Inventory)
    devices = (replace(machine.devices[0], kind=DeviceKind.SYCL),)
    with pytest.raises(UsageError, match="sycl"):
        export(other, replace(machine, devices=devices), Target.COMPOSE, address=_AT)
