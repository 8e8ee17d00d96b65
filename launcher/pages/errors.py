"""Pages of the named faults: one for each code in ``launcher.errors``. Data."""

from functools import partial
from typing import Final

from launcher.pages.page import Kind, Page, page_of

_error = partial(page_of, Kind.ERROR)

PAGES: Final[tuple[Page, ...]] = (
    _error(
        "failed",
        "The system refused something that has no name of its own here.",
        "A file could not be written, or the output went to a place that takes no more. The message names the file and the "
        "system's own words.",
        "Check space and permissions of what the message names.",
        "`launch doctor` looks at the folders that the launcher itself needs.",
    ),
    _error(
        "usage",
        "The command line asks for something that has no meaning.",
        "An option has a value that it does not take, or two options contradict each other. Exit code 2: a supervisor does "
        "not try it again.",
        "The line `help:` names what is allowed.",
        "`launch serve --help` lists all options of a command.",
    ),
    _error(
        "bad-profile",
        "A profile file is wrong.",
        "It is no TOML, has an unknown key, or a value that cannot be. All faults of the file are listed at once, each with "
        "its key.",
        "Correct the file; docs/profiles.md has every key.",
        "`launch list` shows which profiles can be read.",
    ),
    _error(
        "unknown-model",
        "No profile, alias or file answers to the name.",
        "The name is misspelt, the profile is not in the folder of profiles, or a path does not exist.",
        "`launch list` shows the names that are known.",
        "Give a GGUF file by its path, or a model of a hub as hf:OWNER/NAME.",
    ),
    _error(
        "bad-inventory",
        "An inventory cannot be used.",
        "No reference machine has the name, or the file is no inventory: an unknown key, a figure out of range.",
        "`launch hardware --json` prints a valid one of this machine.",
        "The message names the key and what is allowed there.",
    ),
    _error(
        "bad-weights-file",
        "The header of a weights file cannot be read.",
        "The file is cut off, is another format, or was made to confuse readers. The message names the field and the byte "
        "at which reading ended. No weight was read.",
        "Compare the size with the published one, and fetch the file again.",
        "`launch inspect FILE` reads the header alone.",
    ),
    _error(
        "weights-missing",
        "The chosen weights are not on this machine.",
        "The profile names no file that is here, its package is not installed, or a file was moved.",
        "`launch pull NAME` downloads them; `launch plan NAME` says which of the published forms fits.",
        "Serve a file that you have by its path: `launch serve FILE.gguf`.",
    ),
    _error(
        "model-store",
        "What another program's store holds cannot be used.",
        "A file in the store of Ollama, of LM Studio or of the hub's client is broken, unfinished, unreadable, leads outside "
        "of it, or is in a form that only that program's own engine runs.",
        "Let the program that owns the store fetch it again; nothing there is changed by the launcher.",
        "`launch list --local` shows what is found in stores.",
    ),
    _error(
        "download-failed",
        "Weights could not be brought to this machine, or not to where they belong.",
        "The server ended or refused the transfer more often than it is tried again, or the folder cannot be written. What has "
        "come is kept.",
        "`launch pull NAME` goes on where it ended.",
    ),
    _error(
        "disk-full",
        "A disk that has to be written is full.",
        "As an error: there is no room for what is to be downloaded; what has come is kept. As a finding: without room for its "
        "records nothing is served.",
        "Free some space, or name another disk: LAUNCHER_STATE_DIR for state, HF_HUB_CACHE for weights, LAUNCHER_CACHE_DIR for "
        "those from addresses.",
        also=Kind.FINDING,
    ),
    _error(
        "wrong-digest",
        "What was downloaded is not what was promised.",
        "Its sha256 or its size is another: damaged on the way, or replaced at its source. It was removed or set aside, and is "
        "never served.",
        "`launch pull NAME` fetches it again; if it comes back, its source is wrong.",
    ),
    _error(
        "remote-failed",
        "A server on the network could not be asked, or its answer cannot be used.",
        "No connection, an address that is not to be asked (plain http beyond this machine), a timeout, an answer of "
        "another form, or more to read than is allowed for one command.",
        "Try again; the message names the server and what it said.",
        "Behind a proxy set HTTPS_PROXY; for a mirror of the hub set HF_ENDPOINT.",
    ),
    _error(
        "remote-access",
        "A server does not let you read what was asked for.",
        "The repository is private or gated, and no token was sent, or one without access.",
        "Accept the model's terms on its page, then log in with `hf auth login` or set HF_TOKEN.",
    ),
    _error(
        "remote-missing",
        "A server does not have what was asked for.",
        "The repository, the revision or the file is named wrongly, or was removed.",
        "Compare the name with its page on the hub; upper and lower case count.",
    ),
    _error(
        "cluster-failed",
        "A Ray cluster cannot be used.",
        "Its dashboard cannot be reached, answers what this program does not know, or reports that it could not do what it "
        "was told.",
        "Open the dashboard's address in a browser; it is not the address of the head's other ports.",
        "`launch hardware --cluster URL` shows what is read of it.",
    ),
    _error(
        "cluster-access",
        "A Ray dashboard wants a token, or another one.",
        "The cluster was started with authentication, or the dashboard is not on this machine, where a token is required.",
        "Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that has it.",
    ),
    _error(
        "not-our-application",
        "An application on a Ray cluster is somebody else's.",
        "It has the name or the route that ours would have, and does not bear our mark. It is neither replaced nor removed.",
        "Serve under another name, or ask its owner to remove it.",
    ),
    _error(
        "engine-missing",
        "No installed engine can be started.",
        "Its program is not there or cannot be executed: uninstalled since, or on a file system without execution.",
        "`launch hardware` lists the engines that are found; the README says how to get one.",
    ),
    _error(
        "engine-too-old",
        "The installed build lacks an option that the plan depends on.",
        "Everything that memory depends on is passed to the engine explicitly. What a build cannot be told would be left to "
        "its default, and the plan would be no plan. As a refusal (exit code 3) it is said before anything is started.",
        "Update the engine; the message names the options that it lacks.",
        "`launch hardware` shows whether another one is installed.",
        also=Kind.REFUSAL,
    ),
    _error(
        "engine-failed",
        "The engine was started, and ended, stalled or answered wrongly.",
        "The message has the cause in words, and the telling lines of its log below. Ends that may not happen again were "
        "tried again first, within bounds.",
        "`launch logs NAME` prints the whole log; `launch explain FILE` reads such a log and says what is known of it.",
        "`launch doctor NAME` looks for what is wrong around it.",
    ),
    _error(
        "worker-unusable",
        "A worker of llama.cpp's RPC cannot be used.",
        "It cannot be reached, speaks another version of the protocol, is in use, or tells no memory.",
        "Start `launch worker` there with the same build of llama.cpp as here.",
        "`launch hardware --rpc HOST:PORT` shows what it tells.",
    ),
    _error(
        "placement-mismatch",
        "The engine put the model elsewhere than planned.",
        "Fewer layers are on the GPU than were planned: a fallback to the processor that would have been silent, and some "
        "ten times slower. Mostly the build has no back end for the GPU, or could not load it.",
        "`launch doctor` names engines that do not reach the GPU, and why.",
        "`launch serve NAME --n-gpu-layers 0` serves from the processor on purpose.",
    ),
    _error(
        "port-in-use",
        "Another process listens on the serving address.",
        "Another server, another instance, or the address is not this machine's. The message names the process where it may "
        "be looked into.",
        "Choose another with `launch serve NAME --port N`; 0 takes a free one.",
        "`launch ps` shows what is served here.",
    ),
    _error(
        "already-served",
        "A supervisor of this name is alive, or this machine is being measured.",
        "Each name is served once; its lock is held by the process that the message names. Of `launch calibrate` and `launch bench` "
        "one measures at a time.",
        "`launch status NAME` shows what is served, `launch stop NAME` ends it; a measurement ends by itself.",
    ),
    _error(
        "not-served",
        "No instance of this name is served.",
        "It was never served by this user, was served with another state directory, or has ended.",
        "`launch ps --all` shows all that were.",
        "`launch serve NAME` serves it.",
    ),
    _error(
        "endpoint-failed",
        "The endpoint of a served instance does not answer, or answers what cannot be used.",
        "Its engine is away for longer than is waited, the instance is stopping, or the request itself is what the engine "
        "refuses; the message has the server's own words.",
        "`launch status NAME` says how it is, `launch logs NAME` what its engine wrote.",
    ),
    _error(
        "endpoint-access",
        "The endpoint of a served instance wants an API key, or another one.",
        "It was served with `--api-key-file` or with LAUNCHER_API_KEY; whoever asks it has to send one of those keys.",
        "Give the same file with `--api-key-file`, or set LAUNCHER_API_KEY.",
    ),
    _error(
        "answer-incomplete",
        "An answer ended before it was whole.",
        "Its engine was lost while it answered, the instance ended, or the answer reached a limit of tokens: `--max-tokens`, or "
        "the end of the context. What came of it was printed.",
        "Ask again; after a loss the engine is started again by itself.",
        "`launch status NAME` says why an engine was lost.",
    ),
    _error(
        "context-exceeded",
        "A conversation is longer than the context that is served.",
        "All that was said is sent with each question. Nothing is left out of it in silence.",
        "In `launch chat`, `/forget` drops the oldest question with its answer, `/clear` all of them.",
        "`launch serve NAME --context N` serves a larger one.",
    ),
    _error(
        "bad-api-key",
        "An API key cannot be used.",
        "It is too short, its file cannot be read, or can be read by others.",
        "Make a key with `openssl rand -hex 32`, in a file of mode 0600.",
    ),
    _error(
        "no-home",
        "There is no home folder.",
        "HOME is not set and the system does not know the user's number, as in some containers, or HOME is no absolute path. "
        "What is not told to be elsewhere would be looked for or kept in it: profiles, state, caches, weights.",
        "Set HOME to a folder of your own.",
        "Or name each of them by itself: LAUNCHER_PROFILES, LAUNCHER_STATE_DIR, LAUNCHER_CACHE_DIR, HF_HOME.",
    ),
    _error(
        "state-unusable",
        "The state directory cannot be used.",
        "It belongs to somebody else, is a link, cannot be written, or its disk is full.",
        "Set LAUNCHER_STATE_DIR to a folder of your own.",
        "`launch doctor` shows owner, mode and free space of it.",
    ),
    _error(
        "state-newer",
        "A file of the state directory was written by a newer version.",
        "The launcher was replaced by an older one. What is not understood is left as it is, so that the newer version "
        "finds it again.",
        "Install the newer version again, or set LAUNCHER_STATE_DIR to another folder for this one.",
    ),
    _error(
        "unit-refused",
        "A unit of systemd is not written or removed.",
        "A file of that name was written or changed by a person, the service runs or is enabled, the folder cannot be "
        "written, or the service's own user could not read what it needs.",
        "The message names the file, or the command that helps; `--overwrite` replaces what a person changed.",
        "`launch systemd render NAME` prints what would be written.",
    ),
)
