"""What all sections have in common: frozen, closed to unknown keys, each field documented under itself."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict


class IsPath:
    """Marks a text as a file or folder: relative ones belong to the file that states them."""


class IsPathOrName:
    """Marks a text as a folder where there is one (or it begins with `.` or `~`), else as a hub name."""


FilePath = Annotated[str, IsPath()]
FolderOrName = Annotated[str, IsPathOrName()]


class Section(BaseModel):
    """Base of every section; the docstring under a field is its description in the published JSON Schema."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
