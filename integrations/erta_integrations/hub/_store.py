"""`HubStore`: repositories of models on the hub, each with profiles and a card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erta_framework.calibration import ProfileReference
from erta_framework.errors import ErtaError, ProfileError
from erta_framework.optional_dependencies import require_extra
from erta_framework.text import show_error

MOST_BYTES = 1 << 28
"""Most bytes of a profile that are fetched: 256 MiB; the largest of ours has a few."""


class HubStore:
    """Profiles in repositories of the Hugging Face hub.

    Files are fetched by the hub's own client, which keeps them in its cache: a pinned revision is
    fetched once. The client reads `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE`.

    Args:
        endpoint: Address of the hub; by default `HF_ENDPOINT`, else the public one.

    Raises:
        MissingExtraError: `huggingface_hub` is not installed.

    Example:
        >>> HubStore().fetch(ProfileReference.parse("hf:owner/name@v1"))  # doctest: +SKIP
        PosixPath('.../profile.safetensors')
    """

    def __init__(self, endpoint: str | None = None) -> None:
        require_extra("huggingface_hub", extra="hub", wanted_by="a profile on the hub")
        self.endpoint = endpoint or os.environ.get("HF_ENDPOINT") or None

    def fetch(self, reference: ProfileReference) -> Path:
        from huggingface_hub import hf_hub_download

        asked: dict[str, Any] = {
            "repo_id": reference.name,
            "filename": reference.file,
            "revision": reference.revision,
            "endpoint": self.endpoint,
        }
        with explain(reference, "fetch"):
            found = hf_hub_download(**asked, dry_run=True)
            if found.is_cached:
                return Path(found.local_path)
            if (found.file_size or 0) > MOST_BYTES:
                raise ProfileError(
                    f"{reference} has {found.file_size} bytes, at most {MOST_BYTES} are fetched; "
                    "is it a profile?"
                )
            return Path(hf_hub_download(**asked))

    def publish(self, reference: ProfileReference, files: Mapping[str, bytes]) -> str:
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(endpoint=self.endpoint)
        added = [CommitOperationAdd(name, data) for name, data in files.items()]
        with explain(reference, "push"):
            api.create_repo(reference.name, exist_ok=True)
            done = api.create_commit(
                reference.name,
                added,
                commit_message=f"Profile {reference.file}",
                revision=reference.revision,
            )
        return str(done.commit_url)


@contextmanager
def explain(reference: ProfileReference, verb: str) -> Iterator[None]:
    """Turns an error of the hub's client into one that names the profile and the remedy.

    Raises:
        ProfileError: Whatever went wrong.
    """
    from huggingface_hub import errors

    try:
        yield
    except ErtaError:
        raise
    except errors.RepositoryNotFoundError as error:
        remedy = "check the name; a private one needs a token (`hf auth login`, or HF_TOKEN)"
        raise ProfileError(f"cannot {verb} {reference}: no such repository; {remedy}") from error
    except errors.RevisionNotFoundError as error:
        raise ProfileError(
            f"cannot {verb} {reference}: it has no revision {reference.revision!r}; name a branch, "
            "a tag or a commit"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ProfileError(
            f"cannot {verb} {reference}: {show_error(error)}; name the file as "
            f"hf:{reference.name}/FILE.safetensors, or go online if it was never fetched"
        ) from error
    except Exception as error:  # of the client, or of whichever library sends its requests
        raise ProfileError(
            f"cannot {verb} {reference}: {show_error(error)}; check the network and HF_ENDPOINT, "
            "and that the token may do this"
        ) from error
