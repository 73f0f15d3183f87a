"""``POST /tokenize`` and ``POST /detokenize``, in vLLM's shapes."""

from __future__ import annotations

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from server.context import context_of
from server.openai.admission import check_model
from server.openai.body import parse_request, read_object, read_request
from server.openai.conversation import encode_conversation
from server.openai.document import documented
from server.openai.json_response import json_response
from server.openai.parameters import check_token_ids
from server.openai.schemas import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest
from server.openai.shapes import DetokenizeResponse, TokenizeResponse

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    **documented(
        request=(TokenizeRequest, TokenizeChatRequest),
        response=TokenizeResponse,
        example={"prompt": "Hello, world"},
    ),
)
async def tokenize(request: Request) -> Response:
    """The token ids of a prompt, or of a conversation under the model's chat template."""
    context = context_of(request)
    body = await read_object(request)
    fields: TokenizeRequest | TokenizeChatRequest
    if "messages" in body:
        fields = parse_request(body, TokenizeChatRequest)
        check_model(fields.model, context.model)
        token_ids = await encode_conversation(context, fields, with_tools=True)
    else:
        fields = parse_request(body, TokenizeRequest)
        check_model(fields.model, context.model)
        token_ids = await context.tokenizer.encode_async(
            fields.prompt, add_special_tokens=fields.add_special_tokens is not False
        )
    strings = [context.tokenizer.token(token_id) for token_id in token_ids]
    return json_response(
        TokenizeResponse(
            count=len(token_ids),
            max_model_len=context.model.max_model_len,
            tokens=token_ids,
            token_strs=strings if fields.return_token_strs else UNSET,
        )
    )


@router.post(
    "/detokenize",
    **documented(
        request=(DetokenizeRequest,),
        response=DetokenizeResponse,
        example={"tokens": [1, 2, 3]},
    ),
)
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    context = context_of(request)
    fields = await read_request(request, DetokenizeRequest)
    check_model(fields.model, context.model)
    token_ids = check_token_ids(fields.tokens, context.model, "tokens")
    text = await context.tokenizer.decode_async(token_ids, skip_special_tokens=False)
    return json_response(DetokenizeResponse(prompt=text))
