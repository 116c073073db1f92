"""Settings of a cluster; what runs on one is tested with grids and rasters."""

from __future__ import annotations

import pytest

from scenedistill.core.cluster import ClusterConfig, check_cluster
from scenedistill.core.errors import UserError


@pytest.mark.parametrize("gpus", [-0.5, 1.5, float("inf"), float("nan")])
def test_gpus_that_a_worker_cannot_have_are_refused(gpus: float) -> None:
    with pytest.raises(UserError, match=rf"cluster\.gpus is {gpus}; see `x --help`"):
        check_cluster(ClusterConfig(gpus=gpus), "x --help")


@pytest.mark.parametrize("gpus", [None, 0, 0.25, 1, 2.0])
def test_whole_gpus_and_shares_of_one_are_taken(gpus: float | None) -> None:
    check_cluster(ClusterConfig(gpus=gpus), "x --help")
