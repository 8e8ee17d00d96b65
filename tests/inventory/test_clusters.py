"""Several machines: as a multiple of one, and in a file."""

from pathlib import Path

import msgspec
import pytest

from launcher.domain import Cluster, Inventory, Network, Provenance
from launcher.errors import InventoryError
from launcher.inventory import load_inventory, load_machines
from launcher.inventory.machines import MAX_GPUS, MAX_NODES, parse_machines

_PAIR = Path(__file__).parents[1] / "scenarios" / "machines" / "mixed-pair.toml"


@pytest.mark.parametrize(
    ("name", "n_nodes", "n_gpus"),
    [
        ("2x8xh100", 2, 8),
        ("2x8xa100-80g", 2, 8),
        ("3x2xrtx4090", 3, 2),
        ("2x1xrtx4090", 2, 1),
        ("1x8xh100", 1, 8),
        ("2x2xh100", 2, 2),
        ("2xcpu-64g", 2, 0),
    ],
)
def test_a_multiple_of_a_machine_is_so_many_machines(name: str, n_nodes: int, n_gpus: int) -> None:
    """The last factor counts GPUs of one machine, the one before it machines; names differ, figures do not."""
    found = load_machines(name)
    assert isinstance(found, Cluster)
    assert (found.name, len(found.nodes)) == (name, n_nodes)
    assert {len(node.devices) for node in found.nodes} == {n_gpus}
    assert [node.name for node in found.nodes] == [f"node{idx}" for idx in range(n_nodes)]
    assert len({node.host for node in found.nodes}) == 1
    assert found.network.provenance is Provenance.ASSUMED


@pytest.mark.parametrize(("name", "n"), [("2xrtx4090", 2), ("8xh200", 8), ("1xrtx4090", 1)])
def test_a_multiple_of_one_gpu_is_one_machine(name: str, n: int) -> None:
    """As the shipped names ``2xrtx3090`` and ``8xh100`` say; that the host is taken over is said."""
    found = load_machines(name)
    assert isinstance(found, Inventory)
    assert [device.name for device in found.devices] == [f"gpu{idx}" for idx in range(n)]
    single = load_inventory(name.partition("x")[2])
    assert (found.host, found.provenance) == (single.host, Provenance.ASSUMED)
    assert any("assumed" in note for note in found.notes)


def test_a_shipped_name_goes_before_a_multiple() -> None:
    """``8xh100`` is the machine that ships, with its own host, not eight GPUs in another's."""
    assert load_machines("8xh100") == load_inventory("8xh100")
    assert load_machines("8xh100").provenance is Provenance.PUBLISHED


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("0x8xh100", "no reference machine is called `0x8xh100`"),
        (f"{MAX_NODES + 1}x8xh100", f"at most {MAX_NODES} machines"),
        (f"{MAX_GPUS + 1}xrtx4090", f"at most {MAX_GPUS} GPUs"),
        ("2x2x2xh100", "is several machines already"),
        ("2x3x2x1xh100", "no reference machine"),
        ("2xrtx409", "no reference machine is called `rtx409`"),
        ("2xnowhere.toml", "cannot read the inventory `nowhere.toml`"),
        ("2x", "no reference machine is called `2x`"),
        ("1x" * 5000 + "h100", "no reference machine"),
    ],
)
def test_what_is_no_multiple_is_refused(name: str, said: str) -> None:
    """Counts that nobody has, multiples of multiples, and what is not there."""
    with pytest.raises(InventoryError) as caught:
        load_machines(name)
    assert said in caught.value.message


def test_a_multiple_of_a_file(tmp_path: Path) -> None:
    """A file is a machine, however many GPUs it has; a file whose own name looks like a multiple is itself."""
    path = tmp_path / "2xmine.toml"
    path.write_text('name = "mine"\n[host]\ntotal_bytes = 64000000000\navailable_bytes = 60000000000\n')
    assert load_machines(str(path)) == load_inventory(str(path))
    found = load_machines(f"3x{path}")
    assert isinstance(found, Cluster)
    assert len(found.nodes) == 3


def test_one_machine_is_not_several() -> None:
    """Where one machine is wanted, several are an error rather than the first of them."""
    with pytest.raises(InventoryError, match="is 2 machines"):
        load_inventory("2x8xh100")


def test_a_file_of_several_machines() -> None:
    """Nodes are inventories; the network is read, or assumed where it is left out."""
    found = load_machines(str(_PAIR))
    assert isinstance(found, Cluster)
    assert [node.name for node in found.nodes] == ["big", "small"]
    assert found.network == Network(bandwidth_bytes_per_s=11e9, latency_s=12e-6, provenance=Provenance.MEASURED)
    again = parse_machines(msgspec.json.encode(found), source="x.json", is_json=True)
    assert again == found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "small"', 'name = "big"', "nodes[1].name: `big` names two machines"),
        ("latency_s = 12e-6", "latency_s = -1.0", "network.latency_s: -1.0 is out of range"),
        ("bandwidth_bytes_per_s = 11_000_000_000", "bandwidth_bytes_per_s = 0.0", "must be above 0"),
        ("latency_s =", "latencies =", "network: object contains unknown field `latencies`"),
        ("free_bytes = 40_000_000_000", "free_bytes = 90_000_000_000", "nodes[1].devices[1].free_bytes"),
        ('name = "mixed-pair"', 'name = "mixed-pair"\nschema_version = 3', "schema_version: this program reads"),
    ],
)
def test_faults_name_the_machine(old: str, new: str, said: str) -> None:
    """A fault in a file of several is told with its place."""
    text = _PAIR.read_text()
    assert old in text
    with pytest.raises(InventoryError) as caught:
        parse_machines(text.replace(old, new, 1).encode(), source="pair.toml", is_json=False)
    assert said in caught.value.message


def test_no_machine_at_all_is_a_fault() -> None:
    """An empty list of nodes is no cluster."""
    with pytest.raises(InventoryError, match="must be 1 to"):
        parse_machines(b'{"name": "none", "nodes": []}', source="x", is_json=True)


def test_inventories_of_the_first_version_are_read() -> None:
    """What ``launch hardware --json`` wrote before there were clusters stays valid."""
    old = msgspec.to_builtins(load_inventory("rtx4090")) | {"schema_version": 1}
    found = parse_machines(msgspec.json.encode(old), source="old.json", is_json=True)
    assert isinstance(found, Inventory)
    assert found.devices == load_inventory("rtx4090").devices
