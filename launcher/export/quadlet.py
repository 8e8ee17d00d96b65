"""A plan as a unit file for Podman's Quadlet: a container as a service of systemd on one machine.

Keys are those of ``podman-container.unit(5)``, Podman 5; GPUs are devices of the Container Device Interface. What stands in
``Exec=`` is read twice, by Podman into words and by systemd again, so both rules of quoting are kept.
"""

from typing import Final

from launcher.domain import DeviceKind
from launcher.errors import UsageError
from launcher.export.handover import CACHE_ENV, CACHE_PATH, MODELS_PATH, Handover, Node, bracketed, printable
from launcher.units import MIB

_BARE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:=@,+-")
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "%": "%%", "$": "$$"}
_UNSAFE_IN_PATH: Final = frozenset(":\\\"'")


def render(handover: Handover) -> str:
    """Return the text of a ``NAME.container``.

    Raises:
        UsageError: the plan is for several machines, or a path has characters that Podman takes for its own.
    """
    if len(handover.nodes) > 1:
        msg = f"the plan is for {len(handover.nodes)} machines, and a unit is of one"
        raise UsageError(msg, help="--to vllm-multinode, skypilot or kuberay take several; or plan for one machine")
    node, key = handover.nodes[0], handover.key_variable
    secret = f"launcher-{handover.slug}-key"
    lines = [
        *(f"# {fact}" for fact in handover.summary),
        f"# Once: openssl rand -hex 32 | tr -d '\\n' | podman secret create {secret} -",
        f"# Then: as ~/.config/containers/systemd/{handover.slug}.container,",
        f"#       systemctl --user daemon-reload; systemctl --user start {handover.slug}",
        "",
        "[Unit]",
        f"Description={handover.slug} by {handover.engine}",
        "",
        "[Container]",
        f"ContainerName=launcher-{handover.slug}",
        f"Image={handover.image}",
        f"Entrypoint={node.argv[0]}",
        f"Exec={' '.join(quote(word) for word in node.argv[1:])}",
        *(f"Environment={quote(f'{name}={value}')}" for name, value in {**node.env, **CACHE_ENV}.items()),
        f"Secret={secret},type=env,target={key}",
        *_gated(handover),
        *_devices(handover.kind, node),
        f"PublishPort={bracketed(handover.host)}:{handover.port}:{handover.port}",
        *_mounts(handover),
        f"Volume=launcher-{handover.slug}-cache:{CACHE_PATH}",
        *([f"ShmSize={node.shm_bytes // MIB}m"] if node.shm_bytes else []),
        f"PodmanArgs=--memory={node.memory_bytes // MIB}m",
        f"HealthCmd=curl --fail --silent http://127.0.0.1:{handover.port}/health",
        "HealthInterval=10s",
        "HealthTimeout=5s",
        "HealthRetries=3",
        "HealthStartPeriod=1h",
        "NoNewPrivileges=true",
        "RunInit=true",
        "",
        "[Service]",
        "Restart=on-failure",
        "# Images of several GiB take long to come.",
        "TimeoutStartSec=infinity",
        "TimeoutStopSec=30",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def quote(word: str) -> str:
    """Return a word of ``Exec=`` as Podman and then systemd read it back: specifiers and variables are of no effect."""
    if _BARE.issuperset(word):
        return word
    return '"' + "".join(_escaped(char) for char in word) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    if not char.isascii():
        msg = f"the unprintable character {ord(char):#x} has no way through Podman's quoting"
        raise UsageError(msg, help="rename the model or its file")
    return f"\\x{ord(char):02x}"


def _gated(handover: Handover) -> list[str]:
    """Return how a token for the hub is given; Podman has no secret that may be absent."""
    if handover.source.repository is None:
        return []
    return ["# If the repository is gated: podman secret create hf-token FILE, and the next line without its #.",
            "#Secret=hf-token,type=env,target=HF_TOKEN"]  # fmt: skip


def _devices(kind: DeviceKind | None, node: Node) -> list[str]:
    if kind is DeviceKind.CUDA:
        return [*(f"AddDevice=nvidia.com/gpu={gpu}" for gpu in node.gpus), "SecurityLabelDisable=true"]
    if kind is DeviceKind.ROCM:
        return ["AddDevice=/dev/kfd", "AddDevice=/dev/dri", "GroupAdd=keep-groups", "SecurityLabelDisable=true"]
    return []


def _mounts(handover: Handover) -> list[str]:
    folder = handover.source.folder
    if folder is None:
        return []
    if _UNSAFE_IN_PATH.intersection(folder) or not folder.isprintable() or folder != folder.strip():
        msg = f"Podman cannot mount this path by a unit: `{printable(folder)}`"
        raise UsageError(msg, help="give one without quotes, colons and backslashes, for example a symbolic link")
    return [f"Volume={folder.replace('%', '%%').replace('$', '$$')}:{MODELS_PATH}:ro"]
