"""Tell Flowise to stop a prediction that nobody listens to any more."""

from __future__ import annotations

import logging
from urllib.parse import quote

__all__ = ["abort_prediction"]

log = logging.getLogger("genops_ctx")

ABORT_SECONDS = 5.0


def abort_prediction(base_url: str, api_key: str | None, flow_id: str, chat_id: str) -> None:
    """``PUT /api/v1/chatmessage/abort/{flow}/{chat}``. Raises nothing: it saves money, or does not.

    Flowise stops an AgentFlow before its next node; a chain that has called its model it does not stop.
    """
    import requests

    path = f"{base_url}/api/v1/chatmessage/abort/{quote(flow_id, safe='')}/{quote(chat_id, safe='')}"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with requests.Session() as session:
            session.put(path, headers=headers, timeout=ABORT_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        log.warning("Flowise could not be told to abort a prediction (%s)", type(error).__name__)
