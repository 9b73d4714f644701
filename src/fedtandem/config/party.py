"""[server], [[clients]]: a party's model, its training, its own data."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedtandem.config.data import DataConfig
from fedtandem.config.privacy import PrivacyConfig
from fedtandem.config.scratch import ScratchConfig
from fedtandem.config.section import FolderOrName, Section
from fedtandem.config.tuning import TuningConfig, TuningOverride


class PartyConfig(Section):
    """What the server and every client state about themselves."""

    model: FolderOrName = ""
    """Hub name, folder, or "embedded:chains-server" and its like. Left out only where `scratch` is given."""
    revision: str | None = None
    """Commit, branch or tag of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 where the device is good at it, else float32."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`: the first of cuda, mps, cpu that is there."""
    trust_remote_code: bool = False
    """Run code that comes with the model; each party decides for itself."""
    load_in_4bit: bool = False
    """Base weights in 4 bits; needs the extra `quant` and method = "lora"."""
    chat_template: bool = False
    """Wrap prompts in the tokenizer's own chat template."""
    max_length: int = Field(512, ge=8)
    """Tokens of prompt and answer; a sample whose answer does not fit is never compared."""
    tuning: TuningConfig = TuningConfig()
    """How it is trained."""
    public_tuning: TuningOverride = TuningOverride()
    """What the public phase does differently."""
    data: DataConfig | None = None
    """A client's private data; the server's own data, which it may replay. Never leaves the party."""
    privacy: PrivacyConfig = PrivacyConfig()
    """A client's own: holds beside the run's [privacy], the stricter of each."""
    scratch: ScratchConfig | None = None
    """Train a small model here in place of loading one."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        """`torch_dtype` is `dtype`; a model made from scratch is named after its shape."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "torch_dtype" in value and "dtype" not in value:
            value["dtype"] = value.pop("torch_dtype")
        scratch = value.get("scratch")
        if isinstance(scratch, dict) and not value.get("model"):
            shape = [scratch.get(key, ScratchConfig.model_fields[key].default) for key in _SHAPE]
            value["model"] = "scratch:{}-{}x{}".format(*shape)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.model:
            raise ValueError(
                "no model: set `model` to a hub name, a folder or an embedded model, or give a `scratch` table"
            )
        if self.scratch is not None and not self.model.startswith("scratch:"):
            raise ValueError(f"has a `scratch` table and model = {self.model!r}; keep one of the two")
        if self.scratch is None and self.model.startswith("scratch:"):
            raise ValueError(f"model = {self.model!r} needs a `scratch` table")
        if self.load_in_4bit and self.tuning.method == "full":
            raise ValueError('load_in_4bit trains an adapter only: set tuning.method = "lora"')
        return self


class ClientConfig(PartyConfig):
    """A client: a party with a name."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Unique; small letters, digits, - and _. Everything durable is kept under it."""


_SHAPE = ("architecture", "hidden_size", "num_hidden_layers")
