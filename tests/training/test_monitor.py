"""Signs of collapse are measured as defined, and told."""

import numpy as np
import pytest

from maskedclip.training.monitor import collapse_message, effective_rank


def test_effective_rank__of_known_spectra() -> None:
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(400, 8)))[0]
    basis -= basis.mean(axis=0)
    values = np.linalg.svd(basis, compute_uv=False)
    share = values / values.sum()
    assert effective_rank(basis) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert effective_rank(random.normal(size=(5000, 16))) == pytest.approx(16, abs=0.1)
    line = random.normal(size=(100, 1)) @ random.normal(size=(1, 16))
    assert effective_rank(line + 3.0) == pytest.approx(1, abs=1e-3)


def test_collapse_message__is_told_only_when_features_are_constant() -> None:  # P26
    assert collapse_message({"target_spread": 0.4, "target_rank": 9.0}) is None
    for figures in ({"target_spread": 0.01, "target_rank": 9.0}, {"target_spread": 0.4, "target_rank": 1.1}):
        message = collapse_message(figures)
        assert message is not None
        assert "collapsed" in message
        assert "objective.mkd_weight" in message
