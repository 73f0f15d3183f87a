"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.context import context_of
from server.openai.admission import check_model
from server.openai.document import documented
from server.openai.json_response import json_response
from server.openai.shapes import ModelCard, ModelList
from server.served_model import ServedModel

router = APIRouter(tags=["models"])


def model_card(model: ServedModel) -> ModelCard:
    return ModelCard(id=model.name, created=model.created, max_model_len=model.max_model_len)


@router.get("/v1/models", **documented(response=ModelList))
async def list_models(request: Request) -> Response:
    """The model that is served."""
    return json_response(ModelList(data=[model_card(context_of(request).model)]))


@router.get("/v1/models/{model:path}", **documented(response=ModelCard))
async def retrieve_model(request: Request, model: str) -> Response:
    """The model that is served, asked for by its name, which may contain slashes."""
    served = context_of(request).model
    check_model(model, served)
    return json_response(model_card(served))
