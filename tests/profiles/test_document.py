"""Laws of a profile file: what is right is understood, what is wrong is all told at once."""

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher.domain import (
    Address,
    CacheType,
    Engine,
    Fallback,
    Limits,
    Objective,
    Profile,
    Rung,
    Settings,
    WeightsFormat,
    Wishes,
)
from launcher.errors import ProfileError
from launcher.profiles.document import MAX_FILE_BYTES, read_profile
from launcher.resources import data_dir

SHIPPED = data_dir("profiles")
ARTIFACT = '[[artifact]]\nquantization = "q8_0"\n'


def read(folder: Path, text: str | bytes) -> Profile:
    """Return the profile of a file with this text."""
    path = folder / "x.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_profile(path, fallback_specs=SHIPPED)


def faults(folder: Path, text: str | bytes) -> tuple[str, ...]:
    """Return the faults of a file with this text, the message standing in where there are no details."""
    with pytest.raises(ProfileError) as caught:
        read(folder, text)
    return caught.value.details or (caught.value.message.replace(f"{folder}/", ""),)


def test_every_key_reaches_its_noun(tmp_path: Path) -> None:
    """A profile that uses every key says what it means."""
    profile = read(
        tmp_path,
        """
        name = "mine"
        title = "My model"
        aliases = ["mine:1b", "m"]
        engines = ["vllm", "llama-server"]
        [want]
        context = 16384
        parallel = 4
        objective = "speed"
        [limits]
        min_quantization = "iq4_xs"
        min_context = 4096
        min_generation_tps = 12
        [pin]
        quantization = "q4_k_m"
        engine = "llama-server"
        n_ctx_per_request = 8192
        n_parallel = 2
        n_batch = 1024
        n_ubatch = 256
        n_gpu_layers = 0
        n_cpu_moe = 3
        cache_type_k = "q8_0"
        cache_type_v = "f16"
        flash_attn = true
        n_threads = 6
        [serve]
        host = "0.0.0.0"
        port = 9000
        [model]
        spec = "specs/llama3.1-8b.json"
        license = "llama3.1"
        urls = ["https://example.org/model"]
        [[artifact]]
        quantization = "q4_k_m"
        repository = "some.one/some-model"
        files = ["a/b-00001-of-00002.gguf", { name = "b.gguf", size_bytes = 5, sha256 = "%s" }]
        local_path = "weights/first.gguf"
        package = "some_weights_gguf"
        [[artifact]]
        format = "safetensors"
        quantization = "q4_k_m"
        """
        % ("0" * 64),
    )
    assert (profile.name, profile.title, profile.aliases) == ("mine", "My model", ("mine:1b", "m"))
    assert (profile.license, profile.urls) == ("llama3.1", ("https://example.org/model",))
    assert profile.engines == (Engine.VLLM, Engine.LLAMA_SERVER)
    assert profile.wishes == Wishes(n_ctx_per_request=16384, n_parallel=4, objective=Objective.SPEED)
    assert profile.limits == Limits(min_quantization="iq4_xs", min_n_ctx_per_request=4096, min_generation_tps=12.0)
    assert profile.pins == Settings(
        quantization="q4_k_m",
        engine=Engine.LLAMA_SERVER,
        n_ctx_per_request=8192,
        n_parallel=2,
        n_batch=1024,
        n_ubatch=256,
        n_gpu_layers=0,
        n_cpu_moe=3,
        cache_type_k=CacheType.Q8_0,
        cache_type_v=CacheType.F16,
        flash_attn=True,
        n_threads=6,
    )
    assert profile.address == Address(host="0.0.0.0", port=9000)  # noqa: S104  nothing listens there
    gguf, safetensors = profile.artifacts
    assert [file.name for file in gguf.files] == ["a/b-00001-of-00002.gguf", "b.gguf"]
    assert (gguf.files[1].size_bytes, gguf.files[1].sha256) == (5, "0" * 64)
    assert gguf.local_path == str(tmp_path / "weights/first.gguf")
    assert (gguf.package, gguf.repository) == ("some_weights_gguf", "some.one/some-model")
    assert gguf.spec is not None
    assert gguf.spec.architecture == "llama"
    assert (safetensors.format, safetensors.spec) == (WeightsFormat.SAFETENSORS, None)
    assert profile.source == str(tmp_path / "x.toml")


def test_what_is_left_out_has_the_nouns_defaults(tmp_path: Path) -> None:
    """A name and one artifact are enough."""
    profile = read(tmp_path, f'name = "a"\n{ARTIFACT}')
    plain = Profile(name="a", artifacts=profile.artifacts, source=profile.source)
    assert profile == plain
    assert profile.artifacts[0].format is WeightsFormat.GGUF


def test_what_may_be_given_up_is_the_profiles_to_say(tmp_path: Path) -> None:
    """The ladder keeps its order, may be shortened or emptied, and holds a rung once."""
    head = 'name = "x"\n' + ARTIFACT
    assert read(tmp_path, head).fallback == Fallback(ladder=tuple(Rung), step_up=False)
    said = read(tmp_path, head + '[fallback]\nladder = ["context", "ubatch"]\nstep_up = true')
    assert said.fallback == Fallback(ladder=(Rung.CONTEXT, Rung.UBATCH), step_up=True)
    assert read(tmp_path, head + "[fallback]\nladder = []").fallback.ladder == ()
    assert faults(tmp_path, head + '[fallback]\nladder = ["context", "context"]') == (
        'fallback.ladder[2]: "context" stands there twice',
    )


def test_port_zero_means_a_free_port(tmp_path: Path) -> None:
    """Port 0 leaves the choice to the launcher."""
    assert read(tmp_path, f'name = "a"\n[serve]\nport = 0\n{ARTIFACT}').address.port is None


def test_local_paths_know_home_and_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the user's home; an absolute path stays."""
    monkeypatch.setenv("HOME", "/home/someone")
    for written, meant in (("~/w.gguf", "/home/someone/w.gguf"), ("/data/w.gguf", "/data/w.gguf")):
        artifact = read(tmp_path, f'name = "a"\n{ARTIFACT}local_path = "{written}"').artifacts[0]
        assert artifact.local_path == meant


def test_a_spec_beside_the_profile_comes_first(tmp_path: Path) -> None:
    """The profile's own folder is searched for its spec before the shipped one."""
    (tmp_path / "specs").mkdir()
    own = (SHIPPED / "specs" / "gemma2-9b.json").read_bytes()
    (tmp_path / "specs" / "llama3.1-8b.json").write_bytes(own)
    spec = read(tmp_path, f'name = "a"\n[model]\nspec = "specs/llama3.1-8b.json"\n{ARTIFACT}').artifacts[0].spec
    assert spec is not None
    assert spec.architecture == "gemma2"


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """One pass names every fault: the key, what was found, what is allowed, the nearest name for a typo."""
    text = """
    name = "Bad Name"
    colour = 3
    engines = ["llama-sever", 7]
    [want]
    contxt = 5
    parallel = 0
    objective = "sped"
    [limits]
    min_quantization = "q4_km"
    min_generation_tps = nan
    [pin]
    n_ctx = -1
    ctx-size = 4096
    flash_attn = "yes"
    cache_type_k = "q8"
    [serve]
    port = 70000
    host = "a b"
    [[artifact]]
    quantisation = "q8_0"
    files = ["../up.gguf", { name = "b.gguf", sha256 = "short", size = 3 }]
    """
    assert faults(tmp_path, text) == (
        'name: "Bad Name" is not a name of lower-case letters, digits, `.`, `_` and `-`',
        "colour: unknown key; known are name, title, aliases, engines, want, limits, pin, serve, fallback, model, artifact",
        'engines[1]: "llama-sever" is none of llama-server, llama-cpp-python, vllm; did you mean `llama-server`?',
        "engines[2]: 7 is an integer, not one of llama-server, llama-cpp-python, vllm",
        "want.contxt: unknown key; did you mean `context`?",
        "want.parallel: 0 is not from 1 to 65536",
        'want.objective: "sped" is none of quality, speed, context; did you mean `speed`?',
        "limits.min_generation_tps: nan is not above 0 and up to 1e+06",
        "pin.n_ctx: -1 is not from 1 to 2147483647",
        "pin.ctx-size: unknown key; did you mean `n_ctx`?",
        'pin.flash_attn: "yes" is a string, not true or false',
        'pin.cache_type_k: "q8" is none of f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1; did you mean `q8_0`?',
        "serve.port: 70000 is not from 0 to 65535",
        'serve.host: "a b" is not a host name or an address',
        "artifact[1].quantisation: unknown key; did you mean `quantization`?",
        (
            'artifact[1].files[1].name: "../up.gguf" is not a relative path with `/` between its parts '
            "and no `.` or `..` among them"
        ),
        'artifact[1].files[2].sha256: "short" is not 64 lower-case hexadecimal digits',
        "artifact[1].files[2].size: unknown key; did you mean `size_bytes`?",
        "artifact[1].quantization: is missing",
        'limits.min_quantization: "q4_km" is unknown; did you mean `q4_k_m`?',
    )


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ("[pin]\nn_ctx = 4096\nn_ctx_per_request = 4096", "pin: n_ctx, the total, excludes n_ctx_per_request"),
        ("[want]\ncontext = 4096\n[limits]\nmin_context = 8192", "limits.min_context: 8192 is above want.context"),
        ("[limits]\nmin_context = 9000", "limits.min_context: 9000 is above want.context, which is 8192"),
        (
            "[pin]\nn_ctx_per_request = 512\n[limits]\nmin_context = 1024",
            "limits.min_context: 1024 is above pin.n_ctx_per_request, which is 512",
        ),
        ('[pin]\nquantization = "q8_1"', 'pin.quantization: "q8_1" has no artifact; did you mean `q8_0`?'),
        ('engines = ["vllm"]\n[pin]\nengine = "llama-server"', 'pin.engine: "llama-server" is not among engines'),
        ("[pin]\nn_batch = 64\nn_ubatch = 128", "pin.n_ubatch: 128 is above pin.n_batch, which is 64"),
        (
            '[pin]\nflash_attn = false\ncache_type_v = "q8_0"',
            'pin.cache_type_v: "q8_0" is a quantized V cache, which excludes flash_attn = false',
        ),
        ('[[artifact]]\nquantization = "q8_0"', 'artifact[2].quantization: "q8_0" as gguf is there already'),
        ('aliases = ["a"]', 'aliases[1]: "a" is the profile\'s name already'),
        ('aliases = ["b", "b"]', 'aliases[2]: "b" stands there twice'),
        ("engines = []", "engines: has 0 items, not from 1 to 1000"),
        ('[model]\nspec = "specs/none.json"', 'model.spec: "specs/none.json" is in none of'),
        ('[model]\nspec = "../specs/x.json"', 'model.spec: "../specs/x.json" is not a relative path'),
        ('[model]\nurls = ["ftp://x"]', 'model.urls[1]: "ftp://x" is not an http or https address'),
        ('want = "much"', 'want: "much" is a string, not a table'),
        ("[pin]\nn_gpu_layers = true", "pin.n_gpu_layers: true is a boolean, not an integer from 0"),
        ("[pin]\nn_gpu_layers = 1.0", "pin.n_gpu_layers: 1.0 is a float, not an integer from 0"),
        ("[pin]\nextra_args = ['--x']", "pin.extra_args: unknown key"),
        ('title = "a\\u001b[2Jb"', 'title: "a\\x1b[2Jb" is not one line'),
        ('title = "a\\u202eb"', 'title: "a\\u202eb" is not one line'),
    ],
)
def test_contradictions_and_slips_are_told(tmp_path: Path, lines: str, fault: str) -> None:
    """Each way to be wrong has its own line."""
    text = f'name = "a"\n{lines}\n{ARTIFACT}' if not lines.startswith("[[") else f'name = "a"\n{ARTIFACT}{lines}\n'
    told = faults(tmp_path, text)
    assert len(told) == 1
    assert told[0].startswith(fault)


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../b", "/a", "~/a", "a//b", "a/", "", ".", "..", "a/.", "./a", "c:\\a", "a\\b", "a\\u0000b", "a\\nb"],
)
def test_files_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    """No file name of a repository is absolute, climbs, or has a separator of another system."""
    escaped = name if name.startswith("a\\u") or name == "a\\nb" else name.replace("\\", "\\\\")
    told = faults(tmp_path, f'name = "a"\n{ARTIFACT}files = ["{escaped}"]')
    assert [line.split(":")[0] for line in told] == ["artifact[1].files[1].name"]


@pytest.mark.parametrize("name", ["a", "a.b/c-d_e.gguf", "..a", "a..", "...", ".hidden", "ü/é.gguf"])
def test_usual_file_names_are_accepted(tmp_path: Path, name: str) -> None:
    """Dots inside a name, folders and letters of any language are fine."""
    assert read(tmp_path, f'name = "a"\n{ARTIFACT}files = ["{name}"]').artifacts[0].files[0].name == name


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name = ", "x.toml:1 is not valid TOML: invalid value"),
        ('name = "a"\n\nname = "b"', "x.toml:3 is not valid TOML: cannot overwrite a value"),
        ("a = [\n\n", "x.toml:3 is not valid TOML: invalid value"),
        (b'name = "a"\ntitle = "\xff"', "x.toml:2 is not valid TOML: not UTF-8"),
        ("a = 2024-02-31", "x.toml:1 is not valid TOML: invalid date"),
        (f"a = {'9' * 5000}", "x.toml is not valid TOML: exceeds the limit"),
        (f"a = {'[' * 5000}", "x.toml is not valid TOML: nested too deeply"),
        (b" " * (MAX_FILE_BYTES + 1), "x.toml is larger than"),
    ],
)
def test_what_is_no_toml_is_placed(tmp_path: Path, text: str | bytes, fault: str) -> None:
    """A text that is no TOML is refused with file and line."""
    assert faults(tmp_path, text)[0].startswith(fault)


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"nam{n} = 1\n" for n in range(15_000)),
        "aliases = [" + ", ".join(f'"{n:x}"' for n in range(25_000)) + "]",
        "[[artifact]]\n" * 15_000,
        "pin.x" + ".x" * 100 + " = 1",
    ],
    ids=["keys", "items", "tables", "depth"],
)
def test_noise_is_refused_soon(tmp_path: Path, text: str) -> None:
    """A file of mere noise neither takes long nor fills the screen."""
    started = time.monotonic()
    assert 0 < len(faults(tmp_path, text)) <= 200
    assert time.monotonic() - started < 10


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    """A path that cannot be read is a fault of its own."""
    with pytest.raises(ProfileError, match="cannot be read"):
        read_profile(tmp_path, fallback_specs=SHIPPED)


def test_a_broken_spec_is_a_fault_of_the_profile(tmp_path: Path) -> None:
    """What is wrong with a spec is told with the spec's path, under the key that names it."""
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    told = faults(tmp_path, f'name = "a"\n[model]\nspec = "bad.json"\n{ARTIFACT}')
    assert told[0].startswith(f"model.spec: {tmp_path}/bad.json: ")


KEYS = st.sampled_from(
    (
        *("name", "title", "aliases", "engines", "want", "limits", "pin", "serve", "model", "artifact", "context"),
        *("n_ctx", "quantization", "format", "files", "port", "min_context", "min_quantization", "spec", "engine"),
        *("x", "sha256"),
    )
)
SCALARS = st.one_of(
    st.integers().map(str),
    st.floats().map(lambda x: repr(x).replace("e+", "e")),
    st.booleans().map(lambda x: str(x).lower()),
    st.sampled_from(
        ['"a"', '"q8_0"', '"gguf"', '"llama-server"', '"../x"', "1979-05-27", "07:32:00", '""', '"\\u0000"']
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(KEYS, inner, max_size=3).map(
            lambda table: "{ " + ", ".join(f"{key} = {value}" for key, value in table.items()) + " }"
        )
    ),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=6).map(
    lambda table: "".join(f"{key} = {value}\n" for key, value in table.items())
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.one_of(
        DOCUMENTS.map(str.encode),
        st.binary(max_size=200),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200).map(str.encode),
    )
)
@example(b'name = "a"\nartifact = [{ quantization = "q8_0" }]\n')
def test_any_document_is_a_profile_or_a_profile_error(tmp_path: Path, content: bytes) -> None:
    """Whatever a file holds, nothing but a ProfileError comes out of it."""
    told: list[str] = []
    profile = None
    try:
        profile = read(tmp_path, content)
    except ProfileError as error:
        told = [error.message, *error.details]
    assert (profile is None) == bool(told)
    assert all(line.isprintable() for line in told)
