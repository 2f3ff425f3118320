"""What every model server is told about a version: how much one answer may hold, where it ends.

Leaves the telling to the module of each server.
"""

from functools import lru_cache

from pydantic import ValidationError

from reactune.config import PromptConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.records import ModelVersion

FRAME_TOKENS = 704  # system prompt, instruction and turns around the context block
STEP = 256  # servers round to this anyway


def context_tokens(model: ModelVersion, settings: ServeConfig) -> int:
    """Tokens of prompt and answer together, for which a server must have room.

    Raises:
        ReleaseError: the version's prompt folder is missing or broken.
    """
    needed = FRAME_TOKENS + _context_limit(model) + settings.max_tokens
    return -(-needed // STEP) * STEP


def stop_text(model: ModelVersion) -> str:
    """The text of the token that ends an answer.

    Raises:
        ReleaseError: the version's prompt folder is missing or broken.
    """
    return read_prompt_file(model, "stop.txt")


def read_prompt_file(model: ModelVersion, name: str) -> str:
    """A text of the version's prompt folder.

    Raises:
        ReleaseError: it is not there, or no text.
    """
    file = model.prompt_folder / name
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(
            f"{file} of {model.name} cannot be read ({type(error).__name__}); export it again"
        ) from error


@lru_cache
def _context_limit(model: ModelVersion) -> int:
    # Asked for every tip; the folder of a version does not change.
    try:
        prompt = PromptConfig.model_validate_json(read_prompt_file(model, "prompt.json"))
    except ValidationError as error:
        raise ReleaseError(
            f"{model.prompt_folder / 'prompt.json'} of {model.name} is broken; export it again"
        ) from error
    return prompt.max_context_tokens
