"""The hub's library turned to an empty cache, offline or with a fake hub."""

import pytest
from huggingface_hub import close_session, constants

from tests.unit.models.fake_hub import FakeHub, serving


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty hub cache; no network, and no token."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    close_session()
    yield cache
    close_session()


@pytest.fixture
def fake_hub(hub_cache, monkeypatch):
    """A hub on this machine, and an empty cache."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(FakeHub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
        close_session()
