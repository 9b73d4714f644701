"""[alignment]: how one party's tokens are found again in another's."""

from typing import Literal

from fedtandem.config.section import Section

Mode = Literal["bytes", "mined"]


class AlignmentConfig(Section):
    """FedMKT's token alignment."""

    mode: Mode = "bytes"
    """`bytes`: equal byte positions, exact (ours). `mined`: the paper's edit distance and dynamic time warping."""
