from __future__ import annotations

import pytest

from tests.server.conftest import Serve


def tool(name: str, parameters: dict[str, object] | None = None) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (
            {"tools": [tool("g")], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
        ),
        ({"tools": [tool("g")], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [tool("g")], "tool_choice": "sometimes"}, "tool_choice"),
        (
            {
                "tools": [tool("g")],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "response_format",
        ),
        ({"tools": [tool("g", {"type": "strange"})], "tool_choice": "required"}, "tools"),
        (
            {
                "tools": [tool("g", {"properties": {"a": {"type": "strange"}}})],
                "tool_choice": "required",
            },
            "tools",
        ),
        ({"tools": []}, "tools"),
    ],
    ids=str,
)
async def test_a_choice_of_what_is_not_there(
    serve: Serve, fields: dict[str, object], param: str
) -> None:
    response = await serve().chat(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_tools_that_the_template_would_not_show_are_refused(serve: Serve) -> None:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    response = await serve(template=template).chat(tools=[tool("g")])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert (await serve(template=template).chat(tools=[tool("g")], tool_choice="none")).is_success
