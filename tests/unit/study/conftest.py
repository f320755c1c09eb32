"""A cache of the study tests' own, so that nothing measured by an earlier test run is found."""

import pytest

from crosscal.paths import cache_dir


@pytest.fixture(scope="package", autouse=True)
def own_cache(tmp_path_factory):
    """Archives and task items are those of the user's cache; what is measured goes elsewhere."""
    shared, own = cache_dir(), tmp_path_factory.mktemp("cache")
    for part in ("assets", "tasks"):
        (own / part).symlink_to(shared / part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSCAL_CACHE", str(own))
        yield own
