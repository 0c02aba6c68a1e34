"""What huggingface_hub raises, as our own errors that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from quantize.errors import BadInput, StepFailed, first_line


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """What huggingface_hub raises about repository ``name`` -> BadInput and StepFailed with what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise BadInput(f"{name}: a gated repository; accept its terms on the Hub and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise BadInput(f"{name}: has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise BadInput(
            f"{name}: neither a local folder nor a repository on the Hub (or it is private: set HF_TOKEN)"
        ) from None
    except HFValidationError as error:
        raise BadInput(f"{name}: {first_line(error)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise StepFailed(
            f"{name}: no such local folder, not in the Hub cache, and the Hub cannot be reached (no "
            "network, or HF_HUB_OFFLINE is set); connect, set HF_ENDPOINT to a mirror, or give a local path"
        ) from None
    except Exception as error:
        if not isinstance(error, (OSError, RuntimeError)) and not _of_http_client(error):
            raise
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise StepFailed(
                f"{name}: the disk is full; free some space, or set HF_HOME to a larger disk"
            ) from None
        raise StepFailed(f"{name}: the Hub cannot be reached ({first_line(error)})") from None


def _of_http_client(error: Exception) -> bool:
    """Of httpx, whose errors are not OSErrors, and which huggingface_hub ships under changing names."""
    return type(error).__module__.startswith("httpx")
