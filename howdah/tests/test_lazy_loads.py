"""Relationships raise on a lazy load, but a flush loads what it needs, as with plain SQLAlchemy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, insert, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    backref,
    mapped_column,
    relationship,
    selectinload,
)

from howdah import AsyncRepository, Base


class WithHowdah(Base):
    __abstract__ = True
    metadata = MetaData()


class Plain(DeclarativeBase):
    """Control: the base of plain SQLAlchemy. Its flush loads what it needs."""


BASES: list[Any] = [WithHowdah, Plain]
OWNED: dict[str, Any] = {"cascade": "all, delete-orphan"}


def number(**options: Any) -> Any:
    return mapped_column(Integer, primary_key=True, autoincrement=False, **options)


def tree(base: Any, name: str, *, ondelete: str | None = None, onupdate: str | None = None, **sides: Any) -> Any:
    """A class of nodes that refer to their parent. `children` and `parent` are the options of relationships."""
    table = f"{name}_nodes"
    attributes: dict[str, Any] = {
        "__tablename__": table,
        "id": number(),
        "parent_id": mapped_column(ForeignKey(f"{table}.id", ondelete=ondelete, onupdate=onupdate)),
    }
    if "children" in sides:
        attributes["children"] = relationship(lambda: node, **sides["children"])
    if "parent" in sides:
        attributes["parent"] = relationship(lambda: node, remote_side=lambda: node.id, **sides["parent"])
    if "backref" in sides:
        other = backref("parent", remote_side=lambda: node.id)
        attributes["children"] = relationship(lambda: node, backref=other, **sides["backref"])
    node: Any = type(f"{name.title()}Node", (base,), attributes)
    return node


def both(*, parent: dict[str, Any] | None = None, **children: Any) -> dict[str, dict[str, Any]]:
    return {
        "children": {"back_populates": "parent", **children},
        "parent": {"back_populates": "children", **(parent or {})},
    }


TREES: dict[str, dict[str, Any]] = {
    "owned": both(**OWNED),
    "cascading": both(cascade="all"),
    "free": both(),
    "downwards": {"children": OWNED},
    "upwards": {"parent": {}},
    "backref": {"backref": OWNED},
    "passive": {"ondelete": "CASCADE", **both(**OWNED, passive_deletes=True)},
    "untouched": {"ondelete": "CASCADE", **both(passive_deletes="all")},
    "updated": both(**OWNED, post_update=True, parent={"post_update": True}),
    "explicit": both(**OWNED, lazy="raise", parent={"lazy": "raise"}),
}
# plain SQLAlchemy itself rejects lazy="raise" in a flush, so its control has the default
EXPLICIT_CONTROL = both(**OWNED)

NODES = {
    base: {
        name: tree(base, name, **(EXPLICIT_CONTROL if base is Plain and name == "explicit" else options))
        for name, options in TREES.items()
    }
    for base in BASES
}


def tables_of(classes: Any) -> list[Table]:
    mappers = [inspect(each) for each in (classes.values() if isinstance(classes, dict) else [classes])]
    tables = {mapper.local_table for mapper in mappers}
    tables |= {prop.secondary for mapper in mappers for prop in mapper.relationships if prop.secondary is not None}
    return [table for table in mappers[0].local_table.metadata.sorted_tables if table in tables]


async def run(session: AsyncSession, scenario: Any, classes: Any) -> Any:
    """The rows in the tables of these classes after the scenario, or the class of its error."""
    savepoint = await session.begin_nested()
    try:
        await scenario(session, classes)
        await session.flush()
        return {
            table.name: sorted(map(tuple, await session.execute(select(table))), key=repr)
            for table in tables_of(classes)
        }
    except (DBAPIError, AttributeError, TypeError) as error:
        return type(error)
    finally:
        await savepoint.rollback()
        session.expunge_all()  # deleted rows exist again


async def assert_same_outcomes(session: AsyncSession, scenarios: dict[str, Any], ours: Any, plain: Any) -> None:
    tables = tables_of(ours)
    await (await session.connection()).run_sync(lambda connection: WithHowdah.metadata.create_all(connection, tables))
    for name, scenario in scenarios.items():
        expected = await run(session, scenario, plain)
        assert await run(session, scenario, ours) == expected, name


async def plant(session: AsyncSession, node: Any) -> None:
    """Insert two trees: 1 has the children 2 and 5, 2 has 3, 3 has 4; 6 has no children."""
    rows = [(1, None), (2, 1), (3, 2), (4, 3), (5, 1), (6, None)]
    await session.execute(insert(node), [{"id": id, "parent_id": parent_id} for id, parent_id in rows])


def loaded(node: Any, depth: int) -> list[Any]:
    return [selectinload(node.children, recursion_depth=depth)] if depth and hasattr(node, "children") else []


def deleting(*ids: int, depth: int = 0, everything: bool = False) -> Any:
    """A scenario that loads nodes, with `depth` generations or together with all other rows, and deletes them."""

    async def scenario(session: AsyncSession, node: Any) -> None:
        await plant(session, node)
        others = (await session.scalars(select(node).options(*loaded(node, depth)))).all() if everything else ()
        found = (await session.scalars(select(node).where(node.id.in_(ids)).options(*loaded(node, depth)))).all()
        if len(ids) == 1:
            await AsyncRepository(session, node).delete(found[0])
            return
        for each in sorted(found, key=lambda each: ids.index(each.id)):
            await session.delete(each)
        await session.flush()
        del others

    return scenario


async def removing(session: AsyncSession, node: Any) -> None:
    await plant(session, node)
    (root,) = await session.scalars(select(node).where(node.id == 1).options(*loaded(node, 1)))
    root.children.remove(next(child for child in root.children if child.id == 2))


async def moving(session: AsyncSession, node: Any) -> None:
    await plant(session, node)
    child, other = (await session.scalars(select(node).where(node.id.in_([2, 6])).order_by(node.id))).all()
    child.parent = other


async def orphaning(session: AsyncSession, node: Any) -> None:
    await plant(session, node)
    (child,) = await session.scalars(select(node).where(node.id == 2))
    child.parent = None


async def replacing(session: AsyncSession, node: Any) -> None:
    await plant(session, node)
    (root,) = await session.scalars(select(node).where(node.id == 1).options(*loaded(node, 1)))
    root.children = [node(id=7, children=[node(id=8)])]


async def merging(session: AsyncSession, node: Any) -> None:
    await plant(session, node)
    await session.merge(node(id=1, children=[node(id=2, children=[node(id=9)])]))


async def refreshing(session: AsyncSession, node: Any) -> None:
    await plant(session, node)
    (root,) = await session.scalars(select(node).where(node.id == 1).options(*loaded(node, 2)))
    await session.refresh(root)
    if hasattr(node, "children"):
        await session.refresh(root, ["children"])
    await session.delete(root)


async def deleting_expired(session: AsyncSession, node: Any) -> None:
    await plant(session, node)
    (root,) = await session.scalars(select(node).where(node.id == 1).options(*loaded(node, 2)))
    session.expire_all()
    await session.delete(root)


SCENARIOS: dict[str, Any] = {
    "root": deleting(1),
    "root with children": deleting(1, depth=1),
    "root with all": deleting(1, depth=3),
    "root, all rows loaded": deleting(1, everything=True),
    "middle": deleting(2),
    "middle with all": deleting(2, depth=3),
    "leaf": deleting(4),
    "two, upwards": deleting(4, 3),
    "two, downwards": deleting(3, 4),
    "all of a branch": deleting(1, 2, 3, 4, 5),
    "all of a branch, loaded": deleting(1, 5, 2, 3, 4, everything=True, depth=1),
    "remove": removing,
    "move": moving,
    "orphan": orphaning,
    "replace": replacing,
    "merge": merging,
    "refresh": refreshing,
    "expired": deleting_expired,
}


@pytest.mark.parametrize("name", TREES)
async def test_a_tree_is_written_as_by_plain_sqlalchemy(session: AsyncSession, name: str) -> None:
    await assert_same_outcomes(session, SCENARIOS, NODES[WithHowdah][name], NODES[Plain][name])


@pytest.mark.parametrize("name", ["owned", "backref", "cascading", "passive", "explicit"])
async def test_a_tree_is_deleted_with_all_its_descendants(session: AsyncSession, name: str) -> None:
    node = NODES[WithHowdah][name]
    await (await session.connection()).run_sync(node.__table__.create)
    for depth in range(4):
        remaining = await run(session, deleting(1, depth=depth), node)
        assert remaining[node.__tablename__] == [(6, None)]


def blog(base: Any) -> Any:
    """Posts with tags (many-to-many), a summary (one-to-one), and comments with an author (many-to-one)."""
    tagging = Table(
        "taggings",
        base.metadata,
        Column("post_id", ForeignKey("posts.id"), primary_key=True),
        Column("tag_id", ForeignKey("tags.id"), primary_key=True),
    )
    tag: Any = type(
        "BlogTag",
        (base,),
        {
            "__tablename__": "tags",
            "id": number(),
            "posts": relationship(lambda: post, secondary=tagging, back_populates="tags"),
        },
    )
    summary: Any = type(
        "BlogSummary",
        (base,),
        {
            "__tablename__": "summaries",
            "id": number(),
            "post_id": mapped_column(ForeignKey("posts.id"), nullable=False),
            "post": relationship(lambda: post, back_populates="summary"),
        },
    )
    author: Any = type(
        "BlogAuthor", (base,), {"__tablename__": "authors", "name": mapped_column(String, primary_key=True)}
    )
    comment: Any = type(
        "BlogComment",
        (base,),
        {
            "__tablename__": "comments",
            "id": number(),
            "post_id": mapped_column(ForeignKey("posts.id")),
            "author_name": mapped_column(ForeignKey("authors.name", onupdate="NO ACTION", deferrable=True)),
            "post": relationship(lambda: post, back_populates="comments"),
            # the unit of work updates the references, not PostgreSQL
            "author": relationship(lambda: author, passive_updates=False, cascade="all"),
        },
    )
    post: Any = type(
        "BlogPost",
        (base,),
        {
            "__tablename__": "posts",
            "id": number(),
            "tags": relationship(lambda: tag, secondary=tagging, back_populates="posts", cascade="all"),
            "summary": relationship(lambda: summary, back_populates="post", uselist=False, **OWNED),
            "comments": relationship(lambda: comment, back_populates="post"),
        },
    )
    return {"Tag": tag, "Summary": summary, "Author": author, "Comment": comment, "Post": post}


BLOGS = {base: blog(base) for base in BASES}


async def publish(session: AsyncSession, of: Any) -> None:
    tags = [of["Tag"](id=1), of["Tag"](id=2)]
    ann = of["Author"](name="Ann")
    for id in (1, 2):
        comments = [of["Comment"](id=id, author=ann)]
        session.add(of["Post"](id=id, tags=tags[:id], summary=of["Summary"](id=id), comments=comments))
    await session.flush()
    session.expunge_all()


def on_blog(name: str, id: Any, act: Callable[[AsyncSession, Any, Any], Awaitable[None]], *load: str) -> Any:
    async def scenario(session: AsyncSession, of: Any) -> None:
        await publish(session, of)
        cls = of[name]
        options = [selectinload(getattr(cls, each)) for each in load]
        (found,) = await session.scalars(select(cls).where(inspect(cls).primary_key[0] == id).options(*options))
        await act(session, found, of)

    return scenario


async def delete(session: AsyncSession, found: Any, _of: Any) -> None:
    await session.delete(found)


async def rename(_session: AsyncSession, found: Any, _of: Any) -> None:
    found.name = "Bea"


async def resummarize(_session: AsyncSession, found: Any, of: Any) -> None:
    found.summary = of["Summary"](id=3)


async def untag(_session: AsyncSession, found: Any, _of: Any) -> None:
    found.tags.pop()


async def detach(_session: AsyncSession, found: Any, _of: Any) -> None:
    found.post = None


BLOG_SCENARIOS: dict[str, Any] = {
    "post": on_blog("Post", 1, delete),
    "post with tags": on_blog("Post", 1, delete, "tags"),
    "post with all": on_blog("Post", 2, delete, "tags", "summary", "comments"),
    "tag": on_blog("Tag", 2, delete),
    "tag with posts": on_blog("Tag", 2, delete, "posts"),
    "summary": on_blog("Summary", 1, delete),
    "summary replaced": on_blog("Post", 1, resummarize, "summary"),
    "summary replaced, not loaded": on_blog("Post", 1, resummarize),
    "summary detached": on_blog("Summary", 1, detach),
    "untagged": on_blog("Post", 2, untag, "tags"),
    "comment": on_blog("Comment", 1, delete),
    "author": on_blog("Author", "Ann", delete),
    "author renamed": on_blog("Author", "Ann", rename),
    "comment detached": on_blog("Comment", 1, detach),
}


async def test_other_relationships_are_written_as_by_plain_sqlalchemy(session: AsyncSession) -> None:
    await assert_same_outcomes(session, BLOG_SCENARIOS, BLOGS[WithHowdah], BLOGS[Plain])
