"""Commands that a finding may offer: only those whose program is there. Pure.

It must not know what is wrong.
"""

from typing import Final

from launcher.doctor.facts import Facts

PROGRAMS: Final = (
    "apt-get", "chmod", "df", "dmesg", "dnf", "free", "journalctl", "loginctl", "ls", "lsof", "modprobe", "namei",
    "nvidia-modprobe", "ps", "reboot", "ss", "sudo", "sysctl", "systemctl", "timedatectl", "usermod", "vmstat",
)  # fmt: skip
"""What commands of findings begin with, apart from this program and its Python."""


_JOURNAL_READERS: Final = frozenset({"adm", "systemd-journal", "wheel"})
"""The groups that systemd opens the journal to (``acl-groups`` of its build, systemd-journald.service(8))."""


def first_there(facts: Facts, *commands: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first command whose program is there; none where no program is."""
    return next((command for command in commands if command[0] in facts.programs), ())


def path_shown(facts: Facts, path: str) -> tuple[str, ...]:
    """Return what shows owner and mode of a path and of each folder above it: any of them may be what is closed."""
    return first_there(facts, ("namei", "-l", path), ("ls", "-ld", path))


def as_root(facts: Facts, *command: str) -> tuple[str, ...]:
    """Return a command that only root may give, with ``sudo`` where one is not root; none where that cannot be."""
    if command[0] not in facts.programs:
        return ()
    if facts.user.uid == 0:
        return command
    return ("sudo", *command) if "sudo" in facts.programs else ()


def first_as_root(facts: Facts, *commands: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first command whose program is there, as only root may give it."""
    command = first_there(facts, *commands)
    return as_root(facts, *command) if command else ()


def journal(facts: Facts, *options: str) -> tuple[str, ...]:
    """Return what shows the journal; to whom it is not open it shows nothing of the system's."""
    command = ("journalctl", *options)
    return first_there(facts, command) if _JOURNAL_READERS & {*facts.user.groups} else as_root(facts, *command)


def kernel_messages(facts: Facts, word: str | None = None) -> tuple[str, ...]:
    """Return what shows the kernel's last messages, or those with a word in them; most systems show them to root alone."""
    having = () if word is None else ("-g", word)
    return journal(facts, "-k", *having, "-n", "50") or as_root(facts, "dmesg")


def pip_install(facts: Facts) -> tuple[str, ...]:
    """Return what installs the prebuilt engine beside this program, where this platform has it."""
    if not facts.installer or facts.engine_requirement is None:
        return ()
    return (*facts.installer, facts.engine_requirement)
