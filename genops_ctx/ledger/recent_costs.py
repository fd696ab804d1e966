"""What flows have cost lately, for a process that begins: one statement for SQLite and PostgreSQL."""

from __future__ import annotations

__all__ = ["RECENT_COSTS"]

RECENT_COSTS = """
SELECT flow, started_at, sum(coalesce(nanos, 0))
FROM charges JOIN lines ON charge = seq
WHERE seq > (SELECT coalesce(max(seq), 0) FROM charges) - {count}
    AND flow <> '' AND outcome = 'completed' AND adjustment_of = ''
    AND replace(flags, '"upsert"', '') = flags
GROUP BY seq, flow, started_at
HAVING max(CASE WHEN exactness = 'unknown' THEN 1 ELSE 0 END) = 0
ORDER BY seq
"""
"""Of the newest ``count`` charges: flow, when it started, nano-dollars. As ``CostHistory.learn`` picks them:
answered, wholly priced, no upserts, and as they were booked at first."""
