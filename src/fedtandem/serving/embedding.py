"""/v1/embeddings: the SLM's own view of texts."""

import base64
from typing import Any

import numpy as np

from fedtandem.serving.answering import ENCODING
from fedtandem.serving.device import Device
from fedtandem.serving.faults import Refusal
from fedtandem.serving.openai_wire import EmbeddingRequest
from fedtandem.serving.turns import TURNS


def embedded(device: Device, asked: EmbeddingRequest) -> dict[str, Any]:
    """The mean of the SLM's last hidden states over each text, as OpenAI writes embeddings."""
    tokenizer = device.lm.tokenizer
    several = (
        asked.input
        if isinstance(asked.input, list) and not isinstance(asked.input[0], int)
        else [asked.input]
    )
    ids = []
    for i, text in enumerate(several):
        if isinstance(text, str):
            with ENCODING:
                ids.append(tokenizer.encode_prompt(text))
        else:
            ids.append(np.array(text, np.int64))
            if int(ids[-1].max()) >= tokenizer.vocab_size:
                raise Refusal(
                    400, f"input {i} holds a token id beyond the vocabulary.", "bad_request", "input"
                )
        limit = device.batcher.reader.limit
        if limit is not None and len(ids[-1]) > limit:
            raise Refusal(400, f"input {i} has {len(ids[-1])} tokens, the model's context holds {limit}.",
                          "context_length_exceeded", "input")  # fmt: skip
    with TURNS.away():
        vectors = device.lm.embed(ids)
    rows = []
    for i, vector in enumerate(vectors):
        packed: Any = vector.tolist()
        if asked.encoding_format == "base64":
            packed = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        rows.append({"object": "embedding", "index": i, "embedding": packed})
    total = sum(map(len, ids))
    usage = {"prompt_tokens": total, "total_tokens": total}
    return {"object": "list", "data": rows, "model": asked.model, "usage": usage}
