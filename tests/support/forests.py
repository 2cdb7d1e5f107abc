"""Random forests of fewer trees, for tests whose effects are too large to need more."""

import pytest


def shrink_forests(patch: pytest.MonkeyPatch) -> None:
    """Resample forests of 4 trees instead of 16."""
    for module in ("fanova", "ablation_path"):
        patch.setattr(f"dnas.analysis.{module}.RESAMPLED_TREES", 4)
