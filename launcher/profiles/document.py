"""Turns the content of one profile file into a ``Profile``, or into the list of everything that is wrong with it.

The keys and their meaning are described for users in ``docs/profiles.md``. It must not know where profiles are found.
"""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from launcher.domain import (
    Address,
    Artifact,
    ArtifactFile,
    CacheType,
    Engine,
    Fallback,
    Limits,
    ModelSpec,
    Objective,
    Profile,
    Rung,
    Settings,
    WeightsFormat,
    Wishes,
)
from launcher.errors import ProfileError
from launcher.profiles.checks import Faults, flag, many, one_of, propose, rate, show, table, text, whole
from launcher.profiles.specs import CompactSpec, SpecError, count_parameters, expand, parse_spec
from launcher.resources import from_home

_T = TypeVar("_T")

MAX_FILE_BYTES: Final = 1 << 18
"""A profile is a page of text (the longest shipped one 4 KB); anything larger is a mistake."""

_MAX_SPEC_BYTES: Final = 1 << 22
"""A compact spec takes less than 100 KB."""

_QUANTIZATIONS: Final = (
    *("f32", "bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0"),
    *("mxfp4", "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "q2_k"),
    *("q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "fp8", "awq-int4", "gptq-int4"),
    *("int8", "int4", "gptq-int8", "nvfp4"),
)
"""What a floor may name beside the quantizations of the profile itself."""


NAME: Final = r"[a-z0-9][a-z0-9._-]{0,63}"
_name = text("a name of lower-case letters, digits, `.`, `_` and `-`", NAME)
_alias = text("an alias of letters, digits, `.`, `_`, `:` and `-`", r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_line = text("one line of at most 200 characters", r".{0,200}")
_url = text("an http or https address without a user or a password", r"(?=.{1,508}\Z)https?://[^\s/@?#]+(?:[/?#]\S*)?")
_quantization = text("a quantization's name in lower case, like `q4_k_m` or `awq-int4`", r"[a-z0-9][a-z0-9_.-]{0,31}")
_relative = text(
    "a relative path with `/` between its parts and no `.` or `..` among them",
    r"(?![~-])(?!\.{1,2}(?:/|$))[^/\\:]+(?:/(?!\.{1,2}(?:/|$))[^/\\:]+)*",
)

_file_table = table(
    {
        "name": _relative,
        "size_bytes": whole(1, 2**63 - 1),
        "sha256": text("64 lower-case hexadecimal digits", r"[0-9a-f]{64}"),
    },
    required=("name",),
    synonyms={"size": "size_bytes"},
)


def _file(value: object, path: str, faults: Faults) -> dict[str, Any] | None:
    """Check a file, written as a table or just by its name."""
    return _file_table({"name": value} if isinstance(value, str) else value, path, faults)  # type: ignore[no-any-return]  # a Check's result is Any


_LONG_OPTIONS: Final = {
    "ctx_size": "n_ctx",
    "context": "n_ctx_per_request",
    "parallel": "n_parallel",
    "batch_size": "n_batch",
    "ubatch_size": "n_ubatch",
    "gpu_layers": "n_gpu_layers",
    "cpu_moe": "n_cpu_moe",
    "threads": "n_threads",
    "quant": "quantization",
}
"""llama-server's long options, which a writer of a pin may have in mind."""

_PROFILE: Final = table(
    {
        "name": _name,
        "title": _line,
        "aliases": many(_alias),
        "engines": many(one_of(Engine), at_least=1),
        "want": table(
            {"context": whole(1), "parallel": whole(1, 65536), "objective": one_of(Objective)},
            synonyms={"n_ctx": "context", "ctx_size": "context", "n_parallel": "parallel"},
        ),
        "limits": table(
            {"min_quantization": _quantization, "min_context": whole(1), "min_generation_tps": rate(0, 1e6)},
            synonyms={"min_quant": "min_quantization", "min_tps": "min_generation_tps"},
        ),
        "pin": table(
            {
                "quantization": _quantization,
                "engine": one_of(Engine),
                "n_ctx": whole(1),
                "n_ctx_per_request": whole(1),
                "n_parallel": whole(1, 65536),
                "n_batch": whole(1),
                "n_ubatch": whole(1),
                "n_gpu_layers": whole(0),
                "n_cpu_moe": whole(0),
                "cache_type_k": one_of(CacheType),
                "cache_type_v": one_of(CacheType),
                "flash_attn": flag,
                "n_threads": whole(1, 65536),
            },
            synonyms=_LONG_OPTIONS,
        ),
        "serve": table(
            {
                "host": text("a host name or an address", r"[A-Za-z0-9.:_][A-Za-z0-9.:_-]{0,252}"),
                "port": whole(0, 65535),
            }
        ),
        "fallback": table({"ladder": many(one_of(Rung)), "step_up": flag}),
        "model": table({"spec": _relative, "license": _line, "urls": many(_url)}),
        "artifact": many(
            table(
                {
                    "format": one_of(WeightsFormat),
                    "quantization": _quantization,
                    "repository": text("OWNER/NAME", r"(?![.-])[\w.-]+/(?![.-])[\w.-]+"),
                    "files": many(_file),
                    "url": text("an https:// address that ends in .gguf", r"https://[^\s?#@\\]+\.gguf"),
                    "local_path": text("a path of printable characters", r".+"),
                    "package": text(
                        "the name of a Python package of weights, which ends in `_gguf`", r"[A-Za-z_]\w*_gguf"
                    ),
                },
                required=("quantization",),
                synonyms={"quant": "quantization", "repo": "repository", "path": "local_path"},
            ),
            at_least=1,
        ),
    },
    required=("name", "artifact"),
)


def read_profile(path: Path, *, fallback_specs: Path) -> Profile:
    """Return the profile in a file.

    A compact spec is looked for beside the profile and then in ``fallback_specs``; relative local paths start at the
    profile's folder.

    Raises:
        ProfileError: the file cannot be read, is no TOML, or is wrong; ``details`` has every fault.
    """
    document = read_toml(path)
    faults = Faults()
    checked = _PROFILE(document, "", faults) or {}
    for path_of_fault, fact in _contradictions(checked):
        faults.note(path_of_fault, fact)
    specs: dict[tuple[WeightsFormat, str], ModelSpec] = {}
    try:
        specs = _specs(checked, (path.parent, fallback_specs))
    except (SpecError, OSError) as error:
        faults.note("model.spec", str(error))
    if faults:
        n = len(faults)
        message = f"{path} is not a valid profile: {n} {'fault' if n == 1 else 'faults'}"
        raise ProfileError(message, details=tuple(faults), help="see docs/profiles.md for every key")
    model = checked.get("model", {})
    plain = {key: checked[key] for key in ("name", "title", "aliases", "engines") if key in checked}
    return Profile(
        **plain,
        license=model.get("license", ""),
        urls=model.get("urls", ()),
        artifacts=tuple(_artifact(raw, specs, path.parent) for raw in checked["artifact"]),
        wishes=_wishes(checked.get("want", {})),
        limits=_limits(checked.get("limits", {})),
        pins=Settings(**checked.get("pin", {})),
        address=_address(checked.get("serve", {})),
        fallback=Fallback(**checked.get("fallback", {})),
        source=str(path),
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        ProfileError: the file cannot be read, is too large, or is no TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise ProfileError(message) from None
    if len(content) > MAX_FILE_BYTES:
        message = f"{path} is larger than {MAX_FILE_BYTES} bytes, so it is no profile"
        raise ProfileError(message)
    return parse_toml(content, str(path))


def parse_toml(content: bytes, source: str) -> dict[str, Any]:
    """Return the tables of a TOML text; ``source`` names it in faults.

    Raises:
        ProfileError: it is no TOML; the message has the line.
    """
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"{source}:{line} is not valid TOML: not UTF-8"
    except ValueError as error:  # TOMLDecodeError is one; impossible dates and giant integers raise others
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = int(place[1]) if place and place[1] else content.count(b"\n") + 1
        said = str(error)[: place.start()] if place else str(error)
        where = f"{source}:{line}" if place else source
        message = f"{where} is not valid TOML: {said[:1].lower()}{said[1:200]}"
    except RecursionError:
        message = f"{source} is not valid TOML: nested too deeply"
    raise ProfileError(message, help="see docs/profiles.md for an example")


# --- From checked values to nouns ----------------------------------------------------------------------------------


def _renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names[key]: value for key, value in values.items()}


def _wishes(want: dict[str, Any]) -> Wishes:
    names = {"context": "n_ctx_per_request", "parallel": "n_parallel", "objective": "objective"}
    return Wishes(**_renamed(want, names))


def _limits(limits: dict[str, Any]) -> Limits:
    names = {
        "min_quantization": "min_quantization",
        "min_context": "min_n_ctx_per_request",
        "min_generation_tps": "min_generation_tps",
    }
    return Limits(**_renamed(limits, names))


def _address(serve: dict[str, Any]) -> Address:
    default = Address()
    port = serve.get("port", default.port)
    return Address(host=serve.get("host", default.host), port=port or None)


def _format(raw: dict[str, Any]) -> WeightsFormat:
    return raw.get("format", WeightsFormat.GGUF)  # type: ignore[no-any-return]  # checked values are Any


def _artifact(raw: dict[str, Any], specs: dict[tuple[WeightsFormat, str], ModelSpec], folder: Path) -> Artifact:
    local_path = raw.get("local_path")
    return Artifact(
        format=_format(raw),
        quantization=raw["quantization"],
        repository=raw.get("repository"),
        files=tuple(ArtifactFile(**file) for file in raw.get("files", ())),
        local_path=None if local_path is None else str((folder / from_home(local_path)).absolute()),
        package=raw.get("package"),
        url=raw.get("url"),
        spec=specs.get((_format(raw), raw["quantization"])),
    )


def count_profile_parameters(path: Path) -> int:
    """Return the parameters of the model that a profile's file is of, by its first known artifact; 0 if none is known.

    No weights are expanded, and only what the figure depends on is looked at: a wrong file may have one.

    Raises:
        ProfileError: the file cannot be read or is no TOML.
    """
    document = read_toml(path)
    checked = _PROFILE(document, "", Faults()) or {}
    name = checked.get("model", {}).get("spec")
    try:
        return _with_spec(name, (path.parent,), lambda spec: _first_count(spec, _wanted(checked))) or 0
    except (SpecError, OSError):
        return 0


def _first_count(spec: CompactSpec, wanted: list[tuple[WeightsFormat, str]]) -> int:
    return next((n for key in wanted if (n := count_parameters(spec, key)) is not None), 0)


def _wanted(checked: dict[str, Any]) -> list[tuple[WeightsFormat, str]]:
    return [(_format(raw), raw["quantization"]) for raw in checked.get("artifact", ()) if "quantization" in raw]


def _specs(checked: dict[str, Any], folders: tuple[Path, ...]) -> dict[tuple[WeightsFormat, str], ModelSpec]:
    name = checked.get("model", {}).get("spec")
    return _with_spec(name, folders, lambda spec: expand(spec, _wanted(checked))) or {}


def _with_spec(name: str | None, folders: tuple[Path, ...], use: Callable[[CompactSpec], _T]) -> _T | None:
    """Return what ``use`` makes of the compact spec of that name, faults told with its path; ``None`` without a name."""
    if name is None:
        return None
    for folder in folders:
        path = folder / name
        if path.is_file():
            try:
                with path.open("rb") as file:
                    content = file.read(_MAX_SPEC_BYTES + 1)
                if len(content) > _MAX_SPEC_BYTES:
                    msg = f"larger than {_MAX_SPEC_BYTES} bytes"
                    raise SpecError(msg)  # noqa: TRY301  the path is added once, below
                return use(parse_spec(content))
            except SpecError as error:
                msg = f"{path}: {error}"
                raise SpecError(msg) from None
    msg = f"{show(name)} is in none of {', '.join(str(folder) for folder in folders)}"
    raise SpecError(msg)


# --- Values that are right alone and wrong together ----------------------------------------------------------------


def _contradictions(checked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key path and fact of each contradiction between values that passed their own checks."""
    want, limits, pin = (checked.get(key, {}) for key in ("want", "limits", "pin"))
    yield from _clashing_names(checked)
    yield from _clashing_artifacts(checked)
    yield from _clashing_pins(pin)
    wished = want.get("context", Wishes().n_ctx_per_request)
    floor = limits.get("min_context", 0)
    if floor > wished:
        yield "limits.min_context", f"{floor} is above want.context, which is {wished}"
    if floor > pin.get("n_ctx_per_request", floor):
        yield "limits.min_context", f"{floor} is above pin.n_ctx_per_request, which is {pin['n_ctx_per_request']}"
    engines = checked.get("engines")
    if engines and pin.get("engine", engines[0]) not in engines:
        yield "pin.engine", f"{show(str(pin['engine']))} is not among engines, which are {', '.join(engines)}"


def _clashing_names(checked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for n, alias in enumerate(checked.get("aliases", ()), start=1):
        if alias == checked.get("name"):
            yield f"aliases[{n}]", f"{show(alias)} is the profile's name already"


def _clashing_artifacts(checked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "artifact" not in checked:
        return
    offered = []
    for n, raw in enumerate(checked["artifact"], start=1):
        key = (_format(raw), raw.get("quantization"))
        if key[1] is not None and key in offered:
            yield f"artifact[{n}].quantization", f"{show(key[1])} as {key[0]} is there already"
        offered.append(key)
    quantizations = [quantization for _, quantization in offered if quantization is not None]
    pinned = checked.get("pin", {}).get("quantization")
    if pinned is not None and pinned not in quantizations:
        yield "pin.quantization", f"{show(pinned)} has no artifact; {propose(pinned, quantizations)}"
    floor = checked.get("limits", {}).get("min_quantization")
    if floor is not None and floor not in (known := list(dict.fromkeys([*quantizations, *_QUANTIZATIONS]))):
        yield "limits.min_quantization", f"{show(floor)} is unknown; {propose(floor, known)}"


def _clashing_pins(pin: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "n_ctx" in pin and "n_ctx_per_request" in pin:
        yield "pin", "n_ctx, the total, excludes n_ctx_per_request"
    if pin.get("n_ubatch", 0) > pin.get("n_batch", pin.get("n_ubatch", 0)):
        yield "pin.n_ubatch", f"{pin['n_ubatch']} is above pin.n_batch, which is {pin['n_batch']}"
    value_type = pin.get("cache_type_v", CacheType.F16)
    if pin.get("flash_attn") is False and value_type not in (CacheType.F32, CacheType.F16, CacheType.BF16):
        yield "pin.cache_type_v", f"{show(str(value_type))} is a quantized V cache, which excludes flash_attn = false"
