"""Any OpenAI-compatible server as the LLM: greedy answers through it are its own."""

from collections.abc import Iterator

import httpx
import pytest

from fedtandem.serving.tiers import build_cloud, build_device

PROMPTS = ["Q 3 + 5 * 2 A", "Q 9 - 1 + 6 A", "Q 7 m 4 A", "Q 2 + 2 A", "héllo wörld €"]


@pytest.fixture(scope="module")
def urls(lab) -> Iterator[dict[str, str]]:
    """The large model served alone, a cloud that compares with it, and a device before that."""
    config = lab.config()
    served = config.device.model_copy(
        update={"model": "embedded:chains-server", "upstream": None, "mode": "local", "served_name": "large"}
    )
    with lab.Running([lambda _: build_device(config.model_copy(update={"device": served}))], config) as llm:
        large = llm.urls["device"]

        def cloud(_: dict[str, str]):
            table = {
                "endpoint": f"{large}/v1",
                "endpoint_model": "large",
                "tokenizer": "embedded:chains-server",
            }
            return build_cloud(lab.config(cloud=table))

        def device(found: dict[str, str]):
            pointed = config.device.model_copy(update={"upstream": found["cloud"]})
            return build_device(config.model_copy(update={"device": pointed}))

        with lab.Running([cloud, device], config) as one:
            yield {"large": large, **one.urls}


def ask(url: str, model: str, prompt: str, **more: object) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24, **more}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=120)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("mode", ["exact", "cloud"])
def test_greedy_answers_are_the_servers_own(urls: dict[str, str], prompt: str, mode: str) -> None:
    alone = ask(urls["large"], "large", prompt).json()["choices"][0]
    together = ask(urls["device"], "fedtandem", prompt, mode=mode).json()
    assert together["choices"][0]["text"] == alone["text"]
    assert together["choices"][0]["finish_reason"] == alone["finish_reason"]
    if mode == "exact" and prompt.startswith("Q"):
        assert together["fedtandem"]["llm_passes"] < together["usage"]["completion_tokens"]


def test_what_such_a_server_cannot_say_is_refused(urls: dict[str, str]) -> None:
    for more, says in (({"temperature": 1}, "greedy"), ({"logprobs": 1}, "log-prob")):
        reply = ask(urls["device"], "fedtandem", PROMPTS[0], **more)
        assert reply.status_code == 400
        assert says in reply.json()["error"]["message"]
