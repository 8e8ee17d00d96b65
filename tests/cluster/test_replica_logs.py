"""New lines of logs of which only the end can be had."""

from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.replica_logs import N_LINES, ReplicaLogs, find_new, log_paths
from launcher.cluster.serve_details import Replica
from launcher.errors import ClusterError

_REPLICA = Replica(replica_id="abc", node_id="n1", actor_id="a1", log_file_path="/serve/replica_m.log")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12))
def test_no_line_is_lost_or_told_twice(steps: list[int]) -> None:
    """Of a growing file of which the last five lines are seen, where fewer were written between two looks."""
    lines = [str(n) for n in range(sum(steps))]
    told: list[str] = []
    before: list[str] | None = None
    end = 0
    for step in steps:
        end += step
        now = lines[max(0, end - 5) : end]
        told += find_new(before, now)
        before = now
    assert told == lines


def test_a_gap_is_said_to_be_one() -> None:
    """More was written than a look shows."""
    assert find_new(["a", "b"], ["x", "y"])[1:] == ["x", "y"]
    assert "left out" in find_new(["a", "b"], ["x", "y"])[0]
    assert find_new(["a"], []) == []


def test_a_log_has_no_slash_before_its_name() -> None:
    """Ray 2.60 answers an empty text to that; the output of a replica is asked for by its actor."""
    log, out, err = log_paths(_REPLICA)
    assert log == f"/api/v0/logs/file?node_id=n1&filename=serve%2Freplica_m.log&lines={N_LINES}&timeout=5"
    assert "actor_id=a1&suffix=out" in out
    assert "actor_id=a1&suffix=err" in err


def test_lines_bear_their_replicas_name() -> None:
    """What Ray writes at the top of an output is left out, its colours and what is not printable too; a node without an answer is skipped."""
    texts = {"filename": b"\x1b[36mo\x1b[0;1mne\x1b[39m\n", "suffix=out": b":job_id:01\n:actor_name:X\ntw\x1bo\n"}

    def fetch(path: str) -> bytes:
        for key, text in texts.items():
            if key in path:
                return text
        raise ClusterError(path)

    logs = ReplicaLogs(fetch)
    assert list(logs.read((_REPLICA,))) == ["[abc] one", "[abc] tw\N{REPLACEMENT CHARACTER}o"]
    texts["filename"] = b"one\nthree\n"
    assert list(logs.read((_REPLICA,))) == ["[abc] three"]
