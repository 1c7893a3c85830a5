"""Who may act through the page: whoever has shown the token, from this page and no other.

Without a token the page cannot change anything. With one (a file that the operator has made, at least 16 characters)
whoever types it in gets a session: a cookie that scripts cannot read and other sites cannot send, and a second secret
that every change must carry in a header or a field, which other sites cannot know (CSRF). Sessions live in memory,
twelve hours at most, and end with the process. Wrong tokens are counted: after `WRONG_MAX` a minute nobody is let in
until the minute is over. Refused, with `NotAllowed`: all that.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from downlink.errors import DownlinkError

COOKIE: Final = "downlink-operator"
HEADER: Final = "x-csrf-token"
FIELD: Final = "csrf"
TOKEN_CHARS_MIN: Final = 16
SESSION_S: Final = 12 * 3600
SESSIONS_MAX: Final = 100
WRONG_MAX: Final = 5


class NotAllowed(DownlinkError):
    """This may not be done, or not by this person."""

    code = "not_allowed"


@dataclass(frozen=True)
class Session:
    """Somebody who has shown the token."""

    secret: str
    csrf: str
    until: float


def read_token(path: Path) -> str:
    """The token in a file: its first line."""
    lines = path.read_text().splitlines()
    token = lines[0].strip() if lines else ""
    if len(token) < TOKEN_CHARS_MIN:
        raise NotAllowed(
            f"{path} holds a token of {len(token)} characters, at least {TOKEN_CHARS_MIN} are needed; "
            f"`openssl rand -hex 24 > {path}` makes one"
        )
    return token


class Operators:
    """The sessions of one page. Belongs to one event loop."""

    def __init__(self, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._wrong: deque[float] = deque()

    @property
    def possible(self) -> bool:
        """Is there anything that one could be let in with?"""
        return self._token is not None

    def enter(self, token: str) -> Session:
        """A new session for the right token."""
        now = self._clock()
        if self._token is None:
            raise NotAllowed("this page only shows; start `decoder-node serve` with --page-token to act through it")
        while self._wrong and self._wrong[0] <= now - 60:
            self._wrong.popleft()
        if len(self._wrong) >= WRONG_MAX:
            raise NotAllowed("too many wrong tokens; wait a minute")
        if not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            self._wrong.append(now)
            raise NotAllowed("this is not the token")
        self._sessions = {name: one for name, one in self._sessions.items() if one.until > now}
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), now + SESSION_S)
        self._sessions[session.secret] = session
        return session

    def session(self, cookies: Mapping[str, str]) -> Session | None:
        """Whose request this is; None if nobody's."""
        found = self._sessions.get(cookies.get(COOKIE, ""))
        return found if found is not None and found.until > self._clock() else None

    def leave(self, session: Session) -> None:
        self._sessions.pop(session.secret, None)

    def check(self, cookies: Mapping[str, str], origin: str | None, host: str, csrf: str) -> Session:
        """That a change is wanted by an operator, through this page. Raises `NotAllowed`."""
        session = self.session(cookies)
        if session is None:
            raise NotAllowed("sign in as operator first")
        if origin is not None and origin.partition("://")[2] != host:
            raise NotAllowed(f"a page of {origin[:80]} may not act here")
        if not hmac.compare_digest(csrf.encode(), session.csrf.encode()):
            raise NotAllowed("the form is out of date; load the page again")
        return session
