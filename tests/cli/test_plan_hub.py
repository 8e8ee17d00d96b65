"""``launch plan`` and ``launch inspect`` of what is on a hub, as processes against a hub on loopback."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import gguf
import pytest

from tests.fakes.hub import Handler, Hub, make_gguf, serve

pytestmark = pytest.mark.slow

Q = gguf.GGMLQuantizationType
Launch = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "hf_0123456789"  # noqa: S105  a secret for the test


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """One small model at three quantizations."""
    ladder = {"Q4_K_M": Q.Q4_K, "Q8_0": Q.Q8_0, "F16": Q.F16}
    return {f"tiny-{name}.gguf": make_gguf(kind) for name, kind in ladder.items()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub that has the model."""
    with serve(Hub(files={"some/tiny-GGUF": files})) as served:
        yield served


@pytest.fixture
def run(hub: Hub, launch: tuple[str, ...]) -> Launch:
    """Run the command against the hub."""

    def call(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env = {**clean, "HF_ENDPOINT": hub.url, "HF_HOME": "/nonexistent", **environ}
        return subprocess.run([*launch, *words], capture_output=True, text=True, timeout=60, check=False, env=env)

    return call


def test_a_plan_needs_only_headers(run: Launch, hub: Hub, files: dict[str, bytes]) -> None:
    """The best quantization that fits is planned; stdout is the plan, stderr says how little was read."""
    result = run("plan", "hf:some/tiny-GGUF", "--inventory", "rtx4090", "--context", "1024", "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)["plan"]
    assert plan["model"] == "tiny"
    assert plan["quantization"] in {"f16", "q8_0"}
    assert plan["artifact"]["repository"] == "some/tiny-GGUF"
    (file,) = plan["artifact"]["files"]
    assert file["size_bytes"] == len(files[file["name"]])
    said = re.fullmatch(
        r"read \S+ MiB \((\d+) bytes\) of \S+ MiB from 127\.0\.0\.1 in (\d+) requests: headers only\n", result.stderr
    )
    assert said is not None, result.stderr
    assert (int(said[1]), int(said[2])) == (hub.n_sent, len(hub.log))
    assert hub.n_sent * 10 < sum(map(len, files.values()))


def test_a_quantization_can_be_named(run: Launch) -> None:
    """In the name, in any case, as by ``--quant``; both together only if they agree."""
    for words in (("hf:some/tiny-GGUF:Q4_K_M",), ("hf:some/tiny-GGUF", "--quant", "q4_k_m")):
        result = run("plan", *words, "--inventory", "rtx4090", "--json")
        assert json.loads(result.stdout)["plan"]["quantization"] == "q4_k_m"
    result = run("plan", "hf:some/tiny-GGUF:Q4_K_M", "--quant", "q8_0")
    assert result.returncode == 2
    assert "leave one of them out" in result.stderr


def test_advice_names_the_hub_again(run: Launch) -> None:
    """A refusal is exit code 3, and what it advises plans as it stands."""
    result = run("plan", "hf:some/tiny-GGUF:q5_k_m", "--inventory", "rtx4090")
    assert (result.returncode, result.stdout) == (3, "")
    commands = [line.split()[1:] for line in result.stderr.splitlines() if line.startswith("    launch ")]
    assert ["plan", "hf:some/tiny-GGUF", "--inventory", "rtx4090"] in commands
    for words in commands:
        assert run(*words).returncode == 0, words


def test_an_address_is_planned(run: Launch, hub: Hub) -> None:
    """A file's address stands for the file."""
    url = f"{hub.url}/some/tiny-GGUF/resolve/main/tiny-Q8_0.gguf"
    result = run("plan", url, "--inventory", "rtx4090", "--json")
    assert json.loads(result.stdout)["plan"]["quantization"] == "q8_0"
    assert "headers only" in result.stderr


def test_a_header_is_inspected(run: Launch, hub: Hub) -> None:
    """By repository and quantization or by address; several to choose from are listed."""
    url = f"{hub.url}/some/tiny-GGUF/resolve/main/tiny-Q8_0.gguf"
    by_name, by_address = run("inspect", "hf:some/tiny-GGUF:Q8_0"), run("inspect", url)
    assert by_name.returncode == by_address.returncode == 0
    assert by_name.stdout == by_address.stdout
    assert "layers           4" in by_name.stdout
    assert "headers only" in by_name.stderr
    several = run("inspect", "hf:some/tiny-GGUF")
    assert (several.returncode, several.stdout) == (2, "")
    assert "tiny-Q4_K_M.gguf" in several.stderr


def test_what_is_not_here_is_not_served_where_nothing_is_downloaded(run: Launch) -> None:
    """``serve --no-pull`` describes it, and says that its weights are elsewhere."""
    result = run("serve", "hf:some/tiny-GGUF:Q8_0", "--no-pull")
    assert result.returncode == 1
    assert "error[weights-missing]" in result.stderr
    assert "launch pull hf:some/tiny-GGUF --quant q8_0" in result.stderr


@pytest.mark.parametrize(
    ("words", "environ", "code", "said"),
    [
        (("hf:some/other",), {}, 1, "error[remote-missing]: 127.0.0.1 has no repository `some/other`"),
        (("hf:nonsense/",), {}, 2, "error[usage]"),
        (("hf:nonsense/:Q4_0",), {}, 2, "error[usage]"),
        (("hf:some/tiny-GGUF",), {"HF_HUB_OFFLINE": "1"}, 1, "error[remote-failed]: HF_HUB_OFFLINE is set"),
        (("hf:some/tiny-GGUF",), {"HF_ENDPOINT": "hub"}, 2, "error[usage]: HF_ENDPOINT"),
        (("hf:some/tiny-GGUF",), {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "there is no connection to 127.0.0.1"),
        (("http://192.0.2.1/f.gguf",), {}, 2, "http is for this machine only"),
    ],
)
def test_a_fault_is_one_clear_error(
    run: Launch, words: tuple[str, ...], environ: dict[str, str], code: int, said: str
) -> None:
    """Each names itself and proposes something, without a traceback, and nothing is on stdout."""
    result = run("plan", *words, **environ)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert "\nhelp: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("token", "code"), [(SECRET, 0), ("hf_wrong", 1), ("", 1)])
def test_a_gated_repository_opens_to_its_token(run: Launch, hub: Hub, token: str, code: int) -> None:
    """With it the plan comes, with another or none the way to get one; it is never printed."""
    hub.token, hub.gated = SECRET, True
    result = run("plan", "hf:some/tiny-GGUF", "--inventory", "rtx4090", HF_TOKEN=token)
    assert result.returncode == code
    assert ("is gated" in result.stderr) == bool(code)
    if token:
        assert token not in result.stdout + result.stderr


def test_a_busy_hub_is_asked_again(run: Launch, hub: Hub) -> None:
    """429 with Retry-After is waited for."""
    left = [2]

    def busy(handler: Handler) -> bool:
        if left[0] == 0:
            return False
        left[0] -= 1
        handler.send(429, b"", {"Retry-After": "0"})
        return True

    hub.fault = busy
    assert run("plan", "hf:some/tiny-GGUF", "--inventory", "rtx4090").returncode == 0
    assert left == [0]


def test_a_plan_for_a_profile_imports_no_network() -> None:
    """What a plan from a shipped profile does not need is not imported."""
    code = (
        "import sys; sys.argv = ['launch', 'plan', 'gemma2-27b', '--inventory', 'rtx4090', '--json']\n"
        "from launcher.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'urllib3', 'tenacity', 'launcher.fetch', 'http.client'} & set(sys.modules), 'imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def _safetensors_repository(**config: object) -> dict[str, bytes]:
    """A whole small Llama in safetensors: 2 layers of width 256, its data all zeros."""
    n_embd, n_ff, n_vocab = 256, 512, 4096
    shapes = {"model.embed_tokens": (n_vocab, n_embd), "lm_head": (n_vocab, n_embd), "model.norm": (n_embd,)}
    for idx in range(2):
        layer = f"model.layers.{idx}"
        shapes |= {f"{layer}.self_attn.{part}_proj": (n_embd, n_embd) for part in "qkvo"}
        shapes |= {f"{layer}.mlp.{part}_proj": (n_ff, n_embd) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj": (n_embd, n_ff)}
        shapes |= {f"{layer}.{part}_layernorm": (n_embd,) for part in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    described = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": n_embd,
        "intermediate_size": n_ff,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": n_vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **config,
    }
    weights = len(text).to_bytes(8, "little") + text + bytes(end)
    return {"config.json": json.dumps(described).encode(), "model.safetensors": weights}


def test_a_safetensors_repository_is_planned_for_vllm(run: Launch, hub: Hub) -> None:
    """Its format decides the engine; the header and the configuration are enough, and its own context is not exceeded."""
    hub.files["some/tiny"] = _safetensors_repository()
    result = run("plan", "hf:some/tiny", "--inventory", "rtx4090", "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)["plan"]
    assert (plan["engine"], plan["format"], plan["quantization"]) == ("vllm", "safetensors", "bf16")
    assert (plan["n_layer"], plan["n_ctx_per_request"]) == (2, 2048)
    assert hub.n_sent < len(hub.files["some/tiny"]["model.safetensors"])
    assert "headers only" in result.stderr


def test_a_context_beyond_a_repository_s_own_is_refused(run: Launch, hub: Hub) -> None:
    """As an order it is no plan of vLLM's either, whatever is forced; what is advised plans."""
    hub.files["some/tiny"] = _safetensors_repository()
    words = ("plan", "hf:some/tiny", "--context", "4096", "--inventory", "rtx4090")
    result, forced = run(*words), run(*words, "--force")
    assert result.returncode == forced.returncode == 3
    assert "error[exceeds-context]: `tiny` was trained for 2048 tokens" in forced.stderr
    commands = [line.split()[1:] for line in result.stderr.splitlines() if line.startswith("    launch ")]
    assert commands
    for advised in commands:
        assert run(*advised).returncode == 0, advised


def test_a_safetensors_repository_is_not_served(run: Launch, hub: Hub) -> None:
    """``serve`` never comes to a plan that this release cannot start."""
    hub.files["some/tiny"] = _safetensors_repository()
    result = run("serve", "hf:some/tiny", "--no-pull")
    assert result.returncode in {1, 3}
    assert "\nhelp: " in result.stderr
    assert "Traceback" not in result.stderr
