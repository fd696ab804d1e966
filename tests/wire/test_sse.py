from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genops_ctx.wire.sse import RAW, Event, EventDecoder, StreamTooLarge

from .recorded import PREDICTIONS, body

STREAMS = [name for name, exchange in PREDICTIONS.items() if exchange.get("text", "").startswith("message:")]


def decode(*chunks: bytes) -> list[Event]:
    decoder = EventDecoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    decoder.close()
    return events


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_the_same_events_whole_and_byte_by_byte(name: str) -> None:
    whole = decode(body(name))
    assert whole
    assert decode(*(bytes([byte]) for byte in body(name))) == whole
    # an oracle that only works on whole text: Flowise's frames are separated by blank lines
    frames = [json.loads(part.partition("data:")[2]) for part in body(name).decode().split("\n\n") if part]
    assert [(frame["event"], frame["data"]) for frame in frames] == whole


@given(
    data=st.binary(max_size=300) | st.text(max_size=200).map(str.encode), cuts=st.lists(st.integers(0, 300))
)
def test_any_cut_of_any_bytes_gives_the_same_events(data: bytes, cuts: list[int]) -> None:
    frame = b'message:\r\ndata: {"event":"token","data":"\xc3\xa9\xe2\x82\xac"}\r\n\r\n'
    data = frame + data + b"\n\n" + frame
    points = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(points)]
    assert decode(*pieces) == decode(data)
    assert decode(data)[0] == ("token", "é€")


def test_heartbeats_and_other_fields_are_passed_over() -> None:
    stream = b':heartbeat\n\nid: 7\nretry: 10\nmessage:\ndata:{"event":"start","data":""}\n\n:heartbeat\n\n'
    assert decode(stream) == [("start", "")]


def test_data_over_several_lines_is_joined() -> None:
    assert decode(b'data: {"event":\ndata: "token",\ndata:"data":1}\n\n') == [("token", 1)]


def test_data_that_is_not_an_envelope_comes_out_raw() -> None:
    assert decode(b"data: [1, 2]\n\n", b"data: {nope\n\n", b'data: {"event": 5}\n\n') == [
        (RAW, "[1, 2]"),
        (RAW, "{nope"),
        (RAW, '{"event": 5}'),
    ]
    assert decode(b"event: ping\ndata: hello\n\n") == [("ping", "hello")]
    assert decode(b"event: ping\n\ndata: hello\n\n") == [(RAW, "hello")]


def test_nesting_too_deep_for_the_json_reader_comes_out_raw() -> None:
    deep = b"[" * 200_000
    assert decode(b"data:" + deep + b"\n\n") == [(RAW, deep.decode())]


def test_bytes_that_are_not_utf8_do_not_stop_the_stream() -> None:
    assert decode(b'data:{"event":"token","data":"\xff"}\n\n') == [("token", "�")]


def test_ended_says_whether_the_stream_is_whole() -> None:
    decoder = EventDecoder()
    decoder.feed(b'data:{"event":"end","data":"[DONE]"}\n')
    assert not decoder.ended
    decoder.feed(b"\n")
    assert decoder.ended


def test_after_close_nothing_comes_out() -> None:
    decoder = EventDecoder()
    decoder.feed(b'data:{"event":"token","data":"a"}\n')
    decoder.close()
    assert decoder.feed(b"\n") == []


@pytest.mark.parametrize("chunk", [b"data:" + b"x" * 200, b"data:" + b"x" * 60 + b"\n"])
def test_an_event_past_the_limit_is_refused_without_its_content(chunk: bytes) -> None:
    decoder = EventDecoder(max_event_bytes=100)
    with pytest.raises(StreamTooLarge, match="more than 100 bytes") as caught:
        for _ in range(3):
            decoder.feed(chunk)
    assert "xxx" not in str(caught.value)
    assert decoder.feed(b"\n") == []


def test_the_limit_is_for_one_event_not_for_the_stream() -> None:
    decoder = EventDecoder(max_event_bytes=100)
    frame = b'data:{"event":"token","data":"' + b"x" * 50 + b'"}\n\n'
    assert sum(len(decoder.feed(frame)) for _ in range(50)) == 50


def test_one_long_line_in_small_pieces_takes_linear_time() -> None:
    def seconds(size: int) -> float:
        decoder = EventDecoder()
        start = time.process_time()
        for _ in range(size // 64):
            decoder.feed(b"x" * 64)
        return time.process_time() - start

    seconds(64_000)
    assert seconds(4_000_000) < 40 * max(seconds(400_000), 0.001)  # quadratic would be 100 times


def test_the_repr_of_an_event_holds_no_content() -> None:
    assert repr(Event("token", "secret words")) == "Event(event='token')"
