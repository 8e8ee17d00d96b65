"""Processes by the state directory that they inherited from a test."""

import psutil


def heirs(state: str) -> list[psutil.Process]:
    """Return every living process that has this state directory in its environment: supervisors, guards and engines."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LAUNCHER_STATE_DIR") == state and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
