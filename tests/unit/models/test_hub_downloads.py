"""Hub ids fetched from a hub on this machine: which files come, and what is said when they may not or do not."""

import pytest

from crosscal import load_model
from crosscal.errors import InputError
from crosscal.models import find_config, find_folder
from tests.unit.families import save_tiny
from tests.unit.models.fake_hub import COMMIT, CONVERTED, Repository

NAME = "meta-llama/Llama-2-7b-hf"


def published(folder, **access):
    """A model's files in shards, with other formats of the same weights beside them, as many repositories have them."""
    save_tiny(folder, max_shard_size="20KB")
    repository = Repository.of(folder, **access)
    others = ("pytorch_model.bin", "consolidated.safetensors", "original/params.json", "modeling_own.py", "README.md")
    repository.files[COMMIT] |= dict.fromkeys(others, b"other")
    return repository


def test_only_safetensors_config_and_tokenizer_are_fetched_and_only_once(fake_hub, tmp_path):
    fake_hub.repositories[NAME] = published(tmp_path / "made")
    expected = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert find_config(NAME).num_hidden_layers == 3
    assert not [file for file in fake_hub.fetched if file.endswith(".safetensors")]
    loaded = load_model(NAME, dtype="float32")
    assert sorted(fake_hub.fetched) == expected
    assert loaded.fingerprint == load_model(tmp_path / "made", dtype="float32").fingerprint
    find_folder(NAME)
    assert sorted(fake_hub.fetched) == expected


def test_its_own_code_is_fetched_only_when_trusted(fake_hub, tmp_path):
    fake_hub.repositories[NAME] = published(tmp_path / "made")
    find_folder(NAME, trust_remote_code=True)
    assert "modeling_own.py" in fake_hub.fetched


def test_a_gated_model_without_token_says_where_to_accept_and_how_to_log_in(fake_hub, tmp_path):
    fake_hub.repositories[NAME] = published(tmp_path / "made", gated=True)
    with pytest.raises(InputError) as caught:
        load_model(NAME)
    assert str(caught.value) == (
        f"{NAME} is gated; accept its licence at https://huggingface.co/{NAME}, then log in with `hf auth login` or "
        "set HF_TOKEN"
    )


def test_a_gated_model_with_a_token_that_has_no_access_says_so(fake_hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    fake_hub.repositories[NAME] = published(tmp_path / "made", gated=True)
    with pytest.raises(InputError, match=rf"{NAME} is gated and your token has no access; accept its licence at http"):
        load_model(NAME)


def test_a_refused_token_is_not_taken_for_a_missing_model(fake_hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    fake_hub.good_token = "hf_good"
    fake_hub.repositories[NAME] = published(tmp_path / "made")
    with pytest.raises(InputError, match=r"the hub refuses your token; make a new one at \S+/settings/tokens"):
        load_model(NAME)


def test_a_model_that_does_not_exist_may_be_mistyped_or_private(fake_hub, monkeypatch):
    with pytest.raises(InputError, match=r"has no model 'me/none' that you can see; check the name.*hf auth login"):
        find_folder("me/none")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(InputError, match=r"has no model 'me/none' that you can see.*log in as another user"):
        find_folder("me/none")


def binary_only(folder):
    """A repository from before safetensors."""
    save_tiny(folder)
    repository = Repository.of(folder)
    repository.files[COMMIT]["pytorch_model.bin"] = repository.files[COMMIT].pop("model.safetensors")
    return repository


def test_weights_in_another_format_are_refused_and_never_fetched(fake_hub, tmp_path):
    fake_hub.repositories["me/old"] = binary_only(tmp_path / "made")
    with pytest.raises(InputError, match=r"me/old has no safetensors weights.*spaces/safetensors/convert"):
        load_model("me/old")
    assert "pytorch_model.bin" not in fake_hub.fetched


def test_what_the_hubs_converter_made_is_taken_online_and_later_offline(fake_hub, tmp_path, monkeypatch):
    repository = binary_only(tmp_path / "made")
    converted = (tmp_path / "made" / "model.safetensors").read_bytes()
    repository.files[CONVERTED] = repository.files[COMMIT] | {"model.safetensors": converted}
    fake_hub.repositories["facebook/opt-125m"] = repository
    first = load_model("facebook/opt-125m", dtype="float32").fingerprint
    assert "pytorch_model.bin" not in fake_hub.fetched
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model("facebook/opt-125m", dtype="float32").fingerprint == first


def test_a_lost_connection_is_called_one(fake_hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(InputError, match=r"nor in the hub cache .*and the hub cannot be reached; go online once"):
        find_folder(NAME)


def test_a_full_disk_is_called_one(fake_hub, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crosscal.models.folders.snapshot_download", full)
    with pytest.raises(InputError, match=r"the disk of .* is full; free some space there, or set HF_HOME"):
        find_folder(NAME)
