"""Who may ask, and who may change edits."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass

from fastapi import Request

from meg_editor.serving.errors import ApiError


@dataclass(frozen=True, repr=False)
class Keys:
    """The keys of a server.

    Args:
        admin: for edits and routing; it is an API key as well.
        api: for answers; None: whoever reaches the server may ask.
    """

    admin: str
    api: str | None = None

    def check_api(self, request: Request) -> None:
        """Raises ApiError 401 unless the request may ask."""
        if self.api is not None:
            self._check(request, (self.api, self.admin), "an API key")

    def check_admin(self, request: Request) -> None:
        """Raises ApiError 401 unless the request may change edits."""
        self._check(request, (self.admin,), "the admin key")

    @staticmethod
    def _check(request: Request, allowed: tuple[str, ...], what: str) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        fits = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in allowed]
        if scheme.lower() != "bearer" or not any(fits):
            raise ApiError(
                401,
                f"expected {what} in the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "lab")]
        [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
