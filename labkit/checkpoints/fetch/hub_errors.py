"""Errors of the hub's client, of the network and of the disk, as sentences that say what to do.

The client's exceptions are subclasses of each other (a gated repository is one that was not found, which is an HTTP error), so
their order in ``explained`` matters. The token is removed from every text of a server or a library.
"""

from __future__ import annotations

import difflib
import errno
from pathlib import Path

import httpx2
from huggingface_hub import constants, errors, get_token

from labkit.checkpoints.fetch.checkpoint_directory import free_megabytes
from labkit.system.errors import UserError
from labkit.system.foreign_text import printable


class GatedError(UserError):
    """The model is gated, and this user has no access; dummy weights may be made instead."""


class UnreachableError(UserError):
    """The hub did not send the files; an earlier download may be used instead."""


def token() -> str | None:
    """The access token that the client sends, or None; raises UserError if it fits no HTTP header: the client would print it."""
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
    """The UserError for an exception of the client; ``known`` are hub ids to suggest if there is no such model."""
    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    page = f"{hub}/{model}"
    response = error.response if isinstance(error, errors.HfHubHTTPError) else None
    status = 0 if response is None else response.status_code
    given = None if response is None else response.headers.get("X-Error-Message")
    reason = f": {_without_token(given)}" if given else ""
    match error:
        case UserError():
            return error
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return explained(error.__cause__, model, revision, known)
        case errors.GatedRepoError() if token() is None:
            return GatedError(
                f"{model} is gated, and there is no token: ask for access on {page}, make a token on {hub}/settings/tokens, put "
                "it into HF_TOKEN (or run hf auth login), then run this again"
            )
        case errors.GatedRepoError():
            return GatedError(
                f"{model} is gated, and your token has no access: ask for it on {page} with the account of the token (a "
                "fine-grained token must also be allowed to read gated repositories), then run this again"
            )
        case errors.RevisionNotFoundError():
            return UserError(f"{model} has no revision {revision!r}; {page}/commits/main lists the revisions")
        case errors.RepositoryNotFoundError():
            near = difflib.get_close_matches(model, known, n=2, cutoff=0.75)
            hidden = "a private one looks the same without a token" if token() is None else "or your token may not see it"
            meant = f"did you mean {' or '.join(near)}?" if near else f"look it up on {hub}/models"
            return UserError(f"there is no repository {model} on the hub ({hidden}); {meant}")
        case errors.RemoteEntryNotFoundError():
            return UserError(f"{model} has no config.json at {revision!r}: it is no checkpoint that vLLM loads; look at {page}")
        case errors.OfflineModeIsEnabled():
            return UnreachableError(
                f"HF_HUB_OFFLINE is set, and {model} is not in {cache}; unset it to fetch, or give --fallback dummy"
            )
        case errors.HfHubHTTPError() if status == 401:
            return UserError(
                f"the hub does not accept your token (401); make a new one on {hub}/settings/tokens and put it into HF_TOKEN, or "
                "unset it for public models"
            )
        case errors.HfHubHTTPError() if status == 403:
            return UnreachableError(
                f"access to {model} is forbidden (403{reason}); the cause can be a token without the right to read, a "
                "proxy or a firewall. Check them, then run this again"
            )
        case errors.HfHubHTTPError() if status == 429:
            return UnreachableError("the hub refuses more requests for now (429); wait some minutes, then run this again")
        case errors.HfHubHTTPError():
            return UnreachableError(f"the hub cannot serve {model} now ({status}{reason}); try again later")
        case errors.FileMetadataError():
            return UnreachableError(f"{hub} does not answer as a hub does; look at HF_ENDPOINT and at your proxy")
        case httpx2.TimeoutException():
            return UnreachableError(f"{hub} stopped answering; look at the network, then run this again")
        case httpx2.HTTPError():
            return UnreachableError(
                f"{hub} cannot be reached, or the connection broke ({type(error).__name__}); look at the network, the proxy and "
                "HF_ENDPOINT, then run this again"
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return UserError(
                f"the disk is full while {model} is downloaded to {cache}, where {free_megabytes(Path(cache))} MB are free; make "
                "room, or put the cache elsewhere with HF_HOME, then run this again"
            )
        case OSError() if "Consistency check failed" in str(error):
            return UnreachableError(f"the hub sent fewer bytes of a file of {model} than it should have; run this again")
        case OSError() if error.errno is not None:
            return UserError(f"{error.filename or cache} cannot be written: {error.strerror}; look at its permissions")
        case _ if isinstance(error.__cause__, Exception):
            return explained(error.__cause__, model, revision, known)
    return UserError(f"{model} could not be downloaded: {_without_token(str(error)) or type(error).__name__}; run this again")


def _without_token(text: str) -> str:
    """A text of a server or a library in one printable line of at most 200 characters, without the token."""
    secret = token()
    text = " ".join(text.split())
    return printable(text.replace(secret, "(token)") if secret else text)[:200]
