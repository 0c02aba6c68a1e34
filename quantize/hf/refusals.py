"""transformers' refusal of a config or of weights, as one line of ours.

It validates some fields strictly and fails on others in as many ways as there are models: any exception that
it raises while it builds or opens a model from foreign files is a refusal of those files.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantize.checkpoint.library_folder import library_folder
from quantize.errors import QuantwrightError, StepFailed, Unsupported
from quantize.hf.plain_decoders import parameters
from quantize.quiet import quiet
from quantize.terminal import printable

if TYPE_CHECKING:
    from quantize.checkpoint.checkpoint import Checkpoint


@contextmanager
def refusals(where: str, what: str, after: str = "") -> Iterator[None]:
    """Errors: Unsupported, ``WHERE: transformers 5.23.0 WHAT: its reason AFTER``; StepFailed where memory or
    disk are short."""
    try:
        yield
    except QuantwrightError:
        raise
    except MemoryError as error:
        raise StepFailed(f"{where}: not enough memory to open it") from error
    except Exception as error:
        from transformers import __version__

        raise Unsupported(f"{where}: transformers {__version__} {what}: {reason(error)}{after}") from error


def reason(error: BaseException) -> str:
    """An error of another library in one line, but complete: the cause is often in its second line."""
    return printable(" ".join(str(error).split()) or type(error).__name__, 400)


def check_config(checkpoint: "Checkpoint") -> None:
    """Errors: Unsupported where transformers refuses config.json. Costs nothing where it is known not to."""
    if parameters(checkpoint.config) is not None:
        return
    trust = checkpoint.trust_remote_code
    opened = library_folder(checkpoint.folder, trust, source=checkpoint.source)
    with quiet(), opened as folder, refusals(checkpoint.source, "refuses its config.json"):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        text = config.get_text_config()
        # most embeddings refuse such an id when they are built, which is later; some do not use it
        if config is text and (getattr(text, "pad_token_id", None) or 0) >= text.vocab_size:
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
