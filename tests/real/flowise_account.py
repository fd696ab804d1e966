"""The first account of a new Flowise, and API keys that may do more or less."""

from __future__ import annotations

from dataclasses import dataclass

import requests

TIMEOUT = 120.0
EMAIL = "owner@example.com"
# Flowise wants upper and lower case, a digit and a sign
PASSWORD = "Only-4-tests"
# the header by which Flowise's own pages tell their calls from those made with an API key
INTERNAL = {"x-request-from": "internal"}

READ_FLOWS = ("chatflows:view", "agentflows:view", "executions:view")
READ_NO_FLOWS = ("tools:view",)
MANAGE_FLOWS = (
    *(
        f"{kind}:{action}"
        for kind in ("chatflows", "agentflows")
        for action in ("view", "create", "update", "delete", "config")
    ),
    "credentials:view",
    "credentials:create",
    "credentials:delete",
    "executions:view",
    "tools:view",
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: str
    secret: str


class Owner:
    """The owner's logged-in session on a Flowise that nobody has used before."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1"
        self._session = requests.Session()
        person = {"name": "Owner", "email": EMAIL, "credential": PASSWORD}
        _checked(requests.post(f"{self._url}/account/register", json={"user": person}, timeout=TIMEOUT))
        login = {"email": EMAIL, "password": PASSWORD}
        _checked(self._session.post(f"{self._url}/auth/login", json=login, headers=INTERNAL, timeout=TIMEOUT))

    def create_key(self, name: str, permissions: tuple[str, ...]) -> ApiKey:
        """Make an API key; Flowise answers with the list of all keys."""
        body = {"keyName": name, "permissions": list(permissions)}
        response = self._session.post(f"{self._url}/apikey", json=body, headers=INTERNAL, timeout=TIMEOUT)
        keys = _checked(response).json()
        key = next(key for key in keys if key["keyName"] == name)
        return ApiKey(key["id"], key["apiKey"])

    def close(self) -> None:
        self._session.close()


def _checked(response: requests.Response) -> requests.Response:
    if not response.ok:
        request = response.request
        raise AssertionError(
            f"{request.method} {request.path_url} -> {response.status_code}: {response.text[:500]}"
        )
    return response
