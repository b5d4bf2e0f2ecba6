"""The options of a database: timeouts, limits, URLs, and the encoding of JSON."""

from __future__ import annotations

import socket
import tempfile
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL, literal, make_url, select, text
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from howdah import ConnectionFailed, Database, InvalidUrl, InvalidValue
from howdah_tests.support.faulty_proxy import run_proxy
from howdah_tests.support.sample_models import Order
from howdah_tests.support.sample_rows import new_user


async def setting(database: Database, name: str) -> Any:
    async with database.session() as session:
        return await session.scalar(text("SELECT current_setting(:name)"), {"name": name})


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("timezone", "UTC"),
            ("statement_timeout", "30s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "1min"),
            ("application_name", "howdah"),
            ("transaction_isolation", "read committed"),
            ("transaction_read_only", "off"),
        ],
    )
    async def test_every_session_has_timeouts_and_utc(self, name: str, value: str, real_database: Database) -> None:
        assert await setting(real_database, name) == value

    async def test_accepts_other_timeouts_in_seconds(self, database_url: str) -> None:
        async with Database(
            database_url,
            statement_timeout=1.5,
            lock_timeout=0.0001,
            idle_in_transaction_timeout=2,
            application_name="shop",
        ) as database:
            assert await setting(database, "statement_timeout") == "1500ms"
            assert await setting(database, "lock_timeout") == "1ms"  # 0 would disable the timeout
            assert await setting(database, "idle_in_transaction_session_timeout") == "2s"
            assert await setting(database, "application_name") == "shop"

    @pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout", "idle_in_transaction_timeout"])
    def test_rejects_a_timeout_of_zero(self, name: str) -> None:
        options: dict[str, Any] = {name: 0}
        with pytest.raises(ValueError, match="more than 0 seconds, or None"):
            Database("postgresql://", **options)

    @pytest.mark.parametrize(
        "options", [{"pool_size": 0}, {"max_overflow": -1}, {"pool_timeout": 0}, {"connect_timeout": -1}]
    )
    def test_rejects_a_pool_without_limits(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"pool_size must be at least 1|more than 0 seconds"):
            Database("postgresql://", **options)

    async def test_none_leaves_a_timeout_to_the_server(self, database_url: str) -> None:
        async with Database(database_url, statement_timeout=None, lock_timeout=None) as database:
            assert await setting(database, "statement_timeout") == "0"
            assert await setting(database, "lock_timeout") == "0"

    async def test_accepts_further_settings_of_the_server(self, database_url: str) -> None:
        async with Database(database_url, connect_args={"server_settings": {"work_mem": "5MB"}}) as database:
            assert await setting(database, "work_mem") == "5MB"
            assert await setting(database, "timezone") == "UTC"

    async def test_isolation_is_read_committed_if_the_server_has_another_default(self, database_url: str) -> None:
        serializable = {"server_settings": {"default_transaction_isolation": "serializable"}}
        async with Database(database_url, connect_args=serializable) as database:
            assert await setting(database, "default_transaction_isolation") == "serializable"
            assert await setting(database, "transaction_isolation") == "read committed"

    def test_the_pool_has_the_defaults_of_the_reference(self) -> None:
        pool: Any = Database("postgresql://").engine.pool
        assert pool.size() == 20
        assert pool._max_overflow == 10
        assert pool._pre_ping is True
        assert pool._recycle == 3600

    async def test_objects_stay_readable_after_a_commit(self, database: Database) -> None:
        async with database.session() as session:
            user = new_user()
            session.add(user)
            await session.commit()
        assert user.name == "Ada"


class TestUrl:
    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
    async def test_connects_with_asyncpg_for_every_scheme(self, scheme: str, database_url: str) -> None:
        url = make_url(database_url).set(drivername=scheme)
        for each in (url, url.render_as_string(hide_password=False)):
            async with Database(each) as database:
                assert database.engine.driver == "asyncpg"
                await database.ping()

    @pytest.mark.parametrize("url", ["postgresql+psycopg://", "postgresql+psycopg2://", "sqlite://", "mysql://"])
    def test_rejects_other_drivers(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"use postgresql:// or postgresql\+asyncpg://"):
            Database(url)

    async def test_may_contain_an_application_name(self, database_url: str) -> None:
        url = make_url(database_url).update_query_dict({"application_name": "from-url"})
        async with Database(url) as database:
            assert await setting(database, "application_name") == "from-url"

    async def test_may_contain_a_connect_timeout(self, database_url: str) -> None:
        async with run_proxy(database_url) as proxy:
            proxy.freeze()
            async with Database(f"{proxy.url}?connect_timeout=0.05") as database:
                with pytest.raises(ConnectionFailed) as caught:
                    await database.ping()
                assert isinstance(caught.value.orig, TimeoutError)
            proxy.thaw()
            async with Database(f"{proxy.url}?connect_timeout=0") as database:  # no timeout, as in libpq
                await database.ping()

    async def test_may_contain_the_tls_parameters_of_libpq(self, database_url: str) -> None:
        async with run_proxy(database_url) as proxy:
            for sslmode in ("disable", "prefer"):
                async with Database(f"{proxy.url}?sslmode={sslmode}") as database:
                    await database.ping()
            async with Database(f"{proxy.url}?sslmode=require") as database:  # the server of the tests has no TLS
                with pytest.raises(ConnectionFailed):
                    await database.ping()

    async def test_may_require_a_primary(self, database_url: str) -> None:
        for attributes, is_met in (("read-write", True), ("standby", False)):
            url = make_url(database_url).update_query_dict({"target_session_attrs": attributes})
            async with Database(url) as database:
                if is_met:
                    await database.ping()
                else:
                    with pytest.raises(ConnectionFailed):
                        await database.ping()

    @pytest.mark.parametrize("name", ["channel_binding", "options", "statement_cache_size", "gssencmode"])
    def test_rejects_parameters_that_the_driver_does_not_support_and_says_what_to_do(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"'{name}' isn't supported: remove it, and use connect_args"):
            Database(f"postgresql://localhost/shop?{name}=1")

    @pytest.mark.parametrize(
        ("rest", "problem"),
        [
            ("db/shop?connect_timeout=abc", "'connect_timeout' must be a number of seconds, or 0 .*, not 'abc'"),
            ("db/shop?connect_timeout=-1", "'connect_timeout' must be a number of seconds"),
            ("db/shop?connect_timeout=1&connect_timeout=2", "has the parameter 'connect_timeout' 2 times"),
            ("db/shop?sslmode=nonsense", "'sslmode' must be one of disable, allow"),
            ("db/shop?sslrootcert=/nowhere/ca.pem", "'sslrootcert' must be the path of a file that exists"),
            ("db/shop?target_session_attrs=master", "'target_session_attrs' must be one of any, primary"),
            ("db/shop?prepared_statement_cache_size=x", "must be a whole number"),
            ("db:0/shop", "'port' must be a number from 1 to 65535, not '0'"),
            ("db/shop?host=a:70000", "'port' must be a number"),
            ("db/shop?host=a:1&host=b:x", "'port' must be a number"),
            ("/shop?host=a,b&port=1,2,3", "has 2 hosts and 3 ports"),
            ("/shop?host=a:1&host=b:2&port=3", "has ports in 'host' and in 'port'"),
            ("/shop?host=:1&host=b:2", "without a name"),
            ("db:port/shop", "can't be read: write postgresql://user"),
        ],
    )
    def test_is_checked_before_any_connection_and_its_password_is_not_shown(self, rest: str, problem: str) -> None:
        with pytest.raises(InvalidUrl, match=problem) as caught:
            Database(f"postgresql://ada:s3cret@{rest}")
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("query", ["host={0}&host={1}", "host={0},{1}", "host={0}:5432&host={1}:5432"])
    async def test_may_have_several_hosts_of_which_the_first_does_not_answer(
        self, database_url: str, query: str
    ) -> None:
        """`asyncpg.connect` has one timeout for all hosts, so it would never try the second one."""
        directory = make_url(database_url).query["host"]
        database_name = make_url(database_url).database
        with tempfile.TemporaryDirectory() as frozen, socket.socket(socket.AF_UNIX) as silent:
            silent.bind(f"{frozen}/.s.PGSQL.5432")
            silent.listen()
            both = query.format(frozen, directory)
            async with Database(f"postgresql://postgres@/{database_name}?{both}", connect_timeout=0.2) as database:
                await database.ping()
                silent.accept()[0].close()
                await database.engine.dispose()
                await database.ping()  # the host that was chosen comes first
                silent.setblocking(False)
                with pytest.raises(BlockingIOError):
                    silent.accept()
            with pytest.raises(TimeoutError):  # control
                await asyncpg.connect(host=[frozen, directory], user="postgres", database=database_name, timeout=0.2)

    def test_the_password_is_not_shown(self) -> None:
        database = Database(URL.create("postgresql", "ada", "s3cret", "localhost", 5432, "shop"))
        assert "s3cret" not in repr(database.engine)


@dataclass
class Reading:
    value: float


class TestJson:
    @pytest.mark.parametrize("kind", [JSON, JSONB])
    @pytest.mark.parametrize(
        "value",
        [{"a": [1, 2.5, None, True, "é\u2028"]}, [], "null", 2**63, 10**15 + 0.5, None, {"null": [None]}],
    )
    async def test_is_read_back_unchanged(self, kind: Any, value: Any, session: AsyncSession) -> None:
        assert await session.scalar(select(literal(value, kind()))) == value

    @pytest.mark.parametrize(
        "value",
        [
            float("nan"),
            [float("inf")],
            {"a": {"b": (1, -float("inf"))}},
            Reading(float("nan")),
            2**64,
            {1: 1},
        ],
        ids=repr,
    )
    async def test_rejects_values_that_it_would_change(self, value: Any, session: AsyncSession) -> None:
        order = Order(details={"value": value})
        session.add(order)
        with pytest.raises(InvalidValue):
            await session.flush()
