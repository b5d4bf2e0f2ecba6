"""The OpenAPI description."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from howdah.fastapi import Problem
from shop.transfers.schemas import BatchLineIn, BatchLineOut
from shop.users.schemas import UserIn

_REF: Final = "#/components/schemas/{model}"


class DescribedAPI(FastAPI):
    """A FastAPI whose description has the schemas that routes refer to by name: those of errors and of streams, which
    FastAPI doesn't read by itself."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            _, named = models_json_schema(
                [
                    (Problem, "serialization"),
                    (UserIn, "validation"),
                    (BatchLineIn, "validation"),
                    (BatchLineOut, "serialization"),
                ],
                ref_template=_REF,
            )
            schemas = described["components"]["schemas"]
            described["components"]["schemas"] = dict(sorted({**named["$defs"], **schemas}.items()))
        assert self.openapi_schema is not None
        return self.openapi_schema
