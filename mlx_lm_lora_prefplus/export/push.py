"""Upload an exported folder to the hub with the hub's own library."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import UserError


def check_push(repo: str) -> None:
    """Raise a UserError if an upload to this repository would fail. Call this before any file is written."""
    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise HFValidationError(f"{repo!r} has no owner.")
    except HFValidationError as error:
        raise UserError(f"--push: {error} Give OWNER/NAME, such as ada/llama-dpo.") from error
    if not get_token():
        raise UserError(
            "--push: there is no Hugging Face token on this machine. Run `hf auth login` with a token that has write "
            "permission, or set HF_TOKEN."
        )


def push(folder: Path, files: tuple[str, ...], repo: str, *, private: bool) -> str:
    """Upload these files of a folder to a model repository, which is created if it does not exist.

    Returns:
        The address of the commit.

    Raises:
        UserError: The hub rejected the upload, or cannot be reached.
    """
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Adapter written by mlx_lm_lora.prefplus export",
        )
    except Exception as error:  # the hub's library and its HTTP client raise many kinds of errors
        raise UserError(
            f"--push: {_why(error, repo)} The files are in {folder}; run the same command again to upload them."
        ) from error
    return str(commit)


def _why(error: Exception, repo: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    first_line = str(error).partition("\n")[0]
    if status == 401:
        return "The hub does not accept the token (401). Run `hf auth login` again."
    if status in (403, 404):
        return f"The token has no permission to write to {repo} ({status}). Use a token with write permission."
    if status is not None:
        return f"The hub answered {status}: {first_line}."
    return f"The hub cannot be reached ({type(error).__name__}: {first_line}). Check the network."
