"""Less cache than was planned, and more context than the model has: what ``launch serve`` makes of it.

On a CPU the engine is given exactly the cache that its requests need, so nothing is ever left too little there. A program
between us and the engine takes some of it away, as others do on a GPU; what follows is the real engine's doing.
"""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from launcher.domain import EngineInstall
from launcher.inventory.vllm_install import EXPLICIT_VARIABLE
from tests.vllm.conftest import NAME, READY_S, Serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1300)]

_N_CTX: Final = 8192
_N_LEFT: Final = 4096
"""What one request may have of what is left: blocks of 128 tokens, beside one that is never given to a request."""
_BLOCK_BYTES: Final = 128 * 512

_BETWEEN: Final = """#!{python}
import os, sys
words = sys.argv[1:]
at = words.index("--kv-cache-memory-bytes") + 1
words[at] = str(min(int(words[at]), {most}))
os.execv({python!r}, [{python!r}, *words])
"""


@pytest.fixture(scope="module")
def cut_short(vllm: EngineInstall, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment whose engine gets less for its cache than it is told."""
    python = Path(vllm.argv[0])
    folder = tmp_path_factory.mktemp("between")
    (folder / "lib").symlink_to(python.parent.parent / "lib")
    program = folder / "bin" / "python"
    program.parent.mkdir()
    program.write_text(_BETWEEN.format(python=str(python), most=(_N_LEFT // 128 + 1) * _BLOCK_BYTES))
    program.chmod(0o700)
    return str(program)


@pytest.fixture(scope="module")
def long_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, said to be trained for more tokens."""
    folder = tmp_path_factory.mktemp("weights") / NAME
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": _N_CTX}))
    return folder


@pytest.fixture
def serve(
    launch: tuple[str, ...], long_model: Path, cut_short: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Serve]:
    """``launch serve`` of it, with the words that a test gives."""
    served = Serve(launch, tmp_path, (str(long_model), *request.param), {EXPLICIT_VARIABLE: cut_short})
    yield served
    served.close()


@pytest.mark.parametrize("serve", [()], indirect=True)
def test_the_length_that_the_engine_names_is_served_next(serve: Serve) -> None:
    """Nobody fixed the context: one step, to the very length, and it answers."""
    serve.await_event("engine.ready", timeout_s=2 * READY_S)
    assert len(serve.events("engine.exited")) == 1
    options = dict(pairwise(serve.engine("vllm.entrypoints").cmdline()))
    assert options["--max-model-len"] == str(_N_LEFT)
    assert serve.chat()[0] == 200


@pytest.mark.parametrize("serve", [("--context", str(_N_CTX))], indirect=True)
def test_a_context_that_was_ordered_is_not_lowered(serve: Serve) -> None:
    """It is refused at once, with what led to it and a command that would do."""
    serve.process.wait(2 * READY_S)
    told = serve.errors.read_text()
    assert serve.end() != 0
    assert len(serve.events("engine.exited")) == 1
    assert serve.events("engine.ready") == []
    assert "left too little for its cache" in told
    assert "launch serve" in told


def test_more_context_than_the_model_has_is_refused_before_anything_is_started(
    launch: tuple[str, ...], model: Path, tmp_path: Path
) -> None:
    """The planner reads what the model was trained for."""
    serve = Serve(launch, tmp_path, (str(model), "--context", "4096"))
    try:
        assert serve.process.wait(60) == 3
        assert "2048" in serve.errors.read_text()
        assert serve.events("engine.starting") == []
    finally:
        serve.close()
