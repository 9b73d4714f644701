"""The built-in names of `[selection]`, where nothing has to be imported to list them."""

TEACHERS = ("dual_min_ce", "all", "none")
"""Who teaches an item."""
HEURISTICS = (
    "all", "all_matched", "random", "confident_gap", "verified_gap", "gap", "gap_band", "highest_loss", "lowest_loss",
    "rho_holdout", "ifd", "oracle_stratum",
)  # fmt: skip
"""Which items are learnt: formulas without memory."""
LEARNING = ("lada", "lada_shuffled", "linucb", "cluster_ucb")
"""Which items are learnt: selectors that are told what their choice was worth."""
SELECTORS = HEURISTICS + LEARNING
