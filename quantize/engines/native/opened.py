"""Opens folders of compressed-tensors: by transformers and the library, or with the weights unpacked."""

from pathlib import Path
from typing import TYPE_CHECKING

from quantize.calibration.layers import round_like_runtime
from quantize.engines.gptqmodel.load import load_unpacked
from quantize.errors import BadInput, Unsupported
from quantize.formats.packed import TRANSFORMERS
from quantize.formats.stored_compressed import stored_compressed
from quantize.hf.load import load_compressed_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_compressed(
    folder: Path, dtype: str, device: str, *, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """In evaluation mode, computing in ``dtype``. Where transformers has no layers for some of the weights
    (experts, which it holds in one tensor), this program unpacks them, and rounds activations as the scheme
    says.

    Errors: Unsupported where compressed-tensors is not installed; BadInput where a parameter has no weights.
    """
    try:
        stored = stored_compressed(folder, trust_remote_code=trust_remote_code)
        own = stored.format.opener(folder) != TRANSFORMERS
    except (BadInput, Unsupported):  # not as this program writes it: transformers says what it thinks of it
        own = False
    if not own:
        return load_compressed_tensors(folder, dtype, device, trust_remote_code=trust_remote_code)
    model = load_unpacked(stored, dtype, device, trust_remote_code)
    if kinds := stored.format.activation_types(folder):
        round_like_runtime(model, stored.checkpoint, kinds, gelu_table=False)
    return model
