"""What the hub, the way to it, or the disk said no to, as a sentence with what to do next.

The client's exceptions are subclasses of each other (a gated repository is one that was not found, which is an HTTP error), so
the order in which they are looked at matters. Nothing that a server or a library says is passed on before the token is cut out.
"""

from __future__ import annotations

import difflib
import errno
import shutil
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from labkit.system.errors import UserError


class GatedError(UserError):
    """The hub gives this model's files only to those who were granted access."""


class UnreachableError(UserError):
    """The hub did not answer, or not as a hub does."""


def token() -> str | None:
    """The token that the client sends, from ``HF_TOKEN`` or its own store.

    Raises:
        UserError: it holds what no header may carry; the client's own message would print it.
    """
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    found = get_token()
    if found and not (found.isascii() and found.isprintable() and " " not in found):
        raise UserError(
            f"the token ({len(found)} characters) holds a space or a character that no token has; copy it again from "
            f"{constants.ENDPOINT}/settings/tokens into HF_TOKEN"
        )
    return found


def explained(error: Exception, model: str, revision: str, known: list[str]) -> UserError:
    """The client's exception as one of ours.

    Args:
        error: what was raised; its causes are looked at where it says nothing itself.
        model: the hub id that was asked for.
        revision: the revision that was asked for.
        known: hub ids that might have been meant.
    """
    page = f"{constants.ENDPOINT}/{model}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    match error:
        case UserError():
            return error
        case LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return explained(error.__cause__, model, revision, known)
        case GatedRepoError() if token() is None:
            return GatedError(
                f"{model} is gated, and there is no token: ask for access on {page}, make a token on "
                f"{constants.ENDPOINT}/settings/tokens, put it into HF_TOKEN (or run hf auth login), then run this again"
            )
        case GatedRepoError():
            return GatedError(
                f"{model} is gated, and your token has no access: ask for it on {page} with the account that the token belongs "
                "to (a fine-grained token must also be allowed to read gated repositories), then run this again"
            )
        case RevisionNotFoundError():
            return UserError(f"{model} has no revision {revision!r}; {page}/commits/main lists what there is")
        case RepositoryNotFoundError():
            near = difflib.get_close_matches(model, known, n=2, cutoff=0.75)
            hidden = "a private one looks the same without a token" if token() is None else "or your token may not see it"
            meant = f"did you mean {' or '.join(near)}?" if near else f"look it up on {constants.ENDPOINT}/models"
            return UserError(f"there is no repository {model} on the hub ({hidden}); {meant}")
        case RemoteEntryNotFoundError():
            return UserError(f"{model} has no config.json at {revision!r}: it is no checkpoint that vLLM loads; look at {page}")
        case OfflineModeIsEnabled():
            return UnreachableError(
                f"HF_HUB_OFFLINE is set, and {model} is not in {constants.HF_HUB_CACHE}; unset it to fetch, or give --fallback "
                "dummy"
            )
        case HfHubHTTPError() if status == 401:
            return UserError(
                f"the hub does not accept your token (401); make a new one on {constants.ENDPOINT}/settings/tokens and put it "
                "into HF_TOKEN, or unset it for what anybody may read"
            )
        case HfHubHTTPError() if status == 403:
            return UnreachableError(
                f"something between here and {model} forbids it (403{_said(error)}); a token without the right to read, a proxy "
                "or a firewall does so. Look there, then run this again"
            )
        case HfHubHTTPError() if status == 429:
            return UnreachableError("the hub asks for patience (429, too many requests); wait some minutes, then run this again")
        case HfHubHTTPError():
            return UnreachableError(f"the hub cannot serve {model} now ({status}{_said(error)}); try again later")
        case FileMetadataError():
            return UnreachableError(f"{constants.ENDPOINT} does not answer as a hub does; look at HF_ENDPOINT and at your proxy")
        case httpx2.TimeoutException():
            return UnreachableError(f"{constants.ENDPOINT} stopped answering; look at the network, then run this again")
        case httpx2.HTTPError():
            return UnreachableError(
                f"{constants.ENDPOINT} cannot be reached, or the connection broke ({type(error).__name__}); look at the network, "
                "the proxy and HF_ENDPOINT, then run this again"
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return UserError(
                f"the disk is full while {model} is downloaded to {constants.HF_HUB_CACHE}, where {_free()} MB are free; "
                "make room, or put the cache elsewhere with HF_HOME, then run this again"
            )
        case OSError() if "Consistency check failed" in str(error):
            return UnreachableError(f"the hub sent fewer bytes of a file of {model} than it should have; run this again")
        case OSError() if error.errno is not None:
            return UserError(
                f"{error.filename or constants.HF_HUB_CACHE} cannot be written: {error.strerror}; look at its rights"
            )
        case _ if isinstance(error.__cause__, Exception):
            return explained(error.__cause__, model, revision, known)
    return UserError(f"{model} could not be downloaded: {without_token(str(error)) or type(error).__name__}")


def without_token(text: str) -> str:
    """A text of somebody else's in one line of at most 200 characters, with nothing in it that is secret or moves a cursor."""
    secret = token()
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return (text.replace(secret, "(token)") if secret else text)[:200]


def _said(error: HfHubHTTPError) -> str:
    """What the server gave as its reason, if it did."""
    reason = error.response.headers.get("X-Error-Message") if error.response is not None else None
    return f": {without_token(reason)}" if reason else ""


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that there is."""
    return next(found for found in (folder, *folder.parents) if found.is_dir())


def _free() -> str:
    return f"{shutil.disk_usage(existing(Path(constants.HF_HUB_CACHE))).free // 10**6:,}"
