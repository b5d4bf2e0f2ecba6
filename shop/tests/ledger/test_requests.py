"""Requests: their fingerprints, which are stored with the idempotency keys."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID

import pytest

from shop.ledger.requests import MAX_LINKED, TransferRequest, compute_fingerprints
from shop.ledger.service import as_linked_chain

A, B, C = (UUID(int=number) for number in (1, 2, 3))
_MOMENT: Final = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("chain", "stored"),
    [
        pytest.param(
            [TransferRequest(A, B, 100, key="k")],
            ["3daee64bede686d970d7d5c493bb3637cb7602eaa2324aed7c1275da6d208d22"],
            id="basic",
        ),
        pytest.param(
            [TransferRequest(A, B, 100, currency="GBP", description="rent", key="other", scope="client")],
            ["9f973565c176fe98b007ce1a6d28b5be3e17238f1108db045b58940100158c13"],
            id="with a currency and a description",
        ),
        pytest.param(
            [TransferRequest(A, B, 100, metadata={"b": "2", "a": "1"}, effective_at=_MOMENT)],
            ["f80c955d5d42bbff72c23a29e28980c61417facabdd36593c86ffe4fac3a5450"],
            id="with metadata and an effective time",
        ),
        pytest.param(
            [TransferRequest(A, B, 100, pending_seconds=60)],
            ["307c81f0290f6dcc4d8dabbdc6d4834e7d9d3df1570cc1188a91593f7280e008"],
            id="hold",
        ),
        pytest.param(
            [TransferRequest(A, B, None, posts=C)],
            ["705838738270c49dfeb689e208d6e4b2aba9540a72e7f76501c6fe2fe213679d"],
            id="posting",
        ),
        pytest.param(
            [TransferRequest(A, B, None, voids=C)],
            ["1868053865376d7d208b8cf6f8648bd01347a506f0494b01e7240de1e7da5ffa"],
            id="voiding",
        ),
        pytest.param(
            [TransferRequest(A, B, 5, reverses=C, description="back")],
            ["d3062bd2183afd91a604f76e5947c46f35f216d934aa117f8e40e9150cd265f5"],
            id="reversal",
        ),
        pytest.param(
            [TransferRequest(A, B, 10**5000)],
            ["efb28857df93d94f2fc42e5ae63eb15a706431c53e14e4ae80acce5fd548acd7"],
            id="an amount that is too large",
        ),
        pytest.param(
            [TransferRequest(A, B, 1, key="k", linked=True), TransferRequest(B, A, 2, key="k 1")],
            [
                "a0cb3d0495d29212f6f0e7bcb2e94ce86f680b2d88d4941ed8fea2c2c95a783a",
                "279051b9ccedc1cf3f0ac7918058434638279bc718785eb1a8a02db833d49772",
            ],
            id="chain",
        ),
    ],
)
def test_fingerprints_are_those_that_were_stored_earlier(chain: list[TransferRequest], stored: list[str]) -> None:
    assert [fingerprint.hex() for fingerprint in compute_fingerprints(chain)] == stored


def test_each_field_of_a_request_changes_the_fingerprint() -> None:
    """Except the key, its owner, the customer and `linked`. A new field of `TransferRequest` must be added here."""
    changes: dict[str, Any] = {
        "from_account_id": C,
        "to_account_id": C,
        "amount": 2,
        "currency": "GBP",
        "description": "rent",
        "reverses": C,
        "metadata": {"a": "1"},
        "effective_at": _MOMENT,
        "pending_seconds": 60,
        "posts": C,
        "voids": C,
    }
    assert changes.keys() == set(TransferRequest._fields) - {"key", "scope", "linked", "posted_by"}
    request = TransferRequest(A, B, 1)
    fingerprints = {
        name: compute_fingerprints([request._replace(**{name: value})])[0] for name, value in changes.items()
    }
    assert len({*fingerprints.values(), compute_fingerprints([request])[0]}) == len(changes) + 1


def test_a_chain_that_is_too_long_is_rejected_whole() -> None:
    requests = [TransferRequest(A, B, 1)] * MAX_LINKED
    assert len(as_linked_chain("k", requests)) == MAX_LINKED
    with pytest.raises(ValueError, match="a chain of 101 transfers is too long; link at most 100"):
        as_linked_chain("k", [*requests, TransferRequest(A, B, 1)])
