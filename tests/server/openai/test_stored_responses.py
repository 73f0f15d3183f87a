"""``/v1/responses`` that are kept: fetched, cancelled, deleted, made in the background."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from engine.protocol import EngineUnavailableError
from server.auth import ApiKeys
from server.openai.responses_api.store import ResponseStore
from tests.server.conftest import Serve, Served, on_socket
from tests.server.openai.test_responses import named_events, respond, stream_of, text_of


async def test_a_stored_response_is_retrieved_and_deleted(serve: Serve) -> None:
    served = serve()
    response = (await respond(served)).json()
    path = f"/v1/responses/{response['id']}"
    assert (await served.client.get(path)).json() == response
    deleted = await served.client.delete(path)
    assert deleted.json() == {"id": response["id"], "object": "response", "deleted": True}
    for gone in (
        await served.client.get(path),
        await served.client.delete(path),
        await served.client.post(f"{path}/cancel"),
        await served.client.get(f"{path}/input_items"),
    ):
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "response_not_found")
    refused = await respond(served, previous_response_id=response["id"])
    assert refused.status_code == 404
    assert refused.json()["error"]["param"] == "previous_response_id"


async def test_a_streamed_response_is_stored_unless_told_otherwise(serve: Serve) -> None:
    served = serve()
    for store, status in ((None, 200), (True, 200), (False, 404)):
        last = (await stream_of(served, store=store))[-1]["response"]
        retrieved = await served.client.get(f"/v1/responses/{last['id']}")
        assert retrieved.status_code == status
        assert status == 404 or retrieved.json() == last


async def wait_for(served: Served, response_id: str, *states: str) -> dict[str, Any]:
    for _ in range(500):
        response = (await served.client.get(f"/v1/responses/{response_id}")).json()
        if response["status"] in states:
            return dict(response)
        await asyncio.sleep(0.005)
    raise AssertionError(f"still {response['status']}")


async def test_a_response_in_the_background_is_fetched_later(serve: Serve) -> None:
    gate = asyncio.Semaphore(0)
    served = serve("It is 4.", gate=gate)
    begun = (await respond(served, background=True)).json()
    assert (begun["status"], begun["background"], begun["output"]) == ("queued", True, [])
    refused = await respond(served, previous_response_id=begun["id"])
    assert refused.status_code == 400
    gate.release()
    await wait_for(served, begun["id"], "in_progress")
    for _ in range(50):
        gate.release()
    ended = await wait_for(served, begun["id"], "completed")
    assert text_of(ended) == "It is 4."
    again = (await served.client.post(f"/v1/responses/{begun['id']}/cancel")).json()
    assert again == ended
    metrics = (await served.client.get("/metrics")).text
    assert re.search(r'requests_total{.*"responses".*"completed".*} 1.0', metrics)


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_a_cancelled_response_stops_the_engine(serve: Serve, how: str) -> None:
    gate = asyncio.Semaphore(4)
    served = serve("one two three four", ends=False, gate=gate)
    begun = (await respond(served, background=True)).json()
    await wait_for(served, begun["id"], "in_progress")
    path = f"/v1/responses/{begun['id']}"
    if how == "cancel":
        assert (await served.client.post(f"{path}/cancel")).json()["status"] == "cancelled"
        assert (await served.client.post(f"{path}/cancel")).json()["status"] == "cancelled"
    else:
        assert (await served.client.delete(path)).status_code == 200
        assert (await served.client.get(path)).status_code == 404
    assert served.engine.num_running == 0
    assert served.engine.aborted == [served.engine.requests[0].request_id]


async def test_only_a_response_in_the_background_is_cancelled(serve: Serve) -> None:
    served = serve()
    response = (await respond(served)).json()
    refused = await served.client.post(f"/v1/responses/{response['id']}/cancel")
    assert refused.status_code == 400


async def test_a_response_in_the_background_that_fails_says_why(serve: Serve) -> None:
    served = serve(fail_after=0, failure=EngineUnavailableError("the queue is full"))
    begun = (await respond(served, background=True)).json()
    failed = await wait_for(served, begun["id"], "failed")
    assert failed["error"] == {"code": "service_unavailable", "message": "the queue is full"}
    metrics = (await served.client.get("/metrics")).text
    assert re.search(r'requests_total{.*"responses".*"failed".*} 1.0', metrics)


async def test_a_stream_in_the_background_is_read_again_from_any_event(serve: Serve) -> None:
    served = serve("It is 4.")
    events = await stream_of(served, background=True)
    assert [event["type"] for event in events[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert events[-1]["type"] == "response.completed"
    path = f"/v1/responses/{events[0]['response']['id']}"
    whole = await served.client.get(path, params={"stream": "true"})
    assert named_events(whole.text) == events
    rest = await served.client.get(path, params={"stream": "true", "starting_after": "3"})
    assert named_events(rest.text) == events[4:]
    nothing = await served.client.get(path, params={"stream": "true", "starting_after": "999"})
    assert (nothing.status_code, nothing.text) == (200, "")


async def test_a_stream_in_the_background_outlives_its_reader(serve: Serve) -> None:
    gate = asyncio.Semaphore(4)
    served = serve("one two three four five", gate=gate)
    async with on_socket(served.app) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"input": "Hi", "stream": True, "background": True}
        async with client.stream("POST", "/v1/responses", json=body) as response:
            lines = response.aiter_lines()
            created = [await anext(lines) for _ in range(2)][1]
        response_id = json.loads(created.removeprefix("data: "))["response"]["id"]
        for _ in range(50):
            gate.release()
        ended = await wait_for(served, response_id, "completed")
    assert text_of(ended) == "one two three four five"


async def test_only_streams_in_the_background_are_read_again(serve: Serve) -> None:
    served = serve()
    response = (await respond(served)).json()
    path = f"/v1/responses/{response['id']}"
    for params, param in (
        ({"stream": "true"}, "stream"),
        ({"stream": "maybe"}, "stream"),
        ({"starting_after": "1"}, "starting_after"),
        ({"stream": "true", "starting_after": "-1"}, "starting_after"),
    ):
        refused = await served.client.get(path, params=params)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_many_at_once_do_not_slip_past_the_bound(serve: Serve) -> None:
    """A form is compiled in a thread, so that all requests are looked at before one runs."""
    served = serve(ends=False, gate=asyncio.Semaphore(0))
    served.app.state.context.responses = ResponseStore(max_running=3)
    form = {"format": {"type": "json_object"}}
    answers = await asyncio.gather(*(respond(served, background=True, text=form) for _ in range(8)))
    begun = [answer.json()["id"] for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(begun) == 3
    assert {answer.status_code for answer in refused} == {503}
    assert all("retry-after" in answer.headers for answer in refused)
    for response_id in begun:
        await served.client.delete(f"/v1/responses/{response_id}")
    assert (await respond(served, background=True)).status_code == 200


@pytest.mark.parametrize("how", ["whole", "streamed", "background"])
async def test_to_the_holders_of_other_keys_a_response_does_not_exist(
    serve: Serve, how: str
) -> None:
    served = serve(api_keys=ApiKeys(["first", "second"]))
    own, other = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
    body = {"input": "Hi", "background": how == "background", "stream": how == "streamed"}
    answer = await served.client.post("/v1/responses", json=body, headers=own)
    is_streamed = how == "streamed"
    response = named_events(answer.text)[-1]["response"] if is_streamed else answer.json()
    path = f"/v1/responses/{response['id']}"

    async def statuses(headers: dict[str, str]) -> list[int]:
        asked = [
            await served.client.get(path, headers=headers),
            await served.client.get(f"{path}/input_items", headers=headers),
        ]
        for route in ("/v1/responses", "/v1/responses/input_tokens"):
            going_on = {"input": "And?", "previous_response_id": response["id"]}
            asked.append(await served.client.post(route, json=going_on, headers=headers))
        return [answer.status_code for answer in asked]

    for _ in range(500):
        if (await served.client.get(path, headers=own)).json()["status"] == "completed":
            break
        await asyncio.sleep(0.005)
    assert await statuses(other) == [404] * 4
    assert (await served.client.post(f"{path}/cancel", headers=other)).status_code == 404
    assert (await served.client.delete(path, headers=other)).status_code == 404
    assert await statuses(own) == [200] * 4
