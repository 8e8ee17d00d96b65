"""Where a service manager has put the secrets that it was told to pass on.

It must not read one, nor know what it opens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

DIRECTORY_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
"""Names the folder of systemd's ``LoadCredential=``: it belongs to root, and the service's user alone can read in it."""
API_KEY: Final = "api-key"
HUB_TOKEN: Final = "hub-token"  # noqa: S105 - the name of a file


def credential_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the file of a credential, or ``None`` where none of that name was passed on."""
    folder = environ.get(DIRECTORY_VARIABLE, "")
    path = Path(folder) / name
    return path if folder.startswith("/") and path.is_file() else None
