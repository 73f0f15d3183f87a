"""JSON schemas of many kinds, for structured outputs."""

from __future__ import annotations

import random
from typing import Any


def random_schema(chooser: random.Random, depth: int = 0) -> dict[str, Any]:
    """Nested objects, arrays, enums, numbers, text that is not ASCII."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "anyOf"]
    kind = chooser.choice([*kinds, "object", "object", "array"] if depth < 3 else kinds)
    if depth == 0:
        kind = "object"
    match kind:
        case "object":
            names = chooser.sample(["name", "größe", "数", "a b", 'q"', "x1", "emoji🙂"], 3)
            return {
                "type": "object",
                "properties": {name: random_schema(chooser, depth + 1) for name in names},
                "required": names[: chooser.randint(0, 3)],
                "additionalProperties": False,
            }
        case "array":
            items = random_schema(chooser, depth + 1)
            return {
                "type": "array",
                "items": items,
                "minItems": chooser.randint(0, 2),
                "maxItems": 3,
            }
        case "enum":
            return {"enum": chooser.sample(["rot", "grün", "blå", 1, 2.5, None, True], 3)}
        case "const":
            return {"const": chooser.choice(["ein\nText", 7, False])}
        case "anyOf":
            return {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}]}
        case "string":
            return {"type": "string", "maxLength": chooser.randint(1, 12)}
        case "integer":
            low = chooser.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + chooser.randint(0, 300)}
        case "number":
            return {"type": "number", "minimum": 0, "maximum": 1}
        case _:
            return {"type": kind}
