"""Set up an application in one place: its databases, resources, errors, probes, metrics and log.

def create_app(settings: Settings) -> FastAPI:
    app = FastAPI(title="tracker")
    configure_app(app, database=lambda: Database(settings.database_url), resources=[issue_reader])
    app.include_router(router)
    return app
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.routing import Host, Mount

from howdah.database import Database
from howdah.fastapi._layers import Layers, LayersMiddleware
from howdah.fastapi._native_telemetry import look_for_telemetry_once
from howdah.fastapi._own_state import DATABASE_KEY, STATES_KEY
from howdah.fastapi._route_lists import RouteLists
from howdah.fastapi._routes import iterate_all_routes, iterate_dependants
from howdah.fastapi.access import unwrap_protected
from howdah.fastapi.authentication import DEFAULT_AUTHENTICATE_SECONDS, Authenticate, Authentication
from howdah.fastapi.body_limits import DEFAULT_MAX_BODY_BYTES, DEFAULT_MAX_BODY_SECONDS, BodyLimiter
from howdah.fastapi.cors import add_cors
from howdah.fastapi.direct_routes import DirectRoutes, DirectRoutesLayer
from howdah.fastapi.docs_page import replace_docs_pages
from howdah.fastapi.handlers import register_error_handlers
from howdah.fastapi.health import ReadinessCheck, build_health_router
from howdah.fastapi.hosts import AllowedHosts
from howdah.fastapi.http_rules import HTTPRules
from howdah.fastapi.in_progress import LimitRequests, RequestsInProgress
from howdah.fastapi.internal import InternalPort
from howdah.fastapi.jobs import Job, build_runners, check_jobs, run_jobs
from howdah.fastapi.load_limit import LoadLimit, LoadLimiter
from howdah.fastapi.openapi_security import BEARER_SCHEME, set_security_schemes
from howdah.fastapi.rate_limits import RateLimiter, RateLimits
from howdah.fastapi.resources import MAIN_DATABASE, OPENED_KEY, Opened, Resource
from howdah.fastapi.route_rules import RuleCheck
from howdah.fastapi.trusted_proxies import TrustedProxies
from howdah.serving._scope_keys import ADMIT_KEY, METRICS_KEY
from howdah.serving.limits import METRICS_PATH, PROBE_PATHS

if TYPE_CHECKING:
    from howdah.fastapi.metrics import ProcessMetrics, RequestMetrics  # needs an extra
    from howdah.fastapi.request_log import RequestLog  # needs an extra

# The attribute of `app.state` that has the application's configuration.
_CONFIGURATION_KEY: Final = "howdah_configuration"

_DEFAULT_LOAD_LIMIT: Final = LoadLimit()


def configure_app(
    app: FastAPI,
    *,
    database: Callable[[], Database],
    databases: Mapping[str, Callable[[], Database]] | None = None,
    resources: Iterable[Resource[Any]] = (),
    jobs: Iterable[Job] = (),
    readiness_checks: Iterable[ReadinessCheck] = (),
    max_body_bytes: int | None = DEFAULT_MAX_BODY_BYTES,
    max_body_seconds: float | None = DEFAULT_MAX_BODY_SECONDS,
    health: bool = True,
    metrics: bool = True,
    request_log: bool = True,
    allowed_hosts: Iterable[str] | None = None,
    internal_port: int | None = None,
    load_limit: LoadLimit | None = _DEFAULT_LOAD_LIMIT,
    cancel_abandoned: bool = True,
    authenticate: Authenticate | None = None,
    authenticate_timeout: float = DEFAULT_AUTHENTICATE_SECONDS,
    security_schemes: Mapping[str, Mapping[str, Any]] = BEARER_SCHEME,
    rate_limits: RateLimits | None = None,
    trusted_proxies: Iterable[str] = (),
    cors_origins: Iterable[str] = (),
    docs_script: str | None = None,
) -> None:
    """Set up the application: lifespan, error handlers, `/healthz` and `/readyz`, `/metrics`, and the request log.

    The application then follows the rules of HTTP in `howdah.fastapi.http_rules`: HEAD, OPTIONS, `Allow`, and headers
    for caches. It doesn't redirect between paths with and without a slash at the end, because the redirect would go to
    the `Host` of the request. `/docs` is served without files from a CDN, and `/redoc` is removed.

    Nothing is opened by this call. When the application starts, its databases are opened, then its resources in their
    order, then the lifespans of mounted applications that `configure_app` has set up, and then the application's own
    lifespan. Then its jobs are started. At shutdown, or if the startup fails, everything is closed in reverse order.

    - `database` returns the `Database` of `DbSession`, `ReadDbSession` and `get_database`. `databases` are further
      ones by name, for `database_dependency` and `session_dependency`.
    - `resources` are opened for routes; see `Resource`.
    - `jobs` run periodically; see `Job`. The test fixtures `client` and `committed_client` leave them out.
    - `readiness_checks` are called by `/readyz`, after it has reached every database.
    - `allowed_hosts` are the allowed values of the header `Host`, such as `api.example.com` or `*.example.com`. A
      request for another host gets a 421. By default every host is allowed. The probes and `/metrics` allow every host,
      because they are requested by IP address.
    - With `internal_port`, requests to this port of the server get `/metrics`, the docs, the OpenAPI description and
      the probes, and nothing else. Requests to other ports don't get the first three. The server must listen on both
      ports: `serve(app, sockets=[bind_socket("0.0.0.0", 8000), bind_socket("10.0.0.5", 9000)])`.
    - `load_limit` bounds the requests in progress and those that wait. The excess gets a 503 at once. The probes and
      `/metrics` are not limited. None: no limit.
    - With `cancel_abandoned`, a request is cancelled if its client disconnects before the response starts, and before a
      `DbSession` is committed. A route with the dependency `finish_without_client` is not cancelled.
    - `authenticate` finds the principal of a request before its body is read. If it takes more than
      `authenticate_timeout` seconds, the response is a 503. Then each route needs a rule, `allow(...)` or `PUBLIC`. An
      application with a route without a rule doesn't start (`RuntimeError`). See `howdah.fastapi.access`.
    - `security_schemes` are the security schemes of the OpenAPI description, by name. A client uses one of them. By
      default it is `{"bearer": {"type": "http", "scheme": "bearer"}}`.
    - `rate_limits` limit the requests of each address and each principal. Requests over a limit get a 429. None: no
      limit.
    - `trusted_proxies` are the addresses of proxies in front of the server, such as `10.0.0.0/8`, or `unix` for a Unix
      socket. Only their headers `X-Forwarded-For` and `X-Forwarded-Proto` are used. By default no proxy is trusted.
    - `cors_origins` are the origins whose pages may read the responses in a browser, such as `https://app.example.com`.
      By default there are none.
    - `docs_script` is the path of a script of the application that `/docs` runs, for example to show who is signed in.
    - `max_body_bytes` limits the body of a request (413), and `max_body_seconds` the time for which a route waits for
      it (408), plus a second for each 64 KiB. FastAPI's `max_body_size` of a router or a route replaces
      `max_body_bytes`. Bodies that are read by `read_lines` or `BodyRows` have `BodyLimits` instead. None: no limit.
    - `metrics` needs the extra `howdah[metrics]`, and `request_log` needs `howdah[logging]`.

    Call it once. Don't call `add_error_handlers`, because this function calls it. Middleware of your own that is added
    before this call has the request id in its log entries. Raises `ValueError` if two resources or two jobs have the
    same name.
    """
    if hasattr(app.state, _CONFIGURATION_KEY):
        raise RuntimeError("configure_app was already called for this application: call it once, with everything")
    in_progress = RequestsInProgress(
        None if load_limit is None else LoadLimiter(load_limit),
        cancel_abandoned=cancel_abandoned,
        exempt_paths={*PROBE_PATHS, METRICS_PATH},
    )
    lists = RouteLists(app.router)
    configuration = _Configuration(
        database=database,
        databases=databases or {},
        resources=[*resources],
        jobs=[*jobs],
        lifespan=app.router.lifespan_context,
        in_progress=in_progress,
        direct_routes=DirectRoutes(app, lists, notices_changes=authenticate is None),
    )
    _require_extra(metrics, "metrics", "prometheus_client", "metrics")
    _require_extra(request_log, "request_log", "structlog", "logging")
    setattr(app.state, _CONFIGURATION_KEY, configuration)
    app.router.lifespan_context = configuration.run
    # the innermost one: so all middleware applies to a direct route, also middleware that is added before this call
    layer = Middleware(cast(Any, DirectRoutesLayer), application=app, routes=configuration.direct_routes)
    app.user_middleware.append(layer)
    limiter = None if rate_limits is None else RateLimiter(rate_limits, exempt_paths={*PROBE_PATHS, METRICS_PATH})
    log_principal: Callable[[str], None] | None = None
    log: RequestLog | None = None
    if request_log:
        from howdah.fastapi.request_log import RequestLog, log_principal

        log = RequestLog()
    authentication: Authentication | None = None
    if authenticate is not None:
        rule_check = configuration.rule_check = RuleCheck(app, lists)
        authentication = Authentication(
            app, authenticate, timeout=authenticate_timeout, prepare=rule_check, log_principal=log_principal
        )
        set_security_schemes(app, security_schemes)
    request_metrics: RequestMetrics | None = None
    if metrics:
        from howdah.fastapi.metrics import ProcessMetrics, build_metrics_router

        configuration.metrics = ProcessMetrics(in_progress, limiter)
        request_metrics = configuration.metrics.requests
    has_body_limits = max_body_bytes is not None or max_body_seconds is not None
    layers = Layers(
        http_rules=HTTPRules(
            app,
            allowed_hosts=None if allowed_hosts is None else AllowedHosts(allowed_hosts),
            any_host_paths={*PROBE_PATHS, METRICS_PATH},
            is_hidden=None if internal_port is None else InternalPort(app, internal_port).hides,
        ),
        metrics=request_metrics,
        request_log=log,
        body_limiter=BodyLimiter(max_bytes=max_body_bytes, max_seconds=max_body_seconds) if has_body_limits else None,
        rate_limiter=limiter,
        authentication=authentication,
    )
    register_error_handlers(app)
    app.add_middleware(LayersMiddleware, layers=layers)
    app.router.redirect_slashes = False
    replace_docs_pages(app, script=docs_script)
    if health:
        app.include_router(build_health_router([*readiness_checks]))
    if configuration.metrics is not None:
        app.include_router(build_metrics_router(configuration.metrics))
    add_cors(app, cors_origins)
    if trusted_proxies:
        app.add_middleware(TrustedProxies, networks=trusted_proxies)
    # the outermost one, so that a rejection costs little
    app.add_middleware(LimitRequests, requests=in_progress)


@contextmanager
def replace_databases(app: FastAPI, databases: Mapping[str, Database]) -> Iterator[None]:
    """Let the application use these databases if it starts inside the `with` block. It doesn't close them.

    It leaves out the jobs, because they would change the data of a test at any time.

    The keys are the names of further databases, and "main". So tests can use the application on their own database.
    Starting an application that has a database with another name raises `RuntimeError`.
    """
    configuration = getattr(app.state, _CONFIGURATION_KEY, None)
    if not isinstance(configuration, _Configuration):
        raise RuntimeError(  # noqa: TRY004  # the application is set up wrongly
            "the application was not set up by configure_app, so its databases can't be replaced"
        )
    replaced = [*_iterate_configurations(app)]
    for each in replaced:
        each.replacements = databases
    try:
        yield
    finally:
        for each in replaced:
            each.replacements = None


class _Configuration:
    """The arguments of `configure_app`, and the lifespan that the application had before."""

    def __init__(
        self,
        *,
        database: Callable[[], Database],
        databases: Mapping[str, Callable[[], Database]],
        resources: list[Resource[Any]],
        jobs: list[Job],
        lifespan: Callable[[Any], Any],
        in_progress: RequestsInProgress,
        direct_routes: DirectRoutes,
    ) -> None:
        """Check the arguments. Raises `ValueError` and `TypeError`."""
        if MAIN_DATABASE in databases:
            raise ValueError(f"{MAIN_DATABASE!r} is the name of the argument `database`: use another name in databases")
        self._factories = {MAIN_DATABASE: database, **databases}
        for name, factory in self._factories.items():
            if not callable(factory):
                raise TypeError(
                    f"the database {name!r} must be a function that returns a Database, not {factory!r}: write "
                    "lambda: Database(url), so that it is created when the application starts"
                )
        names = [resource.name for resource in resources]
        for resource in resources:
            if names.count(resource.name) > 1:
                raise ValueError(f"two resources have the name {resource.name!r}: give each its own name")
            if resource.database not in self._factories:
                raise ValueError(
                    f"the resource {resource.name!r} uses the database {resource.database!r}, which is not in "
                    f"configure_app(..., databases={{...}})"
                )
        check_jobs(jobs, self._factories, {resource.key for resource in resources})
        self._resources = resources
        self._jobs = jobs
        self._lifespan = lifespan
        self._in_progress = in_progress
        self.direct_routes = direct_routes
        self.replacements: Mapping[str, Database] | None = None
        self.rule_check: RuleCheck | None = None
        self.metrics: ProcessMetrics | None = None

    @asynccontextmanager
    async def run(self, app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        """The lifespan of the application. It yields the attributes of `request.state`."""
        _reject_unknown_resources(app, {resource.key for resource in self._resources})
        async with AsyncExitStack() as stack:
            databases = {name: await self._open_database(stack, name) for name in self._factories}
            values = {}
            for resource in self._resources:
                opening = resource.factory(databases[resource.database])
                values[resource.key] = await stack.enter_async_context(opening)
            names = {resource.key: resource.name for resource in self._resources}
            states: dict[FastAPI, Mapping[str, Any]] = {}
            for mounted, _ in _find_mounted(app):
                mounted_state = await stack.enter_async_context(mounted.router.lifespan_context(mounted)) or {}
                states |= mounted_state.get(STATES_KEY, {})
            user_state = dict(await stack.enter_async_context(self._lifespan(app)) or {})
            if DATABASE_KEY in user_state:
                raise RuntimeError(
                    "the application's lifespan yields a database, and so does configure_app: remove it from the "
                    "lifespan, or pass it to configure_app(..., databases={...})"
                )
            jobs = [] if self.replacements is not None else build_runners(self._jobs, databases, values)
            opened = Opened(databases, values, names, jobs)
            own = {DATABASE_KEY: databases[MAIN_DATABASE], OPENED_KEY: opened}
            states[app] = {**user_state, **own}
            # here, because the application's own lifespan may have added routes
            if self.rule_check is not None:
                self.rule_check()
            self.direct_routes.prepare()
            look_for_telemetry_once(app)
            await stack.enter_async_context(run_jobs(jobs))
            shared: dict[str, Any] = {STATES_KEY: states, ADMIT_KEY: self._in_progress}
            if self.metrics is not None:
                self.metrics.opened = opened
                shared[METRICS_KEY] = self.metrics
            yield {**states[app], **shared}

    async def _open_database(self, stack: AsyncExitStack, name: str) -> Database:
        if self.replacements is not None:
            if name not in self.replacements:
                raise RuntimeError(f"no database replaces the application's database {name!r}: add it to `databases`")
            return self.replacements[name]
        database = self._factories[name]()
        if not isinstance(database, Database):
            raise TypeError(f"the function for the database {name!r} must return a Database, not {database!r}")
        return await stack.enter_async_context(database)


def _find_mounted(app: FastAPI) -> list[tuple[FastAPI, _Configuration]]:
    """The applications that are mounted in this one and configured, each once.

    They may be mounted in a router, or in an application that isn't configured.
    """
    found: dict[FastAPI, _Configuration] = {}
    for mounted in _iterate_mounted(app.routes):
        configuration = getattr(mounted.state, _CONFIGURATION_KEY, None)
        if isinstance(configuration, _Configuration):
            found[mounted] = configuration
        else:
            found |= dict(_find_mounted(mounted))
    return [*found.items()]


def _iterate_mounted(routes: Sequence[Any]) -> Iterator[FastAPI]:
    for each in iterate_all_routes(routes):
        route = getattr(each, "original_route", each)
        if isinstance(route, Mount | Host):
            mounted = unwrap_protected(route.app)
            if isinstance(mounted, FastAPI):
                yield mounted
            else:
                yield from _iterate_mounted(route.routes)


def _iterate_configurations(app: FastAPI) -> Iterator[_Configuration]:
    """The configurations of this application and of all that are mounted in it."""
    yield getattr(app.state, _CONFIGURATION_KEY)
    for mounted, _ in _find_mounted(app):
        yield from _iterate_configurations(mounted)


def _reject_unknown_resources(app: FastAPI, known: Collection[object]) -> None:
    """Raise `RuntimeError` if a route depends on a resource that the application doesn't open.

    Routes of mounted applications that aren't configured use the resources of this one.
    """
    for route in iterate_all_routes(app.routes):
        dependant = getattr(route, "dependant", None)
        for each in [] if dependant is None else iterate_dependants(dependant):
            if (
                isinstance(each.call, Resource)
                and each.call not in app.dependency_overrides
                and each.call.key not in known
            ):
                raise RuntimeError(
                    f"{route.path}: the application does not open the resource {each.call.name!r}: add it to "
                    "configure_app(..., resources=[...])"
                )
    for mounted in _iterate_mounted(app.routes):
        if not hasattr(mounted.state, _CONFIGURATION_KEY):
            _reject_unknown_resources(mounted, known)


def _require_extra(is_used: bool, option: str, module: str, extra: str) -> None:
    if is_used and find_spec(module) is None:
        raise ImportError(f"configure_app needs {module}: install howdah[{extra}], or pass {option}=False")
