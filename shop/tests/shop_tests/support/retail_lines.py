"""A line of a retail file that is a sale."""

from __future__ import annotations

from typing import Final

A_SALE: Final = {
    "Invoice": "500001",
    "StockCode": "22111",
    "Description": "SCOTTIE DOG",
    "Quantity": "2",
    "InvoiceDate": "2010-01-05 10:30:00",
    "Price": "4.95",
    "Customer ID": "13085.0",
    "Country": "United Kingdom",
}
