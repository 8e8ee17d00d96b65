"""Inventories in files: the machines that ship, and what is said of files that are wrong."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.domain import DeviceKind, Inventory, Provenance
from launcher.errors import InventoryError
from launcher.inventory import list_machines, load_inventory
from launcher.inventory.machines import parse_machines
from launcher.units import GIB, MIB

GOOD = """\
name = "mine"
[host]
total_bytes = 64_000_000_000
available_bytes = 60_000_000_000
[[devices]]
name = "gpu0"
kind = "cuda"
description = "NVIDIA GeForce RTX 4090"
total_bytes = 24_000_000_000
"""


def fault(text: str) -> InventoryError:
    """Return the error that a TOML text gives."""
    with pytest.raises(InventoryError) as caught:
        parse_machines(text.encode(), source="mine.toml", is_json=False)
    return caught.value


@pytest.mark.parametrize("name", list_machines())
def test_shipped_machine(name: str) -> None:
    """Each machine that ships is valid, named as its file, published, and of unknown engines."""
    machine = load_inventory(name)
    assert (machine.name, machine.provenance, machine.engines) == (name, Provenance.PUBLISHED, None)
    assert machine.host.bandwidth_bytes_per_s
    for device in machine.devices:
        assert device.free_bytes is not None
        assert 200 * MIB < device.total_bytes - device.free_bytes < GIB
        assert device.bandwidth_bytes_per_s
        assert device.pcie_bytes_per_s
        assert (device.compute_capability is not None) is (device.kind is DeviceKind.CUDA)
    assert [device.name for device in machine.devices] == [f"gpu{idx}" for idx in range(len(machine.devices))]
    count = name.partition("x")[0]
    assert not count.isdigit() or len(machine.devices) == int(count)
    assert bool(machine.devices) is not name.startswith("cpu-")


def test_rtx4090() -> None:
    """The machine that plans are judged by has exactly its agreed figures."""
    machine = load_inventory("rtx4090")
    (device,) = machine.devices
    assert (device.total_bytes, device.free_bytes) == (24_564 * MIB, 24_082 * MIB)
    assert device.bandwidth_bytes_per_s == 1_008e9
    assert machine.host.total_bytes == 64 * GIB
    assert machine.host.bandwidth_bytes_per_s == 60e9


def test_expected_machines_ship() -> None:
    """The machines that documents and tests name are there."""
    expected = {"rtx4090", "rtx3090", "2xrtx3090", "rtx5090", "a100-80g", "h100", "8xh100", "cpu-64g", "cpu-16g"}
    assert expected <= set(list_machines())


def test_unknown_name_suggests() -> None:
    """A misspelt machine is answered with the nearest one, anything else with all of them."""
    with pytest.raises(InventoryError) as near:
        load_inventory("rtx409")
    assert near.value.message == "no reference machine is called `rtx409`"
    assert near.value.help == "did you mean `rtx4090`?"
    assert near.value.exit_code == 2
    with pytest.raises(InventoryError) as far:
        load_inventory("?????")
    assert far.value.help is not None
    assert "8xh100" in far.value.help


@pytest.mark.parametrize("name", ["../machines/rtx4090", "", ".", "rtx4090/", "a\0b"])
def test_name_is_no_path(name: str) -> None:
    """A name reaches no file but a shipped machine's."""
    with pytest.raises(InventoryError):
        load_inventory(name)


def test_file_errors(tmp_path: Path) -> None:
    """A missing file, a folder, and a file of another kind are said with the path."""
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "weights.json").write_bytes(b"GGUF" + bytes(5 << 20))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0")
    for name, said in {
        "missing.toml": "no such file or directory",
        "folder.toml": "is a directory",
        "weights.json": "larger than the 4 MiB",
        "binary.toml": "is not TOML",
    }.items():
        with pytest.raises(InventoryError, match=said) as caught:
            load_inventory(str(tmp_path / name))
        assert name in caught.value.message


def test_toml_and_json_agree(tmp_path: Path) -> None:
    """A file written as JSON from what TOML said says the same."""
    (tmp_path / "a.toml").write_text(GOOD)
    first = load_inventory(str(tmp_path / "a.toml"))
    (tmp_path / "b.json").write_bytes(msgspec.json.encode(first))
    assert load_inventory(str(tmp_path / "b.json")) == first


def test_json_in_a_pipe(tmp_path: Path) -> None:
    """JSON without a telling name, as from another program's output, is known by its first character."""
    (tmp_path / "fd63").write_bytes(b" \n" + msgspec.json.encode(load_inventory("rtx4090")))
    assert load_inventory(str(tmp_path / "fd63")) == load_inventory("rtx4090")


@pytest.mark.parametrize(
    ("old", "new", "message", "help_"),
    [
        ("kind =", "kindd =", "devices[0]: object contains unknown field `kindd`", "did you mean `kind`?"),
        ('"cuda"', '"cude"', "devices[0].kind: invalid enum value 'cude'", "did you mean `cuda`?"),
        ('"cuda"', "1", "devices[0].kind: expected `str`, got `int`", "allowed: cuda, rocm, vulkan"),
        ("24_000_000_000", '"24 GB"', "devices[0].total_bytes: expected `int`, got `str`", None),
        ("[host]", "[machine]", "object contains unknown field `machine`", "allowed: name, host, devices"),
        (
            "total_bytes = 64_000_000_000",
            "",
            "host: object missing required field `total_bytes`",
            "allowed: total_bytes",
        ),
        ("[host]", "[host]\nzzz = 1", "host: object contains unknown field `zzz`", "allowed: total_bytes, avail"),
        ("24_000_000_000", "-1", "devices[0].total_bytes: -1 is out of range", None),
        ("24_000_000_000", "0", "devices[0].total_bytes: must be above 0", None),
        ("60_000_000_000", "65_000_000_000", "host.available_bytes: 65000000000 is more than total_bytes", None),
        (
            "[host]",
            "schema_version = 3\n[host]",
            "schema_version: this program reads versions up to 2, the file has 3",
            None,
        ),
        ("[host]", "[host]\nn_cpu = 0", "host.n_cpu: must be at least 1", None),
        ("[host]", "[host]\nbandwidth_bytes_per_s = inf", "host.bandwidth_bytes_per_s: inf is out of range", None),
        ("[host]", "[host]\nbandwidth_bytes_per_s = nan", "host.bandwidth_bytes_per_s: nan is out of range", None),
        ("kind =", "free_bytes = 99_000_000_000\nkind =", "devices[0].free_bytes: 99000000000 is more than", None),
        ("name =", "name ==", "is not TOML", None),
        ("RTX 4090", r"\u001b[2J", "devices[0].description: holds characters that cannot be shown", None),
        ("[host]", '"\\u001b[2J" = 1\n[host]', "contains unknown field `\ufffd[2J`", "allowed: name"),
        ('"mine"', r'"a\nb"', "name: holds characters that cannot be shown", None),
    ],
)
def test_wrong_file(old: str, new: str, message: str, help_: str | None) -> None:
    """A wrong file is said with its name, the key path, and what is allowed there."""
    error = fault(GOOD.replace(old, new, 1))
    assert error.message.startswith("`mine.toml` is no")
    assert message in error.message
    assert (error.help or "").startswith(help_ or "")
    assert (error.help is None) is (help_ is None)


def test_two_devices_of_one_name() -> None:
    """Names of devices are unique: plans refer to them."""
    assert "devices[1].name: `gpu0` names two devices" in fault(GOOD + GOOD[GOOD.index("[[devices]]") :]).message


@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_one_kind_of_error(content: bytes, is_json: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
    """Whatever a file holds, it is an inventory or an ``InventoryError``."""
    try:
        found = parse_machines(content, source="x", is_json=is_json)
    except InventoryError as error:
        assert "`x`" in error.message  # noqa: PT017 - both outcomes are right
    else:
        assert isinstance(found, Inventory)


def test_deep_nesting_is_an_error() -> None:
    """A file nested without end does not exhaust the stack."""
    for text, is_json in (("[" * 100_000, True), ("a = " + "[" * 100_000, False)):
        with pytest.raises(InventoryError):
            parse_machines(text.encode(), source="x", is_json=is_json)


def test_loading_is_light() -> None:
    """A plan for a reference machine imports nothing that only a probe of this machine needs."""
    code = (
        "import sys; from launcher.inventory import load_inventory; load_inventory('rtx4090'); "
        "print(*{'psutil', 'pynvml', 'subprocess', 'platformdirs', 'threading', 'importlib.metadata'} & {*sys.modules})"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert set(printed.stdout.split()) <= {"threading"}  # site-packages' own start-up files may import it
