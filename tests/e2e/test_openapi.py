"""The server keeps what its own OpenAPI document promises, whatever is sent (schemathesis)."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.server_process import ServerProcess


def _schema_conformance(ctx: Any, response: Any, case: Any) -> Any:
    """But for streams: the document describes the data of an event, as OpenAI's own does, and not
    what schemathesis makes of one."""
    if "text/event-stream" in "".join(response.headers.get("content-type", ())):
        return None
    return response_schema_conformance(ctx, response, case)


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    _schema_conformance,
]
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
EXAMPLES = 25
"""Of each operation and mode."""


def test_every_answer_is_one_that_the_document_describes(server: ServerProcess) -> None:
    document = schemathesis.openapi.from_url(f"{server.base_url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:
        for mode in MODES:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            def check(case: schemathesis.Case) -> None:
                case.call_and_validate(checks=CHECKS, timeout=30)

            try:
                check()
            except Unsatisfiable:
                # There is nothing that could be wrong about a request without a body.
                assert mode.is_negative
                assert "requestBody" not in operation.definition.raw
    server.wait_until_idle()
