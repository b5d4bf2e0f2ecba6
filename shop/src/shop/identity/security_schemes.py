"""How a client can authenticate, for the OpenAPI description and the dialog of `/docs`.

The cookie of a browser isn't listed: programs don't use it, and the browser sends it from `/docs` by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shop.identity.authenticating import API_KEY_HEADER, TOKEN_PATH

_TOKEN_URL: Final = TOKEN_PATH.removeprefix("/")  # relative, because the application may be mounted at a path

SECURITY_SCHEMES: Final[Mapping[str, Mapping[str, Any]]] = {
    "password": {
        "type": "oauth2",
        "description": "For customers. Accounts with an authenticator app sign in at /sign-in, or with "
        "POST /auth/sign-in",
        "flows": {
            "password": {
                "tokenUrl": _TOKEN_URL,
                "refreshUrl": _TOKEN_URL,
                "scopes": {},  # an access token allows everything that its user may do
            }
        },
    },
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "An access token"},
    "api_key": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER},
}
