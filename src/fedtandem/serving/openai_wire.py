"""OpenAI's wire format, as far as it is served: requests checked field by field, answers and chunks built.

A field that would change the answer and is not served is refused, never ignored.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Mode = Literal["exact", "bounded", "fedhlm", "local", "cloud"]
Text = Annotated[str, Field(max_length=1 << 20)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
SEED = 2**63 - 1
ONLY = {"top_p": 1, "n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""Fields that are taken with the value that changes nothing, and with no other."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False
    """Taken and of no effect."""


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class _Function(_Strict):
    name: Name
    description: Annotated[str, Field(max_length=4096)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Strict):
    """One of `tools`."""

    type: Literal["function"]
    function: _Function


class _Called(_Strict):
    name: Name
    arguments: Text


class ToolCall(_Strict):
    """One of an earlier answer's."""

    id: Annotated[str, Field(max_length=128)]
    type: Literal["function"]
    function: _Called


class _Named(_Strict):
    name: Name


class ToolChoice(_Strict):
    """`tool_choice` where it names one."""

    type: Literal["function"]
    function: _Named


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    refusal: None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise ValueError("content may be missing only where tool_calls are")
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("tool_calls are the assistant's")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("role tool and tool_call_id go together")
        return self

    @property
    def text(self) -> str:
        """Its parts together."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or [])


class _Sampling(_Strict):
    """What chat and completion requests share."""

    model: Annotated[str, Field(max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    """Only 1: truncated laws are not served."""
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    seed: Annotated[int, Field(ge=-SEED, le=SEED)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    mode: Mode | None = None
    """fedtandem: exact, bounded, fedhlm, local or cloud."""
    eps: Annotated[float, Field(gt=0, le=1)] | None = None
    """fedtandem: of `bounded`."""
    max_cloud_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """fedtandem: of the tokens, how many the LLM may verify; for `bounded` and `fedhlm`."""
    peer: Literal["off", "draft", "answer"] | None = None
    """fedtandem: whether peers are asked."""
    privacy: Literal["local-only"] | None = None
    """fedtandem: nothing leaves the device."""
    on_outage: Literal["error", "stall", "degrade"] | None = None
    """fedtandem: what happens without the LLM."""
    trace: bool | None = None
    """fedtandem: whether whose each token is, u and τ are told."""

    @property
    def stops(self) -> list[str]:
        """As a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=512)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    """These three go to the LLM's own server alone."""
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    store: Literal[False] | None = None


RELAYED = (
    "messages", "tools", "tool_choice", "parallel_tool_calls", "temperature", "max_tokens", "stop", "seed",
)  # fmt: skip
"""Fields of a request with tools that the LLM's server is told."""


class RelayRequest(_Strict):
    """POST /v1/relay, between tiers."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=512)]
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-SEED, le=SEED)] | None = None


class CompletionRequest(_Sampling):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: None = None


class EmbeddingRequest(_Strict):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(max_length=256)]
    input: (
        Annotated[str, Field(min_length=1, max_length=1 << 20)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1 << 16)]], Field(min_length=1, max_length=256)
        ]
        | Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=8192)]
        | Annotated[
            list[
                Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=8192)]
            ],
            Field(min_length=1, max_length=256),
        ]
    )
    encoding_format: Literal["float", "base64"] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None


def chat_logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """`logprobs` of a chat choice, from `answering.Token.as_dict`."""
    return {"content": tokens, "refusal": None}


def completion_logprobs(tokens: list[dict[str, Any]], offset: int) -> dict[str, Any]:
    """`logprobs` of a completion choice; `offset` is where the first token begins in the answer."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in token["top_logprobs"]} for token in tokens
        ],
        "text_offset": offsets,
    }
