"""What ``pull`` and ``serve`` do before weights can be served: which artifact, how progress is shown, how it is broken off."""

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import typer

from launcher.cli import options as opt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from launcher.domain import Artifact, Inventory, Outcome, Plan, Profile, Request, Settings
    from launcher.fetch.progress import Progress, Tell
    from launcher.fetch.pull import Pulled
    from launcher.store import Instance
    from launcher.supervisor.account import Account
    from launcher.supervisor.notices import Report
    from launcher.supervisor.service_manager import ServiceManager

_REDRAW_S: Final = 0.2
_LINE_S: Final = 10.0
"""Between two lines of progress where they are not overwritten, such as in a journal."""
_RECORD_S: Final = 2.0
_PATIENCE_S: Final = 600.0
"""Asked of a service manager: longer than a server may ask to wait, or large weights take to be hashed."""


class Interruption:
    """The signal that ended a download, once one has."""

    number: int = 2
    is_heard: bool = False

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended."""
        return 128 + self.number


@contextmanager
def interruptible() -> "Iterator[Interruption]":
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, by KeyboardInterrupt, that it can leave things in order.

    What is ignored on purpose stays so: ``nohup`` ignores SIGHUP.
    """
    import signal
    import threading

    heard = Interruption()

    def hear(number: int, _frame: object) -> None:
        if not heard.is_heard:  # one that follows must not break off the putting in order
            heard.number, heard.is_heard = number, True
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    wanted = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if is_main and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in wanted:
        signal.signal(number, hear)
    try:
        yield heard
    finally:
        for number in wanted:
            signal.signal(number, signal.SIG_DFL)


def words_of(progress: "Progress") -> str:
    """Return one line of progress."""
    from launcher.metadata.files import label
    from launcher.render.pull import render_progress

    return render_progress(
        phase=progress.phase,
        file=label(progress.file),
        n_bytes=progress.n_bytes,
        total_bytes=progress.total_bytes,
        rate_bytes_per_s=progress.rate_bytes_per_s,
        left_s=progress.left_s,
        why=progress.why,
    )


@contextmanager
def shown(*, has_status: bool = False) -> "Iterator[Tell]":
    """Yield what shows progress on stderr: one line that is drawn again on a terminal, else a line now and then.

    Where a service manager shows the status, only faults are told here: a journal keeps every line.
    """
    import shutil
    import time

    overwrites = sys.stderr.isatty()
    next_s = 0.0
    last = pending = ""

    def tell(progress: "Progress") -> None:
        nonlocal next_s, last, pending
        now_s = time.monotonic()
        is_news = bool(progress.why) and progress.why != last
        if not is_news and (has_status or now_s < next_s):
            return
        last = progress.why
        next_s = now_s + (_REDRAW_S if overwrites else _LINE_S)
        text = words_of(progress)
        if overwrites:
            pending = text[: max(20, shutil.get_terminal_size().columns - 1)]
            text = f"\r\x1b[K{pending}"
        sys.stderr.write(text if overwrites else f"{text}\n")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        if pending:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def query_of(name: str) -> str:
    """Return the query of an address that a model was named by: it may sign it, so no plan holds it."""
    from urllib.parse import urlsplit

    return urlsplit(name).query if "://" in name else ""


def fetch(artifact: "Artifact", name: str, tell: "Tell") -> "Pulled":
    """Download an artifact; ``name`` is what the user called the model."""
    from launcher.fetch.pull import pull

    return pull(artifact, query=query_of(name), tell=tell)


# --- What `serve` does before it serves -------------------------------------------------------------------------


class Chosen(NamedTuple):
    """The answer to a request whose weights are here, and what it was asked of."""

    outcome: "Outcome"
    request: "Request"
    machine: "Inventory"
    is_told: bool = False
    """Whether the plan was shown before the download, and is the same after it."""


def choose(
    profile: "Profile",
    settings: "Settings",
    *,
    force: bool,
    measure: "Callable[[], Inventory]",
    decide: "Callable[[Request, Inventory], Outcome]",
    bring: "Callable[[Plan], Artifact] | None",
) -> Chosen:
    """Plan with the weights that are here; where none of them will do, with all that can be had, and bring the chosen.

    What is here goes first: nobody waits for gigabytes whose machine can serve without them. ``bring`` downloads what a
    plan chose, and is ``None`` where nothing is to be downloaded.

    Raises:
        WeightsMissingError: nothing is here, and nothing is to be or can be downloaded.
    """
    from launcher.domain import Plan, Request
    from launcher.profiles import is_local

    profile = opt.find_weights(profile)
    machine = measure()

    def planned(weights: "Profile", machine: "Inventory") -> Chosen:
        request = Request(profile=weights, settings=settings, force=force)
        return Chosen(decide(request, machine), request, machine)

    here = local_part(profile, settings)
    chosen = planned(here, machine) if here is not None else None
    if chosen is not None and isinstance(chosen.outcome, Plan):
        return chosen
    there = obtainable_part(profile, settings)
    if bring is None or there is None:
        return chosen or planned(opt.keep_local(profile, settings), machine)
    wanted = planned(there, machine)
    if not isinstance(wanted.outcome, Plan) or is_local(wanted.outcome.artifact):
        return wanted
    brought = bring(wanted.outcome)
    profile = _with_artifact(profile, wanted.outcome.artifact, brought)
    machine = measure()  # a download may take hours, in which others take memory
    final = planned(opt.keep_local(profile, settings), machine)
    return final._replace(is_told=isinstance(final.outcome, Plan) and _is_same(wanted.outcome, final.outcome))


def local_part(profile: "Profile", settings: "Settings") -> "Profile | None":
    """Return the profile with what of it is on this machine; ``None`` where nothing is, or not what was asked for."""
    from msgspec.structs import replace

    from launcher.profiles import is_local

    local = tuple(artifact for artifact in profile.artifacts if is_local(artifact))
    quantization = settings.quantization or profile.pins.quantization
    if not local or quantization not in {None, *(artifact.quantization for artifact in local)}:
        return None
    return replace(profile, artifacts=local)


def obtainable_part(profile: "Profile", settings: "Settings") -> "Profile | None":
    """Return the profile with what of it is here or can be downloaded; ``None`` where that is nothing."""
    from msgspec.structs import replace

    from launcher.profiles import is_local

    quantization = settings.quantization or profile.pins.quantization
    found = tuple(
        artifact for artifact in profile.artifacts if artifact.repository or artifact.url or is_local(artifact)
    )
    if not any(quantization in {None, artifact.quantization} for artifact in found):
        return None
    return replace(profile, artifacts=found)


def _with_artifact(profile: "Profile", chosen: "Artifact", brought: "Artifact") -> "Profile":
    from msgspec.structs import replace

    key = (chosen.format, chosen.quantization)
    artifacts = tuple(
        brought if (artifact.format, artifact.quantization) == key else artifact for artifact in profile.artifacts
    )
    return replace(profile, artifacts=artifacts)


def _is_same(one: "Plan", other: "Plan") -> bool:
    """Tell whether two plans say the same to who reads them, whatever became free meanwhile."""
    names = ("engine", "quantization", "n_ctx", "n_parallel", "n_batch", "n_ubatch", "n_gpu_layers", "n_cpu_moe")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def bring_recorded(
    plan: "Plan", instance: "Instance", name: str, report: "Report", manager: "ServiceManager"
) -> "Artifact":
    """Download what a plan chose.

    Raises:
        Exit, LauncherError: as `_recorded` says.
    """
    from launcher.render.plan import render_outcome

    sys.stderr.write(render_outcome(plan))
    kept = "what was downloaded is kept, and the same command goes on from there"
    with _recorded(plan, instance, report, manager, doing="downloaded", kept=kept) as (account, tell):
        account.notify("weights.fetching", f"the weights are not here: downloading {plan.quantization}")
        pulled = fetch(plan.artifact, name, tell)
        account.notify("weights.fetched", _said(plan, pulled), n_bytes=pulled.n_fetched_bytes)
    return pulled.artifact


def check_recorded(plan: "Plan", instance: "Instance", report: "Report", manager: "ServiceManager") -> None:
    """Compare those of a plan's files with their digests that were not yet, or have changed since: it may take minutes.

    Raises:
        Exit, LauncherError: as `_recorded` says.
    """
    from launcher.fetch.local import require_weights, unread_files
    from launcher.fetch.pull import progress_of_reading
    from launcher.metadata.files import label
    from launcher.units import format_bytes

    unread = unread_files(plan.artifact)
    if not unread:
        return
    n_bytes = sum(path.stat().st_size for path in unread)
    files = label(unread[0].name) if len(unread) == 1 else f"{len(unread)} files"
    kept = "the same command begins the comparison anew"
    with _recorded(plan, instance, report, manager, doing="compared with their sha256", kept=kept) as (account, tell):
        words = f"checking the sha256 of {files} once: {format_bytes(n_bytes)}"
        account.notify("weights.checking", words, n_bytes=n_bytes)
        require_weights(plan.artifact, on_read=progress_of_reading(tell))


@contextmanager
def _recorded(
    plan: "Plan", instance: "Instance", report: "Report", manager: "ServiceManager", *, doing: str, kept: str
) -> "Iterator[tuple[Account, Tell]]":
    """Keep the instance's record true while weights are ``doing``, in a block that is `interruptible`.

    Raises:
        Exit: it was told to stop; ``kept`` says what follows.
        LauncherError: it failed; the record says so.
    """
    from launcher.domain import State
    from launcher.errors import LauncherError
    from launcher.supervisor.account import Account
    from launcher.supervisor.options import RunOptions

    account = Account(instance, plan.address, plan, RunOptions(), report)
    try:
        with shown(has_status=manager.is_listening) as show:
            yield account, _recording(show, account, manager)
        account.update(fetching=None)
    except KeyboardInterrupt:
        account.update(state=State.STOPPED, fetching=None, reason=f"stopped while its weights were {doing}")
        account.notify("instance.stopped", f"stopped; {kept}")
        raise typer.Exit(0) from None
    except LauncherError as error:
        account.update(state=State.FAILED, fetching=None, reason=error.message)
        raise
    finally:
        account.close()


def _recording(show: "Tell", account: "Account", manager: "ServiceManager") -> "Tell":
    """Return what shows progress, writes it down every few seconds, and asks a service manager for time as it is made."""
    import time

    from launcher.fetch.progress import Phase

    next_s = 0.0
    seen = -1

    def tell(progress: "Progress") -> None:
        nonlocal next_s, seen
        show(progress)
        if time.monotonic() < next_s and not progress.why:
            return
        next_s = time.monotonic() + _RECORD_S
        words = words_of(progress)
        account.update(fetching=words)
        is_moving = progress.n_bytes != seen or progress.phase in {Phase.CHECKING, Phase.RETRYING}
        seen = progress.n_bytes
        if is_moving:
            manager.tell_progress(words, next_within_s=_PATIENCE_S)

    return tell


def _said(plan: "Plan", pulled: "Pulled") -> str:
    from launcher.units import format_bytes

    return f"{format_bytes(pulled.n_fetched_bytes)} of {plan.quantization} downloaded and verified"
