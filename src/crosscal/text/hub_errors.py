"""What the hub's libraries raise, as one sentence that says what to do. Standard library only."""

from collections.abc import Iterator
from contextlib import contextmanager

from crosscal.errors import InputError

_NO_CONNECTION = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
}
_CAUSES = 8  # how far back a chain of causes is read


@contextmanager
def hub_errors_explained(source: str, dataset: str) -> Iterator[None]:
    """Turn any failure to read `source` into an `InputError`; one that already is passes unchanged."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{source} needs the package '{error.name}'; run pip install 'crosscal[study]'") from error
    except Exception as error:
        raise InputError(_sentence(source, dataset, error)) from error


def _sentence(source: str, dataset: str, error: Exception) -> str:
    """No access, no such data set, a configuration to choose, a script, or no connection."""
    names, text = _kinds(error), " ".join(str(error).split())
    if "GatedRepoError" in names or "gated" in text.lower() or "401" in text or "403" in text:
        return (
            f"{source} is not open to you; accept its terms at https://huggingface.co/datasets/{dataset} and set "
            "HF_TOKEN to a token of your account, or use an embedded source or a local file"
        )
    if names & {"RepositoryNotFoundError", "DatasetNotFoundError", "RemoteEntryNotFoundError"}:
        return f"the hub has no data set '{dataset}' with these files that you can see; check the name, or set HF_TOKEN"
    if "Config name is missing" in text or "BuilderConfig" in text:
        return f"{source} needs one of its configurations, as in hub:{dataset}:<config> ({text[:200]})"
    if "scripts are no longer supported" in text:
        return f"{source} is read by a script, which is not run here; download its text and give a .jsonl file"
    said = f"{type(error).__name__}: {text[:160]}"
    why = "it cannot be reached and its local cache has no copy" if names & _NO_CONNECTION else said
    return (
        f"cannot read {source} from the hub ({why}); connect to the internet and unset HF_HUB_OFFLINE, or use an "
        "embedded source (c4, wikipedia, pubmed, legal, ...) or a local file"
    )


def _kinds(error: BaseException) -> set[str]:
    """Names of the exception's class and of its causes."""
    names: set[str] = set()
    current: BaseException | None = error
    for _ in range(_CAUSES):
        if current is None:
            break
        names.add(type(current).__name__)
        current = current.__cause__ or current.__context__
    return names
