"""The hub's list of files, its settings, and its ways to say no."""

import json
from pathlib import Path

import pytest

from launcher.errors import LauncherError, RemoteAccessError, RemoteError, RemoteMissingError, UsageError
from launcher.fetch.hub import DEFAULT_ENDPOINT, MAX_PAGES, Settings, list_files, read_settings
from launcher.fetch.places import hub_cache_dir, hub_home_dir
from launcher.fetch.web import Token, Web, origin
from tests.fakes.hub import Handler, Hub, always


def _settings(hub: Hub, token: str | None = None) -> Settings:
    return Settings(endpoint=hub.url, token=Token(secret=token, origin=origin(hub.url)) if token else None)


def test_all_pages_are_read(hub: Hub, web: Web) -> None:
    """The list goes on as long as the Link header says; folders are no files; sizes and digests come along."""
    hub.files = {"o/r": {f"{idx:02}.gguf": b"x" * idx for idx in range(25)}}
    hub.page_size = 10
    files = list_files(web, _settings(hub), "o/r")
    assert [(file.path, file.size_bytes) for file in files] == [(f"{idx:02}.gguf", idx) for idx in range(25)]
    assert all(len(file.sha256 or "") == 64 for file in files)
    assert len(hub.log) == 3


def test_a_list_without_end_ends(hub: Hub, web: Web) -> None:
    """Neither new pages for ever nor the same page again keep us."""
    hub.files = {"o/r": {f"{idx}.gguf": b"" for idx in range(MAX_PAGES + 5)}}
    hub.page_size = 1
    with pytest.raises(RemoteError, match="does not end"):
        list_files(web, _settings(hub), "o/r")
    assert len(hub.log) == MAX_PAGES
    hub.log.clear()

    def same(handler: Handler) -> bool:
        handler.send(200, b"[]", {"Link": f'<{handler.path}>; rel="next"'})
        return True

    hub.fault = same
    with pytest.raises(RemoteError, match="does not end"):
        list_files(web, _settings(hub), "o/r")
    assert len(hub.log) == 1


@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://[", "http://127.0.0.1:port/", "//"])
def test_a_next_page_out_of_the_web_is_refused(hub: Hub, web: Web, address: str) -> None:
    """The list cannot lead to a file of this machine, nor to a traceback."""
    hub.fault = always(lambda handler: handler.send(200, b"[]", {"Link": f'<{address}>; rel="next"'}))
    with pytest.raises(RemoteError):
        list_files(web, _settings(hub), "o/r")


def test_a_page_without_end_ends(hub: Hub, web: Web) -> None:
    """A page of gigabytes is refused by its announcement."""
    hub.fault = always(lambda handler: handler.send(200, b"[", {"Content-Length": str(1 << 34)}))
    with pytest.raises(RemoteError, match="at most 16"):
        list_files(web, _settings(hub), "o/r")


@pytest.mark.parametrize(
    "listed",
    [
        {"path": "../../etc/passwd"},
        {"path": "/etc/passwd"},
        {"path": "a//b.gguf"},
        {"path": "a/./b.gguf"},
        {"path": "a\\..\\b.gguf"},
        {"path": "\x1b[31m.gguf"},
        {"path": ""},
        {"lfs": {"size": -1}},
        {"lfs": {"size": 2**63}},
    ],
)
def test_a_hostile_list_is_refused(hub: Hub, web: Web, listed: dict[str, object]) -> None:
    """Names that lead out of a repository, or into a terminal, and sizes that no file has are not even shown raw."""
    hub.files, hub.listed = {"o/r": {"a.gguf": b""}}, listed
    with pytest.raises(RemoteError, match="lists") as caught:
        list_files(web, _settings(hub), "o/r")
    assert "do not use it" in str(caught.value.help)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "name", ["at 3.14.15\u202fPM.png", "\u202egpj.gguf", "\U0001f468\u200d\U0001f469.png", "a\xa0b.md"]
)
def test_a_name_that_cannot_be_shown_hides_no_model(hub: Hub, web: Web, name: str) -> None:
    """A screenshot of macOS, or a name written from right to left, is left out; what else is there is listed."""
    hub.files = {"o/r": {name: b"", "a b 100% \xfc.gguf": b""}}
    assert [file.path for file in list_files(web, _settings(hub), "o/r")] == ["a b 100% \xfc.gguf"]


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"", b"{}", b'[{"path": 1}]', b"[" * 10**6, b"\xff\xfe"])
def test_what_is_no_list_is_refused(hub: Hub, web: Web, body: bytes) -> None:
    """A portal's sign-in page, say, is a named fault that points at the endpoint."""
    hub.fault = always(lambda handler: handler.send(200, body))
    with pytest.raises(RemoteError, match="is not what a hub answers") as caught:
        list_files(web, _settings(hub), "o/r")
    assert "HF_ENDPOINT" in str(caught.value.help)


def test_a_mirror_with_only_the_other_list_will_do(hub: Hub, web: Web) -> None:
    """Where the tree is not served, the model's own page lists the files."""

    def siblings(handler: Handler) -> bool:
        if "/tree/" in handler.path:
            handler.send(404)
        else:
            model = {
                "id": "o/r",
                "siblings": [{"rfilename": "a.gguf", "size": 7, "lfs": {"sha256": "ab" * 32, "size": 7}}],
            }
            handler.send(200, json.dumps(model).encode())
        return True

    hub.fault = siblings
    (file,) = list_files(web, _settings(hub), "o/r")
    assert (file.path, file.size_bytes, file.sha256) == ("a.gguf", 7, "ab" * 32)


def test_no_repository_is_told(hub: Hub, web: Web) -> None:
    """404 names the repository and asks for its name to be checked."""
    with pytest.raises(RemoteMissingError, match="has no repository `o/r`") as caught:
        list_files(web, _settings(hub), "o/r")
    assert "check the name" in str(caught.value.help)


def test_a_refusal_to_a_stranger_is_told(hub: Hub, web: Web) -> None:
    """The hub answers 401 alike for what is private and for what does not exist; without a token one is proposed."""
    hub.token = "hf_right"  # noqa: S105  a secret for the test
    with pytest.raises(RemoteAccessError, match="no token was sent") as caught:
        list_files(web, _settings(hub), "o/r")
    assert "set HF_TOKEN" in str(caught.value.help)


def test_a_refusal_to_a_token_is_told_without_it(hub: Hub) -> None:
    """A token that does not open a gated repository is sent, and never shown."""
    hub.token, hub.gated = "hf_right", True
    settings = _settings(hub, "hf_wrong")
    with pytest.raises(RemoteAccessError, match="is gated") as caught:
        list_files(Web(token=settings.token), settings, "o/r")
    assert f"accept them at {hub.url}/o/r" in str(caught.value.help)
    assert hub.log[0].headers["authorization"] == "Bearer hf_wrong"
    assert "hf_wrong" not in repr((caught.value.message, caught.value.help, caught.value.details, settings))


def test_a_token_opens(hub: Hub) -> None:
    """With the right token the list comes."""
    hub.token, hub.files = "hf_right", {"o/r": {"a.gguf": b""}}
    settings = _settings(hub, "hf_right")
    assert len(list_files(Web(token=settings.token), settings, "o/r")) == 1


def test_settings_are_huggingface_hubs_own(tmp_path: Path) -> None:
    """Endpoint, token by value or file, offline and timeout, by that library's variables and precedence."""
    (tmp_path / "token").write_text("hf_file\n")
    (tmp_path / "hub" / "token").parent.mkdir()
    (tmp_path / "hub" / "token").write_text("hf_home")
    none = {"HF_HOME": str(tmp_path / "nowhere")}

    def secret(environ: dict[str, str]) -> str | None:
        token = read_settings({**none, **environ}).token
        return token.secret if token else None

    assert read_settings(none) == Settings(endpoint=DEFAULT_ENDPOINT)
    assert read_settings({**none, "HF_ENDPOINT": "https://mirror.example/hf/"}).endpoint == "https://mirror.example/hf"
    assert secret({"HF_TOKEN": " hf_value ", "HF_TOKEN_PATH": str(tmp_path / "token")}) == "hf_value"
    assert secret({"HF_TOKEN_PATH": str(tmp_path / "token")}) == "hf_file"
    assert secret({"HF_HOME": str(tmp_path / "hub")}) == "hf_home"
    assert secret({"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}) is None
    assert secret({}) is None
    (tmp_path / "hub-token").write_text("hf_passed_on\n")
    service = {"CREDENTIALS_DIRECTORY": str(tmp_path)}  # of systemd
    assert secret(service) == secret({**service, "HF_TOKEN_PATH": str(tmp_path / "token")}) == "hf_passed_on"
    assert secret({**service, "HF_TOKEN": "hf_value"}) == "hf_value"
    assert read_settings({**none, "HF_HUB_OFFLINE": "1"}).offline
    assert not read_settings({**none, "HF_HUB_OFFLINE": "0"}).offline
    assert read_settings({**none, "HF_HUB_DOWNLOAD_TIMEOUT": "2.5"}).timeout_s == 2.5


def test_a_token_file_is_read_within_bounds() -> None:
    """A file without end is no token: that is said after some kilobytes of it."""
    with pytest.raises(UsageError, match=r"/dev/zero is longer than any token"):
        read_settings({"HF_TOKEN_PATH": "/dev/zero"})


def test_the_token_is_where_the_hubs_client_looks(tmp_path: Path) -> None:
    """In the folder that its variables name, with ``~`` and variables in them; without any, in the user's cache."""
    (tmp_path / "token").write_text("hf_here")
    home = {"HOME": str(tmp_path.parent), "LAUNCHER_TEST_FOLDER": tmp_path.name}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.items():
            patch.setenv(name, value)
        for environ in (
            {"HF_HOME": "~/$LAUNCHER_TEST_FOLDER"},
            {"HF_TOKEN_PATH": "$HOME/${LAUNCHER_TEST_FOLDER}/token", "HF_HOME": "/nowhere"},
        ):
            token = read_settings(environ).token
            assert token is not None
            assert token.secret == "hf_here"  # noqa: S105  a secret for the test
        folder = tmp_path.parent / ".cache" / "huggingface"
        assert hub_home_dir({}) == folder
        assert hub_cache_dir({}) == folder / "hub"


def test_a_token_is_not_sent_in_the_clear() -> None:
    """A mirror without https beyond this machine is asked, but without the secret."""
    assert read_settings({"HF_ENDPOINT": "http://mirror.lan:8080", "HF_TOKEN": "hf_x"}).token is None
    assert read_settings({"HF_ENDPOINT": "http://127.0.0.1:8080", "HF_TOKEN": "hf_x"}).token is not None
    assert read_settings({"HF_ENDPOINT": "http://127.0.0.1.evil.example", "HF_TOKEN": "hf_x"}).token is None


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_ENDPOINT": "mirror.example"},
        {"HF_ENDPOINT": "http://"},
        {"HF_ENDPOINT": "https://user:hunter2@mirror.example"},
        {"HF_ENDPOINT": "http://user:hunter2@mirror.example"},
        {"HF_ENDPOINT": "https://["},
        {"HF_ENDPOINT": "http://["},
        {"HF_ENDPOINT": "https://mirror.example:port"},
        {"HF_TOKEN": "hunter2\r\nX-Evil: 1"},
        {"HF_TOKEN": "hunter2 hunter2"},
        {"HF_TOKEN": "hunter2\u00e9"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "-1"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "nan"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "inf"},
    ],
)
def test_senseless_settings_are_a_usage_fault(environ: dict[str, str]) -> None:
    """Each is told before anything is sent, and no secret is shown."""
    with pytest.raises(UsageError) as caught:
        read_settings(environ)
    assert isinstance(caught.value, LauncherError)
    assert "hunter2" not in caught.value.message
    assert caught.value.help
