"""The guard against calls that run away: it applies policies, and counts what they limit.

It counts in this process's memory and within bounds: of questions it keeps keyed hashes, never a text.
"""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from .policy import Counted, Decision, Facts, Policy, refusal_of
from .process import ForkedLock

__all__ = ["Guard"]

KEPT_SESSIONS = 10_000
KEPT_QUESTIONS = 1_000
"""Of each session, the last asked ones."""
KEPT_GROUPS = 10_000
MINUTE = 60


class _Session:
    __slots__ = ("calls", "questions")

    def __init__(self) -> None:
        self.calls = 0
        self.questions: OrderedDict[bytes, int] = OrderedDict()


class Guard:
    """Policies, and what they have counted. Thread-safe."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)
        self._lock = ForkedLock()
        self._key = os.urandom(16)
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._spent: OrderedDict[tuple[int, tuple[str, ...]], deque[tuple[int, int]]] = OrderedDict()
        self._counts_calls = any(
            policy.max_calls_per_session or policy.max_identical_questions for policy in self.policies
        )
        self._limits_cost = any(policy.cost_nanos is not None for policy in self.policies)

    def hash_of(self, question: str | None) -> bytes:
        """A question's hash, with a key of this process; empty for none."""
        if not question or not self._counts_calls:
            return b""
        return blake2b(question.encode("utf-8", "surrogatepass"), digest_size=16, key=self._key).digest()

    def decide(self, facts: Facts, *, enforced: bool = True) -> tuple[Decision, ...]:
        """What each policy that applies says; the call is counted unless it is refused.

        Deciding and counting are one step: of many calls at once no more than the limit are allowed.
        """
        with self._lock:
            counted = self._counted(facts)
            decisions = tuple(
                Decision(policy, refusal_of(policy, facts, self._with_cost(index, policy, facts, counted)))
                for index, policy in enumerate(self.policies)
                if policy.applies(facts.attribution)
            )
            if not enforced or not any(decision.reason for decision in decisions):
                self._count(facts, 1)
        return decisions

    def undo(self, facts: Facts) -> None:
        """A call that was counted was not made."""
        with self._lock:
            self._count(facts, -1)

    def book(self, attribution: Mapping[str, str], nanos: int, at: float) -> None:
        """Count what a call has cost (nano-dollars)."""
        if not self._limits_cost or nanos <= 0:
            return
        second = int(at)
        with self._lock:
            for index, policy in enumerate(self.policies):
                if policy.cost_nanos is None or not policy.applies(attribution):
                    continue
                key = (index, policy.group(attribution))
                costs = self._spent.setdefault(key, deque())
                self._spent.move_to_end(key)
                if costs and costs[-1][0] > second + MINUTE:
                    costs.clear()  # the clock was set back
                if costs and costs[-1][0] >= second:
                    costs[-1] = (costs[-1][0], costs[-1][1] + nanos)
                else:
                    costs.append((second, nanos))
                while costs[0][0] <= second - MINUTE:
                    costs.popleft()
                if len(self._spent) > KEPT_GROUPS:
                    self._spent.popitem(last=False)

    def _counted(self, facts: Facts) -> Counted:
        session = self._sessions.get(facts.session) if facts.session else None
        if session is None:
            return Counted()
        return Counted(session.calls, session.questions.get(facts.question, 0) if facts.question else 0)

    def _with_cost(self, index: int, policy: Policy, facts: Facts, counted: Counted) -> Counted:
        if policy.cost_nanos is None:
            return counted
        costs = self._spent.get((index, policy.group(facts.attribution)), ())
        since = facts.at - MINUTE
        # What is further ahead is of before the clock was set back.
        recent = [nanos for second, nanos in costs if since < second <= facts.at + MINUTE]
        return counted._replace(spent=sum(recent))

    def _count(self, facts: Facts, step: int) -> None:
        if not facts.session or not self._counts_calls:
            return
        session = self._sessions.get(facts.session)
        if session is None:
            if step < 0:
                return
            session = self._sessions[facts.session] = _Session()
            if len(self._sessions) > KEPT_SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(facts.session)
        session.calls = max(session.calls + step, 0)
        if facts.question:
            asked = session.questions
            asked[facts.question] = max(asked.get(facts.question, 0) + step, 0)
            asked.move_to_end(facts.question)
            if len(asked) > KEPT_QUESTIONS:
                asked.popitem(last=False)
