"""A charge as rows of a database, and back: what comes out equals what went in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..core.compact_json import names_text, object_text
from ..core.errors import StoreError
from ..core.money import MAX_NANOS
from ..core.records import Charge, CostSource, Exactness, Line, LineKind, Usage

__all__ = [
    "CHARGE_COLUMNS",
    "LINE_COLUMNS",
    "charge_row",
    "charges_of",
    "line_rows",
    "text",
    "without_surrogates",
]

CHARGE_COLUMNS = (
    "id, operation, attempt, name, flow, outcome, attribution, context_path, started_at, ended_at, "
    "reserved_nanos, accounts, flags, trace_id, adjustment_of, chat_id, message_id"
)
_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
)
LINE_COLUMNS = (
    "charge, position, kind, nanos, source, exactness, price_version, note, provider, model, node, "
    f"usage_source, usage_exactness, {', '.join(_COUNTS)}"
)
_NO_USAGE = (None,) * (5 + len(_COUNTS))

Row = tuple[Any, ...]


def charge_row(charge: Charge) -> Row:
    """The values of :data:`CHARGE_COLUMNS`."""
    return (
        charge.id,
        charge.operation,
        charge.attempt,
        charge.name,
        charge.flow,
        str(charge.outcome),
        object_text(tuple(charge.attribution.items())),
        names_text(charge.context_path),
        charge.started_at,
        charge.ended_at,
        _storable(charge.reserved_nanos),
        names_text(charge.accounts),
        names_text(charge.flags),
        charge.trace_id,
        charge.adjustment_of,
        charge.chat_id,
        charge.message_id,
    )


def line_rows(seq: int, charge: Charge) -> list[Row]:
    """The values of :data:`LINE_COLUMNS` for each line of the charge with this number."""
    rows = []
    for position, line in enumerate(charge.lines):
        usage = line.usage
        rows.append(
            (
                seq,
                position,
                line.kind.value,
                None if line.nanos is None else _storable(line.nanos),
                line.source.value,
                line.exactness.value,
                line.price_version,
                line.note,
                *(
                    _NO_USAGE
                    if usage is None
                    else (
                        usage.provider,
                        usage.model,
                        usage.node,
                        usage.source.value,
                        usage.exactness.value,
                        usage.input_tokens,
                        usage.output_tokens,
                        usage.cache_read_tokens,
                        usage.cache_write_tokens,
                        usage.cache_write_1h_tokens,
                        usage.reasoning_tokens,
                        usage.input_audio_tokens,
                        usage.output_audio_tokens,
                    )
                ),
            )
        )
    return rows


def _storable(nanos: int) -> int:
    if -MAX_NANOS <= nanos <= MAX_NANOS:
        return nanos
    raise StoreError(f"an amount of {nanos} nano-dollars is more than a ledger can hold ({MAX_NANOS})")


def without_surrogates(row: Row) -> Row:
    """For names that are no Unicode (half a surrogate pair, out of a broken answer): kept as bytes."""
    return tuple([_bytes(value) if isinstance(value, str) else value for value in row])


def _bytes(value: str) -> str | bytes:
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return value


def text(value: str | bytes) -> str:
    """Undo :func:`without_surrogates`."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


def charges_of(charges: Sequence[Row], lines: Sequence[Row]) -> Iterator[Charge]:
    """Charges of rows ``(seq, *CHARGE_COLUMNS)``, and of their lines in order of (charge, position)."""
    by_charge: dict[int, list[Line]] = {}
    for row in lines:
        by_charge.setdefault(row[0], []).append(_line(row))
    for (
        seq,
        charge_id,
        operation,
        attempt,
        name,
        flow,
        outcome,
        attribution,
        path,
        started_at,
        ended_at,
        reserved,
        accounts,
        flags,
        trace_id,
        adjustment_of,
        chat_id,
        message_id,
    ) in charges:
        yield Charge(
            id=text(charge_id),
            operation=text(operation),
            attempt=attempt,
            name=text(name),
            flow=text(flow),
            outcome=text(outcome),
            lines=tuple(by_charge.get(seq, ())),
            attribution=json.loads(attribution),
            context_path=_names(path),
            started_at=started_at,
            ended_at=ended_at,
            reserved_nanos=reserved,
            accounts=_names(accounts),
            flags=_names(flags),
            trace_id=text(trace_id),
            adjustment_of=text(adjustment_of),
            chat_id=text(chat_id),
            message_id=text(message_id),
        )


@lru_cache(maxsize=4096)
def _names(array: str) -> tuple[str, ...]:
    """Many charges have the same accounts, and most no flags."""
    return tuple(json.loads(array))


def _line(row: Row) -> Line:
    _, _, kind, nanos, source, exactness, version, note, *rest = row
    usage = None
    if rest[0] is not None:
        provider, model, node, usage_source, usage_exactness, *counts = rest
        usage = Usage(
            text(provider),
            text(model),
            **dict(zip(_COUNTS, counts, strict=True)),
            node=text(node),
            source=CostSource(usage_source),
            exactness=Exactness(usage_exactness),
        )
    return Line(
        LineKind(kind),
        nanos,
        CostSource(source),
        Exactness(exactness),
        usage,
        price_version=text(version),
        note=text(note),
    )
