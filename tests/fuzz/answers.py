"""Hostile answers of servers that are asked: a hub's, a Ray dashboard's, an engine's own to a probe, an endpoint's.

It must not know how inputs are changed.
"""

import io
import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final
from unicodedata import category

import urllib3

from launcher.backends.canary import listed_models
from launcher.backends.ray_serve import marked_model, read_bundles
from launcher.client.chat_events import ChatStream, read_fault
from launcher.client.metrics_text import parse_figures
from launcher.cluster.applications import choose_proxies, find_lost, merge, without
from launcher.cluster.demands import find_demand, parse_demands
from launcher.cluster.following import describe_with_reason, look_at
from launcher.cluster.proof import _excerpt, _is_completion
from launcher.cluster.ray_nodes import build_cluster, list_alive, read_accelerators, read_session
from launcher.cluster.replica_logs import ReplicaLogs
from launcher.cluster.serve_details import find_proxies, held_gpus, parse_details
from launcher.domain import InstanceView, State
from launcher.errors import ClusterError, LauncherError, RemoteError, UsageError
from launcher.fetch.hub import Settings, list_files
from launcher.fetch.names import group_files, parse_name, quantization_of, select, shards_of
from launcher.fetch.ranges import RangeStream
from launcher.fetch.web import Web, check_url, show_url
from launcher.figures import Sighting
from launcher.gateway.events import Dialect, EventStream, error_event, read_took
from launcher.metadata.gguf import read_gguf
from launcher.render.hardware import render_hardware
from launcher.render.prose import shown_prose
from launcher.render.top import render_top, render_top_json
from launcher.supervisor.readiness import _excerpt as excerpt_of_canary
from launcher.supervisor.readiness import is_completion
from tests.fuzz.files import patched
from tests.fuzz.target import Target, WrongError, check_figures, check_printable
from tests.fuzz.trees import Tree
from tests.fuzz.weights import number, octets, to_json

_RAY: Final = Path(__file__).parent.parent / "transcripts/ray"
_URL: Final = "http://127.0.0.1:8265"
_MOST_ASKED: Final = 200
_LONGEST_WAIT_S: Final = 60.0


def _joined(tree: Tree) -> bytes:
    """Write several answers one behind the other, each with its length; what is bytes or text goes as it is."""
    parts = tree.get("parts") if isinstance(tree, dict) else tree
    whole = []
    for part in (parts if isinstance(parts, list) else [parts])[:8]:
        data = part if isinstance(part, bytes) else patched(part, to_json)
        whole.append(len(data).to_bytes(4, "little") + data)
    return b"".join(whole)


def _split(data: bytes, n: int) -> list[bytes]:
    parts: list[bytes] = []
    while len(data) >= 4 and len(parts) < n:
        size = int.from_bytes(data[:4], "little")
        parts.append(data[4 : 4 + size])
        data = data[4 + size :]
    return parts + [b""] * (n - len(parts))


def _part(document: Tree) -> Tree:
    return {"document": document, "patch": b"", "patch_at": 0}


# --- Ray --------------------------------------------------------------------------------------------------------


@cache
def _ray_seeds() -> list[Tree]:
    nodes = json.loads((_RAY / "2.60.0-three-nodes.json").read_text(encoding="utf-8"))["answers"]
    keys = (
        "GET /api/v0/nodes?detail=1&limit=10000",
        "GET /nodes?view=summary",
        "GET /api/cluster_status",
        "GET /api/version",
    )
    seeds = [{"parts": [_part(nodes[key]) for key in keys]}]
    serve = json.loads((_RAY / "2.60.0-serve.json").read_text(encoding="utf-8"))
    told = [*serve["answers"].values(), *({"applications": {"one": each}} for each in serve["applications"].values())]
    status = _part(
        {"data": {"clusterStatus": {"loadMetricsReport": {"resourceDemand": [[{"GPU": 1.0}, 2]], "pgDemand": []}}}}
    )
    seeds += [{"parts": [_part(each), status, _part({"lines": ["x"]})]} for each in told]
    return seeds


def _take_ray(data: bytes) -> str:
    if len(_split(data, 4)[3]) > 0:
        nodes, summary, status, version = _split(data, 4)
        cluster = build_cluster(_URL, nodes=nodes, summary=summary, status=status, version=version)
        check_figures(cluster, "cluster")
        check_printable(render_hardware(cluster), "hardware", lines=True)
        read_accelerators(_URL, nodes=nodes, summary=summary)
        list_alive(_URL, nodes=nodes)
        read_session(_URL, version=version)
        return f"a cluster of {min(len(cluster.nodes), 4)} nodes"
    return _take_serve(*_split(data, 3))


def _take_serve(body: bytes, status: bytes, log: bytes) -> str:
    details = parse_details(body, _URL)
    demands = parse_demands(status, _URL)
    find_proxies(details)
    for name, application in details.applications.items():
        look = look_at(details, name)
        check_printable(describe_with_reason(look), "how an application stands")
        for line in look.details:
            check_printable(line, "its words")
        held_gpus(application)
        find_demand(demands, application)
        marked_model(application.deployed_app_config or {})
        read_bundles(application.deployed_app_config or {})
        for line in ReplicaLogs(lambda _: log).read(look.replicas):
            check_printable(line, "a replica's line")
    ours: dict[str, object] = {"name": "ours", "route_prefix": "/ours"}
    json.dumps(merge(details, ours, choose_proxies(is_here=True)))
    without(details, next(iter(details.applications), "x"))
    for lost in find_lost(details, details, "ours"):
        check_printable(lost, "what was lost")
    return "applications" if details.applications else "no application"


RAY: Final = Target(
    name="ray",
    modules=(
        "launcher.cluster.ray_nodes",
        "launcher.cluster.serve_details",
        "launcher.cluster.following",
        "launcher.cluster.demands",
        "launcher.cluster.applications",
        "launcher.cluster.replica_logs",
        "launcher.cluster.answers",
    ),
    seeds=_ray_seeds,
    encode=_joined,
    take=_take_ray,
    refusals=(ClusterError,),
    words=(
        *("GPU", "CPU", "memory", "ALIVE", "DEAD", "RUNNING", "DEPLOY_FAILED", "DELETING", "declarative", "<redacted>"),
        *(
            "accelerator_type:H100",
            "H100",
            "NVIDIA H100 80GB HBM3",
            "HTTP",
            "OpenAiIngress",
            "STRICT_PACK",
            "runtime_env",
        ),
        *("gpus", "mem", "cpus", "memoryTotal", "memoryUsed", "usageByNode", 1e308, 0.5, 10**15),
    ),
    share=8,
)


# --- A hub ------------------------------------------------------------------------------------------------------


class _Pool:
    """Connections to a server that says what an input says, the last answer again and again."""

    def __init__(self, answers: Sequence[tuple[int, list[tuple[str, str]], bytes]]) -> None:
        self._answers = answers
        self.n_asked = 0

    def urlopen(self, method: str, url: str, **more: object) -> urllib3.BaseHTTPResponse:
        """Give the next answer."""
        del more
        status, headers, body = self._answers[min(self.n_asked, len(self._answers) - 1)]
        self.n_asked += 1
        if self.n_asked > _MOST_ASKED:
            msg = "asked without end"
            raise WrongError(msg)
        return urllib3.HTTPResponse(
            body=io.BytesIO(body),
            headers=urllib3.HTTPHeaderDict(headers),
            status=status,
            request_method=method,
            request_url=url,
            preload_content=False,
            decode_content=False,
        )


class _FedWeb(Web):
    """The real client, with such connections."""

    def __init__(self, pool: _Pool) -> None:
        super().__init__(sleep=_check_wait)
        self._fed = pool

    def _pool(self, url: str) -> Any:
        del url
        return self._fed


def _check_wait(wait_s: float) -> None:
    """Wait for nothing, but look at how long it would be."""
    if not 0 <= wait_s <= _LONGEST_WAIT_S:
        msg = f"told to wait {wait_s} s"
        raise WrongError(msg)


@cache
def _hub_seeds() -> list[Tree]:
    entries = [
        {
            "type": "file",
            "oid": "a" * 40,
            "size": 4 * 10**9,
            "path": "Model-Q4_K_M.gguf",
            "lfs": {"oid": "b" * 64, "size": 4 * 10**9},
        },
        {"type": "file", "oid": "a" * 40, "size": 10**9, "path": "q8/Model-Q8_0-00001-of-00002.gguf"},
        {"type": "file", "oid": "a" * 40, "size": 10**9, "path": "q8/Model-Q8_0-00002-of-00002.gguf"},
        {"type": "file", "oid": "a" * 40, "size": 1000, "path": "config.json"},
        {"type": "directory", "oid": "a" * 40, "size": 0, "path": "q8"},
    ]
    siblings = {"siblings": [{"rfilename": entry["path"], "size": entry["size"]} for entry in entries]}
    ok = {"status": 200, "headers": {"content-type": "application/json"}}
    following = {
        "status": 200,
        "headers": {"link": '<https://huggingface.co/api/models/a/b/tree/main?cursor=x>; rel="next"'},
    }
    missing = {"status": 404, "headers": {}}
    spans = {"status": 206, "headers": {"content-range": "bytes 0-65535/4000000000", "etag": '"one"'}}
    return [
        {"ask": 0, "answers": [{**ok, "body": _part(entries)}]},
        {"ask": 0, "answers": [{**following, "body": _part(entries)}, {**ok, "body": _part(entries[:1])}]},
        {"ask": 0, "answers": [{**missing, "body": b""}, {**ok, "body": _part(siblings)}]},
        {"ask": 1, "answers": [{**spans, "body": b"GGUF\x03\0\0\0" + b"\0" * 65528}, {**spans, "body": b"\0" * 65536}]},
        {"ask": 1, "answers": [{**ok, "headers": {"content-length": "16"}, "body": b"GGUF\x03\0\0\0" + b"\0" * 8}]},
        {
            "ask": 2,
            "answers": [{**ok, "body": b"hf:Owner/Name-GGUF:Q4_K_M"}, {**ok, "body": b"https://h/x/y-Q4_0.gguf?a=b"}],
        },
        {"ask": 3, "answers": [{"status": 429, "headers": {"retry-after": "3", "location": "/x"}, "body": b""}]},
    ]


def _encode_hub(tree: Tree) -> bytes:
    tree = tree if isinstance(tree, dict) else {}
    answers = tree.get("answers")
    parts = [bytes([number(tree.get("ask")) % 4])]
    for answer in (answers if isinstance(answers, list) else [answers])[:24]:
        told = answer if isinstance(answer, dict) else {}
        headers = told.get("headers")
        pairs = headers.items() if isinstance(headers, dict) else ()
        lines = [octets(key) + b": " + octets(value) for key, value in pairs]
        head = b"\n".join([b"%d" % (number(told.get("status"), 200) % 1000), *lines])
        body = told.get("body")
        content = body if isinstance(body, bytes) else patched(body, to_json)
        parts += [len(part).to_bytes(4, "little") + part for part in (head, content)]
    return b"".join(parts)


def _take_hub(data: bytes) -> str:
    ask, told = (data[0] % 4 if data else 0), _split(data[1:], 48)
    answers = []
    for head, body in zip(told[::2], told[1::2], strict=True):
        if head:
            status, *lines = head.decode("latin-1").split("\n")
            pairs = (line.partition(": ") for line in lines)
            answers.append((int(status), [(key, value) for key, _, value in pairs], body))
    web = _FedWeb(_Pool(answers or [(200, [], b"")]))
    match ask:
        case 0:
            return _list(web)
        case 1:
            return _read_ranges(web)
        case 2:
            return _name_all([body.decode("utf-8", "replace") for _, _, body in answers])
        case _:
            return _download(web)


def _download(web: Web) -> str:
    with web.stream("https://huggingface.co/a/b/resolve/main/x.gguf") as incoming:
        check_figures([incoming.announced_bytes or 0], "announced")
        check_printable(show_url(incoming.url), "an address")
        n_bytes = sum(map(len, itertools.islice(incoming.chunks, 64)))
    return "downloaded" if n_bytes else "nothing to download"


def _list(web: Web) -> str:
    files = list_files(web, Settings(), "owner/name")
    groups = group_files(files)
    for group in groups:
        check_figures([file.size_bytes or 0 for file in group.files], "sizes")
        check_printable(group.quantization or "", "a quantization")
    select(groups, "Q4_K_M")
    return "files listed" if groups else "no file of weights"


def _read_ranges(web: Web) -> str:
    stream = RangeStream(web, "https://huggingface.co/a/b/resolve/main/x.gguf")
    try:
        read_gguf(stream, stream.size_bytes, window_bytes=1 << 16)
    except LauncherError as error:
        if not isinstance(error, RemoteError):
            return "read as a header"
        raise
    return "read as a header"


def _name_all(names: list[str]) -> str:
    for name in names:
        quantization_of(name)
        shards_of(name)
        try:
            parse_name(name)
            check_url(name)
        except UsageError as error:
            check_printable(error.message if name.isprintable() else "", "the refusal")
    return "names read"


HUB: Final = Target(
    name="hub",
    modules=("launcher.fetch.hub", "launcher.fetch.names", "launcher.fetch.ranges", "launcher.fetch.web"),
    seeds=_hub_seeds,
    encode=_encode_hub,
    take=_take_hub,
    refusals=(RemoteError,),
    words=(
        *("content-length", "content-range", "retry-after", "location", "link", "etag", "x-error-code", "GatedRepo"),
        *("bytes 0-65535/65536", "bytes */0", "bytes 0-0/1", "Fri, 31 Dec 9999 23:59:59 GMT", "-1", "1e9", "//x/y"),
        *("Model-Q4_K_M-00001-of-99999.gguf", "a/../b.gguf", "x.gguf", 200, 206, 301, 401, 404, 416, 429, 503, 2**63),
    ),
    share=9,
)


# --- An engine asked by us ----------------------------------------------------------------------------------------


@cache
def _probe_seeds() -> list[Tree]:
    usage = {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    completion = {"id": "c", "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}], "usage": usage}
    native = {
        "content": "x",
        "tokens_evaluated": 3,
        "tokens_predicted": 1,
        "timings": {"prompt_n": 1, "predicted_n": 2},
    }
    event = b'data: {"choices":[{"index":0,"delta":{"content":"t"}}]}\n\n'
    last = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":8}}\n\ndata: [DONE]\n\n'
    response = b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":3,"output_tokens":2}}}\n\n'
    error = b'data: {"error":{"message":"x"}}\r\n\r\n'
    documents = ({"object": "list", "data": [{"id": "tiny"}]}, completion, native)
    streams = (event * 3 + last, event.replace(b"\n", b"\r\n") + error, event + response, b'data: {"stop":true}\n\n')
    return [{"parts": [_part(each)]} for each in documents] + [{"parts": [each]} for each in streams]


def _take_probe(data: bytes) -> str:
    body = _split(data, 1)[0]
    names = listed_models(body)
    check_printable(excerpt_of_canary(body), "the canary's answer")
    check_printable(_excerpt(body), "the proof's answer")
    complete = is_completion(body) or _is_completion(body)
    took = read_took(body)
    if took is not None:
        check_figures(took, "took")
    seen = []
    for dialect in Dialect:
        stream = EventStream(dialect)
        passed = b"".join(stream.feed(body[start : start + 97]) for start in range(0, len(body), 97))
        if passed + stream.rest() != body:
            msg = "bytes of a stream were lost or made up"
            raise WrongError(msg)
        check_figures(stream.took(), "took")
        seen.append(stream.is_complete(at_end=False))
        error_event(dialect, body[:100].decode("utf-8", "replace"), "engine-lost")
    return (
        ", ".join(
            filter(
                None,
                (
                    "models" if names else "",
                    "completion" if complete else "",
                    "figures" if took else "",
                    "last word" if any(seen) else "",
                ),
            )
        )
        or "nothing of use"
    )


PROBES: Final = Target(
    name="probe-answers",
    modules=("launcher.gateway.events", "launcher.backends.canary"),
    seeds=_probe_seeds,
    encode=_joined,
    take=_take_probe,
    words=(
        "data",
        "id",
        "choices",
        "usage",
        "content",
        b"data: [DONE]\n\n",
        b"\n\n",
        b"\r\n\r\n",
        b"event: error\n",
        -5,
        2**63,
    ),
    share=12,
)


# --- An endpoint that `launch chat` and `launch top` ask ------------------------------------------------------------


@cache
def _endpoint_seeds() -> list[Tree]:
    said = {"message": "too long", "type": "exceed_context_size_error", "code": 400, "n_prompt_tokens": 9, "n_ctx": 8}
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]}
    word = {"choices": [{"index": 0, "delta": {"content": "t\u00e9"}, "finish_reason": "stop"}]}
    lines = [b"data: ", _part(thought), b"\n\ndata: ", _part(word), b"\n\ndata: ", _part({"error": said}), b"\n\n"]
    metrics = b"".join(
        (
            b"# TYPE launcher_requests_running gauge\nlauncher_requests_running 3.0\nlauncher_stream_events_total 41.0\n",
            b'launcher_health{health="ready"} 1.0\nlauncher_memory_held_bytes{memory="gpu0"} 6.0e+09\n',
            b'launcher_memory_bytes{figure="planned",kind="total",memory="node0/\\"x"} 7.0\n',
            b'launcher_device_utilization_ratio{device="gpu0"} 0.5\n',
        )
    )
    streams = ([*lines[:4], b"\n\ndata: [DONE]\n\n"], lines, [_part({"error": said})], [metrics])
    return [{"parts": stream} for stream in streams]


def _take_endpoint(data: bytes) -> str:
    body = b"".join(_split(data, 8))
    stream, came = ChatStream(), False
    endings = []
    try:
        for line in body.splitlines(keepends=True):
            piece = stream.feed(line)
            came = came or piece is not None
            text = "" if piece is None else shown_prose(piece.text + piece.thought)
            check_printable(
                "".join(each for each in text if each not in _OF_PROSE and category(each) not in _PLAIN), "prose"
            )
    except ValueError:
        endings.append("no event")
    endings += ["pieces"] if came else []
    endings += ["whole"] if stream.is_whole else []
    for said in (stream.error, read_fault(body)):
        check_printable("" if said is None else said.text, "a server's words")
    endings += ["an error"] if stream.error is not None else []
    figures = parse_figures(body.decode("utf-8", "replace"))
    check_figures(figures, "figures")
    endings += ["figures"] if figures.memories or figures.n_running or figures.n_stream_events else []
    sighting = Sighting(view=_SEEN, figures=figures)
    check_printable(render_top((sighting,)), "top", lines=True)
    render_top_json((sighting,))
    return ", ".join(endings) or "nothing of use"


_OF_PROSE: Final = frozenset("\n\t\u200c\u200d")
_PLAIN: Final = frozenset({"Zs", "Cn", "Co"})
_SEEN: Final = InstanceView(name="x", state=State.READY, path="/x", log_path="/x/log", supervisor_alive=True)

ENDPOINT: Final = Target(
    name="endpoint-answers",
    modules=("launcher.client.chat_events", "launcher.client.metrics_text", "launcher.render.prose"),
    seeds=_endpoint_seeds,
    encode=_joined,
    take=_take_endpoint,
    words=(
        *("choices", "delta", "content", "reasoning", "finish_reason", "length", "error", "message", "detail", "code"),
        *("\x1b[2J", "\u202e", "\ud800", "launcher_", "context length", '{memory="', "1e400"),
        *(b"data: [DONE]\n\n", b"\n\n", b"\r\n", b"data:", b'launcher_memory_free_bytes{memory="'),
        -5,
        2**63,
    ),
    share=4,
)
