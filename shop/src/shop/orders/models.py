"""Orders and their items."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from howdah import Base, Timestamps, UUIDv7PrimaryKey, Versioned, text_enum, utcnow
from howdah.tenancy import TableGrant
from shop.ledger.models import Transfer
from shop.policies import OWN_ID, customers_insert, customers_read, staff_and_system
from shop.roles import CUSTOMER_ROLE, STAFF_ROLE, SYSTEM_ROLE
from shop.users.models import User


class OrderStatus(StrEnum):
    PENDING = "pending"
    PAID = "paid"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"
    REFUNDED = "refunded"

    @property
    def counts_as_sale(self) -> bool:
        """True unless the order is cancelled or refunded."""
        return self not in (OrderStatus.CANCELLED, OrderStatus.REFUNDED)


class Order(UUIDv7PrimaryKey, Timestamps, Versioned, Base):
    """An order. `total_cents` is the sum of its items, in the smallest unit of `currency`.

    `reference` is the number of the order in another system, such as that of an imported invoice. An order with
    `cancels_id` cancels that order. It has the status `cancelled` if it cancels the whole order, otherwise `refunded`.
    """

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint("total_cents >= 0", name="total_not_negative"),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="currency_is_a_code"),
        # The included columns make a user's order summary an index-only scan.
        Index(
            "ix_orders_user_id_placed_at_id",
            *("user_id", "placed_at", "id"),
            postgresql_include=["status", "total_cents"],
        ),
        Index("ix_orders_placed_at_id", "placed_at", "id"),
        Index("ix_orders_status_placed_at_id", "status", "placed_at", "id"),
        Index("ix_orders_total_cents", "total_cents"),
        customers_read(f"user_id = {OWN_ID}"),
        customers_insert(
            f"user_id = {OWN_ID} AND status = 'pending' AND transfer_id IS NULL AND cancels_id IS NULL "
            "AND reference IS NULL"
        ),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "SELECT", "INSERT"),
        TableGrant(STAFF_ROLE, "SELECT", "INSERT"),
        TableGrant(STAFF_ROLE, "UPDATE", columns=["status", "updated_at", "version"]),
        TableGrant(SYSTEM_ROLE, "SELECT"),
        TableGrant(SYSTEM_ROLE, "UPDATE", columns=["status", "transfer_id", "updated_at", "version"]),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey(User.id))
    reference: Mapped[str | None] = mapped_column(String(64), unique=True)
    status: Mapped[OrderStatus] = mapped_column(
        text_enum(OrderStatus, name="status_is_known", length=20), default=OrderStatus.PENDING
    )
    currency: Mapped[str] = mapped_column(String(3), default="GBP")
    total_cents: Mapped[int] = mapped_column(BigInteger)
    placed_at: Mapped[datetime] = mapped_column(default=utcnow)
    cancels_id: Mapped[UUID | None] = mapped_column(ForeignKey("orders.id"), index=True)
    transfer_id: Mapped[UUID | None] = mapped_column(ForeignKey(Transfer.id), unique=True)

    user: Mapped[User] = relationship(back_populates="orders")
    items: Mapped[list[OrderItem]] = relationship(
        back_populates="order", order_by="OrderItem.line_no", cascade="all, delete-orphan", passive_deletes=True
    )


_OWN_ORDER: Final = f"SELECT FROM orders WHERE orders.id = order_items.order_id AND orders.user_id = {OWN_ID}"


class OrderItem(UUIDv7PrimaryKey, Base):
    """An item of an order. `line_no` counts from 1."""

    __tablename__ = "order_items"
    __table_args__ = (
        UniqueConstraint("order_id", "line_no"),
        CheckConstraint("quantity > 0", name="quantity_positive"),
        CheckConstraint("unit_price_cents >= 0", name="unit_price_not_negative"),
        customers_read(f"EXISTS ({_OWN_ORDER})"),
        customers_insert(f"EXISTS ({_OWN_ORDER} AND orders.status = 'pending')"),
        *staff_and_system(),
        TableGrant(CUSTOMER_ROLE, "SELECT", "INSERT"),
        TableGrant(STAFF_ROLE, "SELECT", "INSERT"),
        TableGrant(SYSTEM_ROLE, "SELECT"),
    )

    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id", ondelete="CASCADE"))
    line_no: Mapped[int]
    sku: Mapped[str] = mapped_column(String(64))
    description: Mapped[str | None] = mapped_column(String(500))
    quantity: Mapped[int]
    unit_price_cents: Mapped[int] = mapped_column(BigInteger)

    order: Mapped[Order] = relationship(back_populates="items")


# This relationship can't be defined in `shop.users.models`, because orders import users.
User.orders = relationship(Order, back_populates="user", order_by=(Order.placed_at, Order.id), passive_deletes="all")
