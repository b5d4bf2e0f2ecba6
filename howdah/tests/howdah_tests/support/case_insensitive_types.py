"""Text types that ignore case, as far as the server supports them."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

# The parts of the extension that an index and a comparison need, for a server without the extension.
_STAND_IN = """
CREATE TYPE citext;
CREATE FUNCTION citext_in(cstring) RETURNS citext AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION citext_out(citext) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION citext_recv(internal) RETURNS citext AS 'textrecv' LANGUAGE internal STABLE STRICT;
CREATE FUNCTION citext_send(citext) RETURNS bytea AS 'textsend' LANGUAGE internal STABLE STRICT;
CREATE TYPE citext (INPUT = citext_in, OUTPUT = citext_out, RECEIVE = citext_recv, SEND = citext_send,
    INTERNALLENGTH = VARIABLE, STORAGE = extended, CATEGORY = 'S', COLLATABLE = true);
CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (citext AS varchar) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (text AS citext) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (varchar AS citext) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE FUNCTION citext_cmp(citext, citext) RETURNS int4 LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT bttextcmp(lower($1::text), lower($2::text)) $$;
CREATE FUNCTION citext_eq(citext, citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT lower($1::text) = lower($2::text) $$;
CREATE FUNCTION citext_lt(citext, citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT lower($1::text) < lower($2::text) $$;
CREATE FUNCTION citext_le(citext, citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT lower($1::text) <= lower($2::text) $$;
CREATE FUNCTION citext_gt(citext, citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT lower($1::text) > lower($2::text) $$;
CREATE FUNCTION citext_ge(citext, citext) RETURNS bool LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT lower($1::text) >= lower($2::text) $$;
CREATE OPERATOR = (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_eq, COMMUTATOR = =, MERGES);
CREATE OPERATOR < (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_lt, COMMUTATOR = >);
CREATE OPERATOR <= (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_le, COMMUTATOR = >=);
CREATE OPERATOR > (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_gt, COMMUTATOR = <);
CREATE OPERATOR >= (LEFTARG = citext, RIGHTARG = citext, FUNCTION = citext_ge, COMMUTATOR = <=);
CREATE OPERATOR CLASS citext_ops DEFAULT FOR TYPE citext USING btree AS OPERATOR 1 < , OPERATOR 2 <= , OPERATOR 3 = ,
    OPERATOR 4 >= , OPERATOR 5 > , FUNCTION 1 citext_cmp(citext, citext);
"""


async def create_citext(session: AsyncSession) -> None:
    """Create the type `citext`: from the extension, or one that compares in the same way."""
    try:
        async with session.begin_nested():
            await session.execute(text("CREATE EXTENSION citext"))
    except DBAPIError:
        for statement in _STAND_IN.split(";\n"):
            if statement.strip():
                await session.execute(text(statement))


async def create_nondeterministic_collation(session: AsyncSession) -> bool:
    """Create the collation `ignores_case`. Returns False if the server was built without ICU."""
    try:
        async with session.begin_nested():
            await session.execute(
                text(
                    "CREATE COLLATION ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
                )
            )
    except DBAPIError:
        return False
    return True
