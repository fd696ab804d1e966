"""Trace receivers and the model proxy within the service: the table ``[service.receivers]``.

Below ``/receive`` there is what Flowise's exporters and models address: ``/receive/api/public/ingestion``,
``/receive/v1/traces``, and ``/receive/models/<upstream>/…``. All workers receive for all: see
:mod:`genops_ctx.evidence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from ..core.errors import ConfigurationError
from ..environment import variable
from ..settings import check_keys
from .secret_source import SecretSource, secret_in

if TYPE_CHECKING:
    from ..receivers.upstreams import Upstream
    from ..runtime import Runtime

__all__ = ["EXPORTS", "MOUNTED_AT", "ReceiverSettings", "receivers_of"]

MOUNTED_AT: Final = "/receive"
EXPORTS: Final = (f"{MOUNTED_AT}/api/public/", f"{MOUNTED_AT}/v1/")
"""Below these, what exporters send."""


@dataclass(frozen=True, slots=True)
class ReceiverSettings:
    """What the table says."""

    key: SecretSource | None = None
    """where the key is that exporters and models send; else ``GENOPS_RECEIVER_KEY``, or its file"""
    upstreams: tuple[Upstream, ...] = ()
    """where the model proxy may send to; there is none without"""

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """Raises :class:`ConfigurationError` for an unknown key or a bad value."""
        from ..receivers.upstreams import upstreams_of

        check_keys(table, {"key", "key_env", "key_file", "upstreams"}, "[service.receivers]")
        found = table.get("upstreams", {})
        if not isinstance(found, dict):
            raise ConfigurationError(
                "upstreams must be a table, such as { openai = 'https://api.openai.com/v1' }"
            )
        listed = tuple(_upstream(name, value) for name, value in found.items())
        checked = tuple(upstreams_of(listed).values()) if listed else ()
        return cls(secret_in(table, "key"), checked)

    def read_key(self) -> str:
        """The key. Raises :class:`ConfigurationError` where there is none."""
        found = variable("GENOPS_RECEIVER_KEY") if self.key is None else self.key.read()
        if not found:
            raise ConfigurationError(
                "[service.receivers] needs a key that Flowise sends: set GENOPS_RECEIVER_KEY (or "
                "GENOPS_RECEIVER_KEY_FILE), or name its variable by key_env or its file by key_file"
            )
        return found


def _upstream(name: str, value: object) -> Upstream:
    from ..receivers.upstreams import Upstream

    if isinstance(value, str):
        return Upstream(name, value, name)
    if isinstance(value, dict):
        check_keys(value, {"url", "provider"}, f"the upstream {name}")
        url, provider = value.get("url"), value.get("provider", name)
        if isinstance(url, str) and isinstance(provider, str):
            return Upstream(name, url, provider)
    raise ConfigurationError(f"the upstream {name} must be a URL, or a table with url and provider")


def receivers_of(settings: ReceiverSettings, runtime: Runtime) -> Any:
    """The application to mount at :data:`MOUNTED_AT`. Raises :class:`ConfigurationError`."""
    from ..receivers import ReceiverApp
    from ..receivers.model_proxy import ModelProxy, correcting

    key = settings.read_key()
    runtime.share_evidence()
    runtime.corrections.routes.update(("langfuse", "otlp"))
    apps = {}
    if settings.upstreams:
        tell = correcting(runtime.corrections)
        apps["/models"] = ModelProxy(settings.upstreams, key=key, tell=tell, follow=tell, clock=runtime.clock)
    return ReceiverApp(key, runtime=runtime, apps=apps)
