"""The Hugging Face hub: the files of one SAE fetched into huggingface_hub's own cache; an SAE put there with a card.

Files are fetched by their exact names, since a repository may hold hundreds of SAEs. What is in the cache is used where
the hub cannot be asked.
"""

import contextlib
import difflib
import glob
import re
import tempfile
from collections.abc import Iterable
from json import JSONDecodeError
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi, constants, get_cached_repo_tree, get_token, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from .. import pretrained
from ..runs import Run, write_sae
from ..runs.files import room_for, write
from ..saes import SAE
from .card import card, names_repo
from .stored import BELOW, ENDINGS, below

LLAMA_SCOPE = re.compile(r"(?:fnlp|OpenMOSS-Team)/Llama3_1-8B-Base-LX(R|A|M|TC)-(8|32)x")
SHORT = re.compile(r"L(\d+)(R|A|M|N|TC)")
LAYERS = 32  # of Llama-3.1-8B
MOST = 8  # folders that a message names
MODEL = {"tokenizer.json", "tokenizer_config.json"}  # beside the weights of a language model
FAILED = (
    *(HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, FileMetadataError, XetDownloadError),
    *(JSONDecodeError, TimeoutError, ConnectionError, RuntimeError),  # no answer of a hub; the native downloader's
)


def is_hub_name(text: str) -> bool:
    """Whether this is "org/name", and nothing local is called so."""
    return names_repo(text) and not Path(text).exists()


def fetch(repo: str, inside: str = "", revision: str | None = None) -> Path:
    """The local folder, or file, of one SAE of the hub: fetched, or from the cache where the hub cannot be asked.

    Args:
        repo: "org/name".
        inside: a folder, a file of weights, or for Llama Scope's repositories a site such as "L15R".
        revision: a branch, tag or commit.

    Raises:
        ValueError: a path that climbs out of the repository, or a site of another part than the repository's.
        FileNotFoundError: it cannot be had; the message says why, and which files to place where.
        DiskFull: the cache has no room for it.
    """
    inside = _folder(repo, below("inside", inside))
    revision = None if revision is None else below("revision", revision)
    with room_for(Path(constants.HF_HUB_CACHE)):
        try:
            return _fetched(repo, inside, revision)
        except FAILED as error:
            found, files = _cached(repo, inside, revision)
            if found is not None:
                return found
            raise FileNotFoundError(_why(error, repo, inside, revision, files)) from None


def push(
    sae: SAE,
    repo: str,
    *,
    format: str = "saelens",
    private: bool = False,
    dtype: Any = torch.float32,
    run: Run | None = None,
    citation: str = "",
) -> str:
    """Puts an SAE of raw activations, in another tool's format, and its card at the root of a repository; its address.

    The token is huggingface_hub's own: `HF_TOKEN`, or that of `hf auth login`.

    Args:
        run: whose numbers and settings the card tells.
        citation: BibTeX for the card.

    Raises:
        ValueError: a name that is none, or a format that cannot say what this SAE does.
        FileExistsError: the repository holds another SAE, or a model.
        PermissionError: no token, or not for this; or asked for in private, and the repository there is public.
        ConnectionError: the hub cannot be reached, or does not answer as one.
    """
    _folder(repo, "")
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / "sae"
        if format == "sae_lab":
            write_sae(sae, folder)
        else:
            pretrained.write(sae, folder, format, dtype)
        said = card(sae, run, repo=repo, format=format, citation=citation)
        write(folder / "README.md", said.encode())
        return _send(folder, repo, private)


def wanted(files: Iterable[str], inside: str) -> list[str]:
    """Of a repository's files those of one SAE: weights, of the folder and its checkpoints/, and JSON beside them."""
    files, path = list(files), PurePosixPath(inside)
    one = path.suffix in ENDINGS
    root = path.parent if one else path
    places = {root, root.parent} if root.name in BELOW[1:] else {root / part for part in BELOW}
    if one:
        weights = [inside] if inside in files else []
    else:
        weights = [f for f in files if _is_weights(f) and PurePosixPath(f).parent in {root / part for part in BELOW}]
    configs = [f for f in files if PurePosixPath(f).suffix == ".json" and PurePosixPath(f).parent in places]
    return [*configs, *weights] if weights else []


def _fetched(repo: str, inside: str, revision: str | None) -> Path:
    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    there = [sibling.rfilename for sibling in info.siblings or ()]
    files = wanted(there, inside)
    if not files:
        raise FileNotFoundError(_elsewhere(repo, inside, there))
    if MODEL & {PurePosixPath(file).name for file in files}:
        raise ValueError(f"{repo!r} holds a language model, not an SAE: load_model({repo!r}).")
    exactly = [glob.escape(file) for file in files]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=exactly), inside)


def _cached(repo: str, inside: str, revision: str | None) -> tuple[Path | None, list[str]]:
    """(where it lies if all of it is in the cache, the names of its files as far as the cache knows them)."""
    root, there = None, []
    with contextlib.suppress(LocalEntryNotFoundError):
        root = Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[]))
        there = [path.relative_to(root).as_posix() for path in root.rglob("*")]
    with contextlib.suppress(CachedRepoTreeNotFoundError):  # an older huggingface_hub kept none
        there = [file.path for file in get_cached_repo_tree(repo, revision=revision)]
    files = wanted(there, inside)
    whole = root is not None and files and all((root / file).exists() for file in files)
    return (root / inside if whole else None), files


def _folder(repo: str, inside: str) -> str:
    """What `inside` is called in the repository: Llama Scope's sites are folders of longer names."""
    if not names_repo(repo):
        raise ValueError(f"{repo!r} is no name on the hub. Write 'org/name': 'fnlp/Llama3_1-8B-Base-LXR-8x'.")
    scope, site = LLAMA_SCOPE.fullmatch(repo), SHORT.fullmatch(inside)
    if not scope or not site:
        return inside
    if site[2] != scope[1]:
        raise ValueError(
            f"{inside!r} is of part {site[2]}, and {repo!r} holds part {scope[1]}. Give 'L{site[1]}{scope[1]}', or the "
            f"repository with LX{site[2]} in its name."
        )
    if int(site[1]) >= LAYERS:
        raise ValueError(f"{inside!r}: Llama-3.1-8B has the layers 0 to {LAYERS - 1}.")
    return f"Llama3_1-8B-Base-L{int(site[1])}{site[2]}-{scope[2]}x"


def _is_weights(file: str) -> bool:
    return PurePosixPath(file).suffix in ENDINGS


def _elsewhere(repo: str, inside: str, there: list[str]) -> str:
    """That nothing is at `inside`, and which folders hold weights, the likest names first."""
    found = {PurePosixPath(file).parent for file in there if _is_weights(file)}
    folders = sorted({str(folder.parent if folder.name in BELOW[1:] else folder) for folder in found} - {"."})
    at = f"{repo!r} has no SAE at {inside!r}" if inside else f"{repo!r} has no SAE at its root"
    if not folders:
        why = "its weights are at its root" if found else f"it holds no weights ({', '.join(ENDINGS)})"
        return f"{at}: {why}."
    near = difflib.get_close_matches(inside, folders, MOST, 0.0)
    more = f" and {len(folders) - len(near)} more" if len(folders) > len(near) else ""
    return f"{at}. It has {', '.join(near)}{more}: load_sae({repo!r}, {near[0]!r})."


def _why(error: Exception, repo: str, inside: str, revision: str | None, files: list[str]) -> str:
    """Why it cannot be had, and the way out."""
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    status, by_hand = getattr(getattr(error, "response", None), "status_code", None), _by_hand(repo, inside, files)
    if constants.is_offline_mode() or isinstance(error, OfflineModeIsEnabled):
        return f"{repo!r} is not all in the hub's cache, and HF_HUB_OFFLINE=1 forbids to fetch it. {by_hand}"
    if isinstance(error, GatedRepoError):
        terms = f"accept its terms at {constants.ENDPOINT}/{repo} and set HF_TOKEN (or run `hf auth login`)"
        return f"{repo!r} is gated: {terms}. {by_hand}"
    if isinstance(error, RepositoryNotFoundError):
        also = "No local folder is called so either."
        return f"The hub has no repository {repo!r}, or it is private: set HF_TOKEN for one of yours. {also}"
    if status == 401:
        return f"The hub refuses your token: renew HF_TOKEN (or run `hf auth login`). {by_hand}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo!r} has no revision {revision!r}. Leave revision= out for the newest."
    return f"{_answer(error)} {by_hand}"


def _answer(error: Exception) -> str:
    """What the hub answered, or that it did not."""
    if isinstance(error, HfHubHTTPError):
        said = " ".join((error.server_message or "").split())[:200]
        return f"{constants.ENDPOINT} answered {error.response.status_code}{f' ({said})' if said else ''}."
    if isinstance(error, JSONDecodeError | FileMetadataError):
        return f"{constants.ENDPOINT} does not answer as a hub does: a proxy or a login page may stand before it."
    return f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})."


def _by_hand(repo: str, inside: str, files: list[str]) -> str:
    """Which files to place where, for `load_sae` to need no hub."""
    path = PurePosixPath(inside)
    root = path.parent if path.suffix in ENDINGS else path
    root = root.parent if root.name in BELOW[1:] else root
    if files:
        named = [str(PurePosixPath(file).relative_to(root)) for file in files]
    elif path.suffix in ENDINGS:
        named = [str(path.relative_to(root)), "the .json files beside it"]
    elif LLAMA_SCOPE.fullmatch(repo):
        named = ["hyperparams.json", "checkpoints/final.safetensors"]
    else:
        named = ["its .json files", f"its weights ({', '.join(ENDINGS)})"]
    of = inside if inside and path.suffix not in ENDINGS else repo
    listed = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    return f"Place {listed} of {of} into a folder, and give load_sae that folder."


def _send(folder: Path, repo: str, private: bool) -> str:
    """Creates the repository if it is not there, and uploads; its address."""
    if constants.is_offline_mode():
        raise ConnectionError("HF_HUB_OFFLINE=1 forbids to reach the hub: unset it to push.")
    if get_token() is None:
        raise PermissionError("No token for the hub: set HF_TOKEN, or run `hf auth login`, with one that may write.")
    ours = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        api = HfApi()
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        there = api.model_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        others = [s.rfilename for s in there.siblings or () if s.rfilename.endswith((*ENDINGS, ".json"))]
        if set(others) - ours:
            other = ", ".join(sorted(set(others) - ours)[:3])
            raise FileExistsError(f"{repo!r} already holds {other}: one repository, one SAE. Choose another name.")
        if private and not there.private:
            raise PermissionError(f"{repo!r} is there already, in public: make it private, or choose another name.")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="An SAE and its card, by sae_lab")
    except FAILED as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
            whose = repo.split("/")[0]
            raise PermissionError(
                f"The hub refuses {repo!r} ({error.response.status_code}): take a token that may write to {whose!r}."
            ) from None
        raise ConnectionError(f"{repo!r} was not uploaded: {_answer(error)}") from None
    return address
