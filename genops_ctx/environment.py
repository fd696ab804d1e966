"""What the environment says: a variable, or for a secret the file that a variable names.

A secret in an environment variable is seen by whoever may look at the process, and by its children. So
``NAME_FILE`` may name a file that holds the value of ``NAME`` and nothing else, which is how Docker and
Kubernetes hand secrets over. Files are read when settings are: another secret needs a new process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from .core.errors import ConfigurationError

__all__ = ["SECRETS", "read_secret", "redis_url", "secret_variable", "variable"]

SECRETS = (
    "FLOWISE_API_KEY",
    "GENOPS_ALERT_WEBHOOK",
    "GENOPS_LEDGER",
    "GENOPS_RECEIVER_KEY",
    "GENOPS_SIGNING_KEY",
    "GENOPS_STORE",
    "REDIS_PASSWORD",
)
"""Those that may be in a file: secrets, and addresses that may hold a password."""

LONGEST = 64 * 1024
_HOST = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")


def variable(name: str, environ: Mapping[str, str] | None = None) -> str:
    """The value of a variable, without space around it; "" for none. Secrets may be in a file."""
    env = os.environ if environ is None else environ
    return secret_variable(name, env) if name in SECRETS else env.get(name, "").strip()


def secret_variable(name: str, environ: Mapping[str, str] | None = None) -> str:
    """The value of a variable, or what is in the file that ``NAME_FILE`` names; "" for neither.

    Raises :class:`ConfigurationError` where both are set, and for a file that holds no secret.
    """
    env = os.environ if environ is None else environ
    said = env.get(name, "").strip()
    file = env.get(f"{name}_FILE", "").strip()
    if not file:
        return said
    if said:
        raise ConfigurationError(f"{name} and {name}_FILE are both set; unset one of them")
    return read_secret(file, f"{name}_FILE")


def read_secret(path: str, where: str) -> str:
    """The one line of a file, without the space around it. ``where`` says who named the file.

    Raises :class:`ConfigurationError`, which names the file and shows nothing of what is in it.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(LONGEST + 1)
        text = content.decode("utf-8-sig").strip()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"{where} names {path!r}, which cannot be read ({reason})") from None
    except ValueError:  # not UTF-8, or a path with a zero byte
        raise ConfigurationError(f"{where} names {path!r}, which is no file of text in UTF-8") from None
    if not text:
        raise ConfigurationError(f"{where} names {path!r}, which is empty")
    if len(content) > LONGEST or not text.isprintable():
        raise ConfigurationError(f"{where} names {path!r}, which is not one line of text")
    return text


def redis_url(environ: Mapping[str, str] | None = None) -> str:
    """The store that ``REDIS_HOST``, ``_PORT``, ``_DB`` and ``_PASSWORD`` name; "" without a host.

    Raises :class:`ConfigurationError` for what is no host, port or number of a database.
    """
    env = os.environ if environ is None else environ
    host = variable("REDIS_HOST", env)
    if not host:
        return ""
    if not _HOST.fullmatch(host):
        raise ConfigurationError(
            "REDIS_HOST must be a host's name or address; GENOPS_STORE takes a whole URL"
        )
    port = variable("REDIS_PORT", env) or "6379"
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        # Kubernetes sets it to tcp://10.… in every pod beside a Service of the name "redis".
        raise ConfigurationError(
            "REDIS_PORT must be a number; where Kubernetes has set it, set enableServiceLinks: false, "
            "or GENOPS_STORE"
        )
    database = variable("REDIS_DB", env) or "0"
    if not (database.isascii() and database.isdigit()):
        raise ConfigurationError("REDIS_DB must be the number of a database")
    password = variable("REDIS_PASSWORD", env)
    credentials = f":{quote(password, safe='')}@" if password else ""
    shown = f"[{host}]" if ":" in host else host
    return f"redis://{credentials}{shown}:{int(port)}/{int(database)}"
