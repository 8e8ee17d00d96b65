"""An application's life from its submission to its end, against a dashboard and a proxy that answer as Ray's do."""

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from msgspec.structs import replace

from launcher.backends.ray_serve import MARK, Value
from launcher.cluster import STATUS, VERSION
from launcher.cluster.applications import Proxies
from launcher.cluster.dashboard import open_dashboard
from launcher.cluster.runner import ApplicationRun
from launcher.cluster.serve_details import APPLICATIONS
from launcher.cluster.serving import Chance, FollowOptions, Room, Serving
from launcher.domain import Address, ClusterApplication, InstanceRecord, ProcessId, State
from launcher.errors import ClusterError, EngineFailedError, ForeignApplicationError
from tests.cluster.conftest import FakeDashboard

_OURS: Value = {
    "name": "launcher-m",
    "route_prefix": "/launcher-m",
    "import_path": "a:b",
    "runtime_env": {"env_vars": {MARK: "m"}},
}
_FOREIGN = {"name": "foreign", "route_prefix": "/foreign", "import_path": "c:d"}
_QUICK = FollowOptions(poll_s=0.01, logs_s=0.01, unplaced_s=0.2, explain_s=0.05, quiet_s=0.2, drain_s=0.0, remove_s=5.0)
_END_S = 10.0


class FakeRay:
    """What Serve runs: declared by ``PUT``, each application with one replica in the state that the test wants."""

    def __init__(self, dashboard: FakeDashboard, proxy: str) -> None:
        """Begin with somebody else's application."""
        self.dashboard = dashboard
        self.state = "RUNNING"
        self.message = ""
        self.node: str | None = "n1"
        self.status = "RUNNING"
        self.demands: list[Any] = []
        self.declared: dict[str, Any] = {"foreign": _FOREIGN}
        host, _, port = proxy.removeprefix("http://").partition(":")
        self.targets = [{"ip": host, "port": int(port)}]
        dashboard.on_put = self.take
        self.tell()

    def take(self, body: Any) -> None:
        """Run what was declared, and nothing else."""
        self.declared = {each["name"]: each for each in body["applications"]}
        self.tell()

    def tell(self, **changes: Any) -> None:
        """Answer as it stands now, with some of it changed."""
        for name, value in changes.items():
            setattr(self, name, value)
        applications = {
            name: {
                "status": self.status if name == "launcher-m" else "RUNNING",
                "source": "declarative",
                "route_prefix": config["route_prefix"],
                "deployed_app_config": config,
                "deployments": {
                    "d": {
                        "message": self.message,
                        "target_num_replicas": 1,
                        "required_resources": {"CPU": 1, "GPU": 2},
                        "replicas": [
                            {"replica_id": "r", "state": self.state, "node_id": self.node, "log_file_path": "/l"}
                        ],
                    }
                },
            }
            for name, config in self.declared.items()
        }
        answer = {
            "applications": applications,
            "http_options": {"host": "", "port": 1},
            "target_groups": [{"protocol": "HTTP", "targets": self.targets}],
        }
        report = {"resourceDemand": self.demands, "pgDemand": []}
        self.dashboard.answers[STATUS] = json.dumps({"data": {"clusterStatus": {"loadMetricsReport": report}}}).encode()
        self.dashboard.answers[APPLICATIONS] = json.dumps(answer).encode()


@pytest.fixture
def proxy() -> Iterator[str]:
    """A proxy of Serve's behind which a model answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say({"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say({"choices": [{"text": "x"}]})

        def say(self, answer: Any) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def ray(dashboard: FakeDashboard, proxy: str) -> FakeRay:
    """A cluster on which somebody else's application runs."""
    return FakeRay(dashboard, proxy)


class Around:
    """The endpoint and the account of an instance, which remember what they were told."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.attached: list[str] = []
        self.is_open = False
        self.events: list[str] = []
        self.lines: list[str] = []
        self.states: list[State] = []
        me = ProcessId(pid=1, start_time=1, boot_id="b")
        application = ClusterApplication(url="http://ray", name="launcher-m")
        self.record = InstanceRecord(
            name="m",
            state=State.STARTING,
            supervisor=me,
            address=Address(),
            started_at=0.0,
            changed_at=0.0,
            application=application,
        )

    async def start(self) -> Address:
        """Listen nowhere."""
        return Address(port=1)

    def attach(self, base_url: str, api_key: str | None, *, is_behind_proxy: bool) -> None:
        """Remember where requests go."""
        assert (api_key, is_behind_proxy) == (None, True)
        self.attached.append(base_url)
        self.is_open = True

    def detach(self, reason: str) -> None:
        """Remember that none do."""
        assert reason
        self.is_open = False

    async def stop(self, timeout_s: float, reason: str) -> None:
        """Remember the end."""
        assert timeout_s >= 0.0
        assert reason
        self.is_open = False

    def notify(self, event: str, text: str, *, transient: bool = False, **facts: object) -> None:
        """Remember an act."""
        assert text
        del transient, facts
        self.events.append(event)

    def update(self, **changes: Any) -> None:
        """Remember the state."""
        self.record = replace(self.record, **changes)
        if "state" in changes:
            self.states.append(changes["state"])

    def write_line(self, line: str) -> None:
        """Remember a line."""
        self.lines.append(line)


class Running:
    """A run under way."""

    def __init__(self, around: Around, stop: Callable[[], None], task: asyncio.Task[None]) -> None:
        """Hold what tests look at."""
        self.around, self.stop, self.task = around, stop, task

    async def until(self, look: Callable[[], object]) -> None:
        """Return once something is true; the run goes on meanwhile."""
        async with asyncio.timeout(_END_S):
            while not look():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.002)

    async def end(self) -> None:
        """Ask it to stop, and wait; raise what it failed with."""
        self.stop()
        async with asyncio.timeout(_END_S):
            await self.task


@asynccontextmanager
async def _running(ray: FakeRay, room: Room | None = None, application: Any = None) -> AsyncIterator[Running]:
    around = Around()
    heard: list[Callable[[signal.Signals], None]] = []

    @contextmanager
    def signals(_: asyncio.AbstractEventLoop, on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
        heard.append(on_signal)
        yield

    serving = Serving(
        application=application or _OURS,
        model="m",
        canary_path="/v1/completions",
        canary_body="{}",
        proxies=Proxies(host="127.0.0.1", port=8000, location="HeadOnly"),
    )
    with open_dashboard(ray.dashboard.url) as dashboard, open_dashboard(ray.dashboard.url) as logs:
        run = ApplicationRun(
            serving,
            dashboard,
            around,
            around,
            fetch_log=logs.get,
            explain=lambda: room or Room(Chance.NOW),
            options=_QUICK,
        )
        task = asyncio.create_task(run.run(signals))
        await asyncio.sleep(0)
        try:
            yield Running(around, lambda: heard[0](signal.SIGTERM), task)
        finally:
            if not task.done():
                heard[0](signal.SIGTERM)
            await asyncio.gather(task, return_exceptions=True)


async def test_from_its_submission_to_its_end(ray: FakeRay, proxy: str) -> None:
    """Submitted, proved, served below its route, and taken off again; what others run is there all the time."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        assert ray.declared == {"foreign": _FOREIGN, "launcher-m": _OURS}
        await running.end()
        assert running.around.attached == [f"{proxy}/launcher-m"]
    assert ray.declared == {"foreign": _FOREIGN}
    assert running.around.states == [State.READY, State.STOPPING, State.STOPPED]
    assert running.around.record.application is None


async def test_a_lost_replica_is_waited_for(ray: FakeRay) -> None:
    """Requests are held at once, the loss is told, and they flow again when Ray has brought one back; nothing is given up."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        ray.tell(state="STARTING", node=None, status="UNHEALTHY", demands=[[{"CPU": 1, "GPU": 2}, 1]])
        await running.until(lambda: not running.around.is_open)
        await running.until(lambda: "no node has room" in str(running.around.record.reason))
        assert running.around.record.state is State.STARTING
        ray.tell(state="RUNNING", node="n2", status="RUNNING", demands=[])
        await running.until(lambda: running.around.is_open)
        assert (running.around.record.state, running.around.record.n_restarts) == (State.READY, 1)
        assert running.around.record.reason is None
        await running.end()


async def test_what_ray_gives_up_fails_with_its_words(ray: FakeRay) -> None:
    """And is taken off, for it would be tried again by whoever deploys next."""
    ray.tell(state="STOPPED", status="DEPLOY_FAILED", message="Traceback\nRuntimeError: no weights here")
    async with _running(ray) as running:
        with pytest.raises(EngineFailedError, match="RuntimeError: no weights here"):
            await running.task
    assert ray.declared == {"foreign": _FOREIGN}
    assert running.around.record.state is State.FAILED
    assert "no weights here" in str(running.around.record.reason)


@pytest.mark.parametrize("chance", [Chance.NEVER, Chance.BUSY])
async def test_what_no_node_has_room_for_is_given_up_with_the_planners_word(ray: FakeRay, chance: Chance) -> None:
    """Ray tells neither that nor why; it would wait for ever."""
    ray.tell(state="STARTING", node=None, status="DEPLOYING", demands=[[{"CPU": 1, "GPU": 2}, 1]])
    async with _running(ray, Room(chance, "the planner's word", help="a way out")) as running:
        with pytest.raises(EngineFailedError, match=r"2 GPU, 1 CPU; the planner's word") as caught:
            await running.task
    assert caught.value.help == "a way out"
    assert running.around.record.state is State.FAILED
    assert ray.declared == {"foreign": _FOREIGN}


async def test_where_the_planner_sees_room_something_else_is_taken(ray: FakeRay) -> None:
    """It knows GPUs and memory; Ray counts processors as well, and whatever its nodes declare."""
    ray.tell(state="STARTING", node=None, status="DEPLOYING", demands=[[{"CPU": 1, "GPU": 2}, 1]])
    async with _running(ray, Room(Chance.NOW)) as running:
        with pytest.raises(EngineFailedError, match="takes 2 GPU, 1 CPU") as caught:
            await running.task
    assert "processors" in str(caught.value.help)


async def test_a_slow_process_is_no_want_of_room(ray: FakeRay) -> None:
    """Ray words both alike; what the scheduler has placed is loading, and has longer to do so."""
    ray.tell(state="STARTING", node=None, status="DEPLOYING")
    async with _running(ray, Room(Chance.NEVER, "wrong")) as running:
        with pytest.raises(EngineFailedError, match="nothing has changed"):
            await running.task


async def test_a_dashboard_that_does_not_answer_is_no_death(ray: FakeRay) -> None:
    """It is told once, requests go on, and so does everything when it is back."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        answer = ray.dashboard.answers.pop(APPLICATIONS)
        await running.until(lambda: "cluster.unreachable" in running.around.events)
        await asyncio.sleep(0.05)
        assert running.around.is_open
        assert running.around.events.count("cluster.unreachable") == 1
        ray.dashboard.answers[APPLICATIONS] = answer
        await running.until(lambda: "cluster.reachable" in running.around.events)
        await running.end()


async def test_what_cannot_be_taken_off_is_said(ray: FakeRay) -> None:
    """It may still run, and hold what it holds: how to remove it is told, and the record keeps where it is."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        del ray.dashboard.answers[APPLICATIONS]
        with pytest.raises(ClusterError, match="may still be on the cluster") as caught:
            await running.end()
    assert "launch stop m --cluster" in str(caught.value.help)
    assert running.around.record.application is not None


async def test_one_that_somebody_took_off_stays_off(ray: FakeRay) -> None:
    """Whoever did that meant it."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        ray.take({"applications": [_FOREIGN]})
        with pytest.raises(EngineFailedError, match="somebody took"):
            await running.task
    assert ray.declared == {"foreign": _FOREIGN}


async def test_a_cluster_that_was_started_anew_is_told_again(ray: FakeRay) -> None:
    """Serve knows nothing then, which is not what somebody wanted."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        ray.declared = {}
        ray.dashboard.answers[VERSION] = b'{"session_name": "another"}'
        ray.dashboard.answers[APPLICATIONS] = b'{"applications": {}}'
        await running.until(lambda: "cluster.restarted" in running.around.events)
        await running.until(lambda: running.around.is_open)
        assert ray.declared == {"launcher-m": _OURS}
        await running.end()


async def test_serve_that_somebody_shut_down_stays_down(ray: FakeRay) -> None:
    """The cluster is the same, and knows of no application any more: whoever did that meant it."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        n_sent = len(ray.dashboard.sent)
        ray.dashboard.answers[APPLICATIONS] = b'{"applications": {}}'
        with pytest.raises(EngineFailedError, match="somebody took"):
            await running.task
    assert len(ray.dashboard.sent) == n_sent


async def test_nothing_of_others_is_touched_where_ours_has_no_place(ray: FakeRay) -> None:
    """Its name is another's: nothing is sent, neither to begin nor to end."""
    async with _running(ray, application={**_OURS, "name": "foreign"}) as running:
        with pytest.raises(ForeignApplicationError):
            await running.task
    assert ray.dashboard.sent == []
    assert "cluster.left" not in running.around.events


async def test_a_model_that_does_not_answer_is_not_ready(ray: FakeRay) -> None:
    """All replicas run, and the proxy knows another model."""
    async with _running(ray, application={**_OURS}) as running:
        ray.targets = []
        ray.tell()
        with pytest.raises(EngineFailedError, match="none of Ray Serve's proxies is healthy"):
            await running.task
    assert running.around.attached == []


async def test_another_proxy_is_taken_when_one_is_lost(ray: FakeRay, proxy: str) -> None:
    """Ray lists it no more; requests that hang on it are sent again by the other."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        port = ray.targets[0]["port"]
        ray.tell(targets=[{"ip": "localhost", "port": port}])
        await running.until(lambda: len(running.around.attached) == 2)
        assert running.around.attached == [f"{proxy}/launcher-m", f"http://localhost:{port}/launcher-m"]
        await running.end()


async def test_replicas_lines_are_kept(ray: FakeRay) -> None:
    """`launch logs` reads them from the same file as an engine's of this machine."""
    async with _running(ray) as running:
        await running.until(lambda: running.around.is_open)
        await running.until(lambda: any("/logs/" in path for path in ray.dashboard.asked))
        path = next(path for path in ray.dashboard.asked if "/logs/" in path)
        ray.dashboard.answers[path] = b"one\ntwo\n"
        await running.until(lambda: running.around.lines == ["[r] one", "[r] two"])
        await running.end()
