"""``genops-ctx serve``: the service, on uvicorn."""

from __future__ import annotations

import copy
from typing import Any

import click

from ..core.errors import ConfigurationError

__all__ = ["serve"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 to be reached from elsewhere.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 128))
@click.option(
    "--drain", type=click.FloatRange(0, 86_400), help="Seconds that a stop waits for calls in flight; 110."
)
def serve(host: str, port: int, workers: int, drain: float | None) -> None:
    """Serve Flowise's API to clients with keys of their own (`genops-ctx keys`).

    Flowise, store and ledger are those of the settings. Several workers need a store and a ledger that
    they share: files, or Redis and PostgreSQL.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ConfigurationError(
            "genops-ctx serve needs FastAPI and uvicorn: pip install 'genops_ctx[service]'"
        ) from error
    from ..service.configuration import ServiceSettings
    from ..service.connections import BoundedConnection
    from ..settings import DEFAULT, load_settings

    settings = load_settings()
    options = ServiceSettings.of(settings.service)
    if drain is None:
        drain = options.drain_seconds
    if workers > 1:
        for name, url in (("store", settings.store), ("ledger", settings.ledger)):
            if url.startswith("memory:"):
                raise ConfigurationError(
                    f"the {name} is memory://, which each of {workers} workers would have for itself; name "
                    f"one that they share by GENOPS_{name.upper()} or in the settings file"
                )
        if settings.store.startswith(DEFAULT) and options.shares:
            raise ConfigurationError(
                f"no store is named, so each of {workers} workers would have {options.shares} for itself; "
                "name one that they share by GENOPS_STORE (redis://… or sqlite:///…) or in the settings file"
            )
        from ..service import create_app

        # What is wrong in the settings is told here, once; workers that cannot begin are begun for ever.
        create_app()
    uvicorn.run(
        "genops_ctx.service:app",
        host=host,
        port=port,
        workers=workers,
        log_config=_log_config(uvicorn.config.LOGGING_CONFIG),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(drain),
        # uvicorn kills a worker that does not answer it for so long. With its own 5 s, one that has little
        # processor time is killed while it starts, over and over, or with calls in flight.
        timeout_worker_healthcheck=60,
        http=BoundedConnection,
        ws="none",
    )


def _log_config(base: dict[str, Any]) -> dict[str, Any]:
    """uvicorn's, with the worker in every line and the package's own lines among them."""
    config = copy.deepcopy(base)
    config["formatters"]["default"] = {
        "format": "%(asctime)s [Worker:%(process)d] %(levelname)s %(name)s: %(message)s"
    }
    config["loggers"]["genops_ctx"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    return config
