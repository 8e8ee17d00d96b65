"""The programs that hold the host's memory."""

from pathlib import Path

from launcher.inventory.programs import parse_status, probe_programs

_STATUS = "Name:\tpython3\nVmRSS:\t 900000 kB\nRssAnon:\t  524288 kB\nRssFile:\t  300000 kB\nRssShmem:\t  1024 kB\n"


def test_what_a_program_would_give_back() -> None:
    """Its own and shared memory; not the files it maps, which are page cache."""
    assert parse_status(_STATUS) == ("python3", (524288 + 1024) * 1024)
    assert parse_status("Name:\tkthreadd\n") == ("kthreadd", 0)


def test_the_largest_are_named_first_and_small_ones_not_at_all(tmp_path: Path) -> None:
    """Processes that end meanwhile, and folders that are none, do no harm."""
    for pid, kib in ((7, 300 * 1024), (8, 900 * 1024), (9, 1024)):
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "status").write_text(f"Name:\tp{pid}\nRssAnon:\t{kib} kB\n")
    (tmp_path / "proc" / "10").mkdir()
    (tmp_path / "proc" / "self").mkdir()
    assert [(found.pid, found.name) for found in probe_programs(tmp_path)] == [(8, "p8"), (7, "p7")]


def test_this_machine_can_be_asked() -> None:
    """Whatever runs here, nothing is below the bound and this process is not in it."""
    assert all((found.used_bytes or 0) > 0 for found in probe_programs())
