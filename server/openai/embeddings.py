"""``POST /v1/embeddings``: vectors for texts, from the last hidden states of the served model."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from engine.protocol import Engine, EngineError
from scheduler.request import Request as EngineRequest
from scheduler.sampling_params import Pooling, SamplingParams
from server.context import ServerContext, context_of, record_of
from server.openai.admission import admit, check_accepting, check_model
from server.openai.body import read_request
from server.openai.document import documented
from server.openai.errors import bad_request
from server.openai.json_response import json_response
from server.openai.parameters import (
    MAX_CHOICES,
    check_token_ids,
    refuse_overlong,
    room_for_output,
    split_prompts,
    truncated,
)
from server.openai.schemas import EmbeddingRequest
from server.openai.shapes import Embedding, EmbeddingList, EmbeddingUsage
from server.record import RequestRecord
from server.streaming import cancel_on_disconnect

router = APIRouter(tags=["embeddings"])


@router.post(
    "/v1/embeddings",
    **documented(
        request=(EmbeddingRequest,),
        response=EmbeddingList,
        example={"input": ["A ridge is a long, narrow hill.", "What is a ridge?"]},
    ),
)
async def create_embeddings(request: Request) -> Response:
    """Embeds one text or several; each vector has length 1."""
    context, record = context_of(request), record_of(request)
    record.generation_began("embeddings")
    fields = await read_request(request, EmbeddingRequest)
    check_model(fields.model, context.model)
    check_accepting(context, record)
    texts = split_prompts(fields.input, "input")
    if len(texts) > MAX_CHOICES:
        raise bad_request(f"input has more than {MAX_CHOICES} texts.", "input")
    prompts = [await _encode(context, fields, text) for text in texts]
    requests = engine_requests(fields, prompts, record.arrival)
    admit(context, record, requests)
    vectors = await cancel_on_disconnect(
        request.receive, _embed_all(context.engine, requests, record)
    )
    if fields.dimensions not in (None, len(vectors[0])):
        raise bad_request(
            f"dimensions must be {len(vectors[0])}, the model's hidden size: it was not trained "
            "to say as much with fewer.",
            "dimensions",
        )
    num_tokens = sum(map(len, prompts))
    in_base64 = fields.encoding_format == "base64"
    return json_response(
        EmbeddingList(
            data=[
                Embedding(index=i, embedding=as_base64(vector) if in_base64 else vector)
                for i, vector in enumerate(vectors)
            ],
            model=context.model.name,
            usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        )
    )


async def _encode(
    context: ServerContext, fields: EmbeddingRequest, text: str | list[int]
) -> tuple[int, ...]:
    if isinstance(text, str):
        if fields.truncate_prompt_tokens is None:
            refuse_overlong(context.tokenizer, text, context.model, "input")
        token_ids = await context.tokenizer.encode_async(
            text, add_special_tokens=fields.add_special_tokens is not False
        )
    else:
        token_ids = check_token_ids(text, context.model, "input")
    if not token_ids:
        raise bad_request("input must not be empty.", "input")
    token_ids = truncated(token_ids, fields, context.model)
    room_for_output(context.model, len(token_ids), "input")
    return token_ids


def engine_requests(
    fields: EmbeddingRequest, prompts: Sequence[tuple[int, ...]], arrival_time: float
) -> list[EngineRequest]:
    name = f"embd-{uuid.uuid4().hex}"
    sampling = SamplingParams(max_tokens=1, seed=0, pooling=Pooling(fields.pooling or "last"))
    return [
        EngineRequest(
            request_id=f"{name}-{i}",
            prompt_token_ids=prompt,
            sampling=sampling,
            arrival_time=arrival_time,
            priority=fields.priority or 0,
            cache_salt=fields.cache_salt or "",
        )
        for i, prompt in enumerate(prompts)
    ]


async def _embed_all(
    engine: Engine, requests: Sequence[EngineRequest], record: RequestRecord
) -> list[tuple[float, ...]]:
    with engine.room_for(requests):
        tasks = [asyncio.ensure_future(_embed(engine, request, record)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _embed(
    engine: Engine, request: EngineRequest, record: RequestRecord
) -> tuple[float, ...]:
    prompt = record.submitted(request)
    async with aclosing(engine.generate(request)) as outputs:
        async for output in outputs:
            if output.details is not None and output.details.embedding:
                record.prompt_processed(len(request.prompt_token_ids), output.num_cached_tokens)
                record.choice_finished(prompt, 0, "stop")
                return output.details.embedding
    raise EngineError("The engine ended the request before it was finished.")


def as_base64(vector: Sequence[float]) -> str:
    """Little-endian float32, as OpenAI's clients ask for it."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
