"""The tables of a PostgreSQL ledger, version by version, and what its text can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .postgres_tallies import make_tables

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["MIGRATIONS", "SHARDS", "plain", "storable"]

SHARDS = 16
"""Rows that each sum is spread over, by connection: workers do not wait for one another's commits."""

# COLLATE "C": ids are compared by their bytes, whatever the database sorts names by.
_TABLES = """
CREATE TABLE charges (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,    -- in the order of booking
    id text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    attempt bigint NOT NULL,
    name text NOT NULL,
    flow text NOT NULL,
    outcome text NOT NULL,
    attribution text NOT NULL,                              -- JSON object
    context_path text NOT NULL,                             -- JSON array, as are accounts and flags
    started_at double precision NOT NULL,                   -- epoch seconds
    ended_at double precision NOT NULL,
    reserved_nanos bigint NOT NULL,
    accounts text NOT NULL,
    flags text NOT NULL,
    trace_id text NOT NULL,
    adjustment_of text NOT NULL
);
CREATE UNIQUE INDEX charges_id ON charges (id);
CREATE INDEX charges_operation ON charges (operation) WHERE id <> operation || '#' || attempt;
CREATE INDEX charges_started_at ON charges (started_at);
CREATE TABLE lines (
    charge bigint NOT NULL REFERENCES charges (seq),
    position int NOT NULL,
    kind text NOT NULL,
    nanos bigint,                                           -- NULL: no price is known
    source text NOT NULL,
    exactness text NOT NULL,
    price_version text NOT NULL,
    note text NOT NULL,
    provider text,                                          -- NULL, as all that follows: no usage
    model text,
    node text,
    usage_source text,
    usage_exactness text,
    input_tokens bigint,
    output_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    cache_write_1h_tokens bigint,
    reasoning_tokens bigint,
    input_audio_tokens bigint,
    output_audio_tokens bigint,
    PRIMARY KEY (charge, position)
);
-- A charge is settled unless it is here: charges themselves are never written to again.
CREATE TABLE outbox (charge bigint PRIMARY KEY REFERENCES charges (seq));
CREATE TABLE audits (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at double precision NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    nanos bigint,
    until double precision
);
CREATE TABLE series (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key bytea NOT NULL UNIQUE,                              -- SHA-256 of all that follows
    attribution text NOT NULL,                              -- JSON object, without what names one session
    flow text NOT NULL,                                     -- charges.name
    flow_id text NOT NULL,                                  -- charges.flow
    provider text NOT NULL,
    model text NOT NULL,
    source text NOT NULL,
    exactness text NOT NULL
);
CREATE TABLE rollups (
    day bigint NOT NULL,                                    -- since the epoch, UTC
    series bigint NOT NULL REFERENCES series (id),
    shard smallint NOT NULL,                                -- a sum is the sum over its shards
    nanos numeric NOT NULL,
    calls bigint NOT NULL,
    lines bigint NOT NULL,
    unpriced bigint NOT NULL,
    input_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    cache_read_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    PRIMARY KEY (day, series, shard)
) WITH (fillfactor = 50);
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$;
"""

_APPEND_ONLY = (
    "CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
    "FOR EACH STATEMENT EXECUTE FUNCTION append_only()"
)


def _tables(connection: Connection[tuple[Any, ...]]) -> None:
    """Version 1."""
    for statement in _TABLES.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    for table in ("charges", "lines", "audits"):
        connection.execute(_APPEND_ONLY.format(table=table))


def _witnesses(connection: Connection[tuple[Any, ...]]) -> None:
    """Version 2: of each store, the newest ends that it was told."""
    connection.execute(
        'CREATE TABLE witnesses (store text COLLATE "C" NOT NULL, shard smallint NOT NULL, '
        "hold text NOT NULL, at double precision NOT NULL, PRIMARY KEY (store, shard)) WITH (fillfactor = 50)"
    )


def _conversations(connection: Connection[tuple[Any, ...]]) -> None:
    """Version 3: which of Flowise's records a charge is for."""
    for column in ("chat_id", "message_id"):
        connection.execute(f"ALTER TABLE charges ADD COLUMN {column} text NOT NULL DEFAULT ''")


MIGRATIONS = (_tables, _witnesses, _conversations, make_tables)

_MARK = "\x01"


def storable(value: Any) -> Any:
    """As PostgreSQL can hold it: text has neither NUL nor halves of surrogate pairs there.

    Such text (out of a broken answer) is kept as a mark and its escapes; :func:`plain` undoes it.
    """
    if isinstance(value, str) and (value.startswith(_MARK) or "\x00" in value or not _unicode(value)):
        # Not JSON: two halves side by side would come back as one character.
        return _MARK + value.encode("unicode_escape").decode("ascii")
    return value


def _unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any) -> Any:
    """Undo :func:`storable`."""
    if isinstance(value, str) and value.startswith(_MARK):
        return value[1:].encode("ascii").decode("unicode_escape")
    return value
