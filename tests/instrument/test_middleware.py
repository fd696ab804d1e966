"""The middlewares under real servers: uvicorn with Starlette and FastAPI, and a threaded WSGI server."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager
from wsgiref.simple_server import make_server as make_wsgiref_server

import fastapi
import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from werkzeug.serving import make_server

from genops_ctx import (
    Budget,
    BudgetExceeded,
    configure,
    current_context,
    governance_context,
    governed,
    metered_call,
)
from genops_ctx.core.errors import ConfigurationError
from genops_ctx.instrument import asgi, wsgi
from genops_ctx.testing import capture

KEYS = {"Bearer acme-key": {"customer_id": "acme"}, "Bearer zeta-key": {"customer_id": "zeta"}}


def authenticate(headers):
    return KEYS.get(headers.get("authorization", ""))


async def authenticate_later(headers):
    await asyncio.sleep(0)
    return authenticate(headers)


def spend(cents=1):
    with metered_call("model", max_cost=cents / 100) as call:
        call.record_cost(cents / 100)


@governed(feature="stream")
def parts():
    for index in range(3):
        spend()
        yield f"{index}\n".encode()


async def parts_later():
    for index in range(3):
        await asyncio.sleep(0)
        spend()
        yield f"{index}\n".encode()


def told():
    context = current_context()
    return {"name": context.name, "depth": len(context.path), **context.attribution}


# -- ASGI ------------------------------------------------------------------------------------------


async def plain(request):
    spend()
    return JSONResponse(told())


async def stream(request):
    return StreamingResponse(parts_later())


async def stream_of_a_plain_generator(request):
    return StreamingResponse(parts())


async def background(request):
    return JSONResponse({}, background=BackgroundTask(spend, 5))


async def refused(request):
    try:
        spend(60)
    except BudgetExceeded:
        return JSONResponse({"refused": True}, 429)
    return JSONResponse({"refused": False})


def starlette_app(**options):
    routes = [
        Route("/", plain),
        Route("/stream", stream),
        Route("/plain-stream", stream_of_a_plain_generator),
        Route("/background", background),
        Route("/refused", refused),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(asgi.GovernanceMiddleware, **options)
    return app


@contextmanager
def serving(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


ACME = {"Authorization": "Bearer acme-key"}
ZETA = {"Authorization": "Bearer zeta-key"}


def waited(charges, number):
    """What runs after the response may not have ended yet."""
    for _ in range(200):
        if len(charges) >= number:
            break
        time.sleep(0.01)
    return charges


@pytest.mark.parametrize("check", [authenticate, authenticate_later])
def test_each_request_has_a_context(check):
    with capture() as charges, serving(starlette_app(authenticate=check, team="web")) as url:
        assert requests.get(url, headers=ACME, timeout=60).json() == {
            "name": "request",
            "depth": 1,
            "team": "web",
            "customer_id": "acme",
        }
        assert requests.get(url, timeout=60).json() == {"name": "request", "depth": 1, "team": "web"}
    assert [charge.attribution.get("customer_id") for charge in charges] == ["acme", None]
    assert len({charge.context_path for charge in charges}) == 2


@pytest.mark.parametrize("path", ["/stream", "/plain-stream"])
def test_a_streamed_response_counts_in_its_request(path):
    with capture() as charges, serving(starlette_app(authenticate=authenticate)) as url:
        assert requests.get(url + path, headers=ACME, timeout=60).text == "0\n1\n2\n"
    assert [charge.attribution["customer_id"] for charge in charges] == ["acme"] * 3
    assert len({charge.context_path[0] for charge in charges}) == 1


def test_a_background_task_counts_in_its_request():
    with capture() as charges, serving(starlette_app(authenticate=authenticate)) as url:
        requests.get(url + "/background", headers=ZETA, timeout=60)
        waited(charges, 1)
    assert [(charge.attribution["customer_id"], charge.nanos) for charge in charges] == [("zeta", 50_000_000)]


def test_budgets_of_a_request_and_of_each_customer(empty_directory, monkeypatch):
    budgets = ["0.50", Budget("0.02/day", by="customer_id", name="daily")]
    app = starlette_app(authenticate=authenticate, budget=budgets)
    with serving(app) as url:
        assert requests.get(url + "/refused", headers=ACME, timeout=60).status_code == 429
        for _ in range(2):
            assert requests.get(url, headers=ACME, timeout=60).status_code == 200
        assert requests.get(url, headers=ACME, timeout=60).status_code == 500
        assert requests.get(url, headers=ZETA, timeout=60).status_code == 200


def test_concurrent_requests_are_never_mixed():
    with capture() as charges, serving(starlette_app(authenticate=authenticate)) as url:

        def customer(headers):
            for _ in range(5):
                requests.get(url + "/stream", headers=headers, timeout=30)

        threads = [threading.Thread(target=customer, args=(who,)) for who in (ACME, ZETA) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    by_request = {}
    for charge in charges:
        by_request.setdefault(charge.context_path[0], []).append(charge.attribution["customer_id"])
    assert sorted(map(tuple, by_request.values())) == [("acme",) * 3] * 15 + [("zeta",) * 3] * 15


def test_fastapi():
    app = fastapi.FastAPI()
    app.add_middleware(asgi.GovernanceMiddleware, authenticate=authenticate)

    def paid():
        spend()
        yield current_context()
        spend()

    @app.get("/threaded")
    def threaded(context=fastapi.Depends(paid)):  # noqa: B008
        spend()
        return told()

    @app.get("/later")
    async def later(tasks: fastapi.BackgroundTasks):
        tasks.add_task(spend)
        spend()
        return told()

    with capture() as charges, serving(app) as url:
        for path in ("/threaded", "/later"):
            assert requests.get(url + path, headers=ACME, timeout=60).json()["customer_id"] == "acme"
        waited(charges, 5)
    assert [charge.attribution["customer_id"] for charge in charges] == ["acme"] * 5


# -- what may be believed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"baggage": "genops.team=sales,genops.squad=blue"}, {}),
        (
            {**ACME, "baggage": "genops.team=sales, genops.squad=b%20lue;x=y, other=1"},
            {"team": "sales", "squad": "b lue"},
        ),
        ({**ACME, "baggage": "genops.customer_id=zeta"}, {}),
        ({**ACME, "baggage": "genops.environment=dev"}, {}),
        ({**ACME, "baggage": "genops.team=a,genops.team=b"}, {}),
        ({**ACME, "baggage": "genops.team=a%0ab,genops.squad=x"}, {}),
        ({**ACME, "baggage": "genops.team=%ff"}, {}),
        ({**ACME, "baggage": "genops.team=%zz"}, {}),
        ({**ACME, "baggage": "genops.team"}, {}),
        ({**ACME, "baggage": "genops.tean=x"}, {}),
        ({**ACME, "baggage": "genops.<x>=y"}, {}),
        ({**ACME, "baggage": "genops.model=y"}, {}),
        ({**ACME, "baggage": "genops.team=" + "x" * 600}, {}),
        ({**ACME, "baggage": "genops.team=" + "x" * 8200}, {}),
        ({**ACME, "baggage": ",".join(f"k{n}=v" for n in range(80)) + ",genops.team=x"}, {}),
        ({**ACME, "baggage": "=,;,==,genops.=x"}, {}),
    ],
)
def test_baggage_is_taken_from_known_callers_and_only_whole(headers, expected):
    app = wsgi.GovernanceMiddleware(wsgi_told, authenticate=authenticate, environment="live")
    environ = {f"HTTP_{key.upper()}": value for key, value in headers.items()}
    found = app(environ, None)[0]
    known = {"customer_id": "acme"} if "Authorization" in headers else {}
    assert found == {"environment": "live", **known, **expected}
    assert current_context() is None


@pytest.mark.parametrize("declared", [False, True], ids=["of the middleware", "of the settings"])
def test_baggage_chooses_no_account(declared, empty_directory):
    """A caller that is known by something else than what budgets have accounts by."""
    budget = Budget("0.05/day", by=("customer_id", "squad"))
    if declared:
        configure(budgets=budget)
    app = wsgi.GovernanceMiddleware(
        wsgi_told, authenticate=lambda headers: {"user_id": "eve"}, budget=None if declared else budget
    )
    told = "genops.customer_id=acme,genops.squad=blue,genops.team=sales"
    assert app({"HTTP_BAGGAGE": told}, None) == [{"user_id": "eve", "team": "sales"}]


def wsgi_told(environ, start_response):
    return [current_context().attribution]


def test_what_authentication_says_is_locked():
    def changing(environ, start_response):
        with governance_context(customer_id="zeta"):
            return []

    app = wsgi.GovernanceMiddleware(changing, authenticate=authenticate)
    with pytest.raises(Exception, match="locked"):
        app({"HTTP_AUTHORIZATION": "Bearer acme-key"}, None)
    assert current_context() is None


def test_an_authentication_that_fails_lets_nothing_through():
    called = []

    def failing(headers):
        raise ZeroDivisionError

    for broken in (failing, lambda headers: {"customer_id": ""}, lambda headers: {"tean": "x"}):
        app = wsgi.GovernanceMiddleware(lambda *_: called.append(1), authenticate=broken)
        with pytest.raises((ZeroDivisionError, ConfigurationError)):
            app({}, None)
    assert called == []


@pytest.mark.parametrize("kind", [asgi.GovernanceMiddleware, wsgi.GovernanceMiddleware])
@pytest.mark.parametrize(
    "options",
    [
        {"authenticate": "key"},
        {"name": ""},
        {"budget": "lots"},
        {"tean": "x"},
        {"locked": "team"},
        {"team": ""},
    ],
)
def test_bad_options_are_told_at_once(kind, options):
    if options == {"locked": "team"}:
        kind(None, **options)  # it may be what authentication gives
        return
    with pytest.raises(ConfigurationError):
        kind(None, **options)


# -- WSGI ------------------------------------------------------------------------------------------


def wsgi_app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    spend()
    if environ["PATH_INFO"] == "/stream":
        return parts()
    if environ["PATH_INFO"] == "/bare":
        return bare_parts()
    return [current_context().customer_id.encode()]


def bare_parts():
    try:
        for index in range(3):
            spend()
            yield f"{index}\n".encode()
    finally:
        spend()


@contextmanager
def serving_wsgi(app, kind):
    server = (
        make_wsgiref_server("127.0.0.1", 0, app)
        if kind == "wsgiref"
        else make_server("127.0.0.1", 0, app, threaded=True)
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", ["wsgiref", "werkzeug"])
def test_a_wsgi_server(kind):
    app = wsgi.GovernanceMiddleware(wsgi_app, authenticate=authenticate)
    with capture() as charges, serving_wsgi(app, kind) as url:
        assert requests.get(url, headers=ACME, timeout=60).text == "acme"
        assert requests.get(url + "/stream", headers=ZETA, timeout=60).text == "0\n1\n2\n"
        assert requests.get(url + "/bare", headers=ACME, timeout=60).text == "0\n1\n2\n"
        waited(charges, 10)
    assert [charge.attribution["customer_id"] for charge in charges] == ["acme"] + ["zeta"] * 4 + ["acme"] * 5
    assert len({charge.context_path[0] for charge in charges}) == 3


def test_a_body_that_fails_or_is_left():
    def app(environ, start_response):
        return failing()

    def failing():
        spend()
        yield b"x"
        spend()
        raise ZeroDivisionError

    body = wsgi.GovernanceMiddleware(app)({}, None)
    assert current_context() is None
    with capture() as charges:
        assert next(body) == b"x"
        assert current_context() is None
        with pytest.raises(ZeroDivisionError):
            next(body)
        body.close()
        left = wsgi.GovernanceMiddleware(app)({}, None)
        next(left)
        left.close()
    assert len(charges) == 3
    assert current_context() is None


# -- traces ----------------------------------------------------------------------------------------


def test_the_trace_of_a_known_caller_goes_on(empty_directory):
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    configure(tracer_provider=provider, store="memory://", ledger="memory://")
    trace = "0af7651916cd43dd8448eb211c80319c"
    parent = f"00-{trace}-b7ad6b7169203331-01"
    app = wsgi.GovernanceMiddleware(wsgi_told, authenticate=authenticate)
    app({"HTTP_AUTHORIZATION": "Bearer acme-key", "HTTP_TRACEPARENT": parent}, None)
    app({"HTTP_TRACEPARENT": parent}, None)
    app({"HTTP_AUTHORIZATION": "Bearer acme-key", "HTTP_TRACEPARENT": "00-zz-x"}, None)
    spans = exporter.get_finished_spans()
    assert [f"{span.context.trace_id:032x}" == trace for span in spans] == [True, False, False]
    assert spans[0].parent.span_id == 0xB7AD6B7169203331
