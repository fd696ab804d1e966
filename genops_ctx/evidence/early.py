"""Evidence that came before the call that it is of: kept for a while, and found by the sessions it names."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ..core.evidence import Shown, merged

__all__ = ["Early", "EarlyEvidence"]


@dataclass(slots=True)
class Early:
    """Evidence whose attempt is not known yet: in flight in another process, or nobody's. Epoch seconds."""

    shown: Shown
    since: float
    next_look: float


class EarlyEvidence:
    """The pieces that wait, by their ids, the oldest first. Not locked: one thread at a time."""

    def __init__(self) -> None:
        self._pieces: OrderedDict[str, Early] = OrderedDict()
        self._of_session: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    def keep(self, shown: Shown, now: float, next_look: float) -> None:
        """Put a piece to what is known of it; one that is new is looked at then."""
        name = shown.evidence.id
        early = self._pieces.setdefault(name, Early(shown, now, next_look))
        known = early.shown
        self._forget_sessions(name, known)
        early.shown = Shown(
            merged(known.evidence, shown.evidence),
            shown.request or known.request,
            shown.sessions or known.sessions,
            known.started_at if shown.started_at is None else shown.started_at,
            shown.answer or known.answer,
            shown.flow or known.flow,
        )
        for session in early.shown.sessions:
            self._of_session.setdefault(session, {})[name] = None

    def of_session(self, session: str) -> list[Early]:
        """Those that name a session."""
        return [self._pieces[name] for name in self._of_session.get(session, ())]

    def due(self, now: float) -> list[Early]:
        """Those that are to be looked at by now."""
        return [early for early in self._pieces.values() if early.next_look <= now]

    def drop(self, shown: Shown) -> None:
        """This is matched, or given up; more of it that came meanwhile stays."""
        name = shown.evidence.id
        early = self._pieces.get(name)
        if early is not None and early.shown is shown:
            del self._pieces[name]
            self._forget_sessions(name, shown)

    def drop_oldest(self) -> None:
        self.drop(next(iter(self._pieces.values())).shown)

    def _forget_sessions(self, name: str, shown: Shown) -> None:
        for session in shown.sessions:
            names = self._of_session.get(session, {})
            names.pop(name, None)
            if not names:
                self._of_session.pop(session, None)
