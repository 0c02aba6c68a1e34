"""How the memory that a conversion may take is shared out, from headers alone."""

from collections.abc import Sequence

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.errors import BadInput
from quantize.hf.matrices import Linear
from quantize.recipe import RunOptions
from quantize.units import spell_size

#: widths of the hidden state that a layer's activations take at once, beside the widest matrix
WIDTHS = 12
#: parts of what the layer leaves: statistics, products that are not computed again; hidden states the rest
STATISTICS, REPEATED = 0.4, 0.3
#: of products of all tokens, as wide as the widest matrix and in half precision: keeping more saves no time
MOST_REPEATED = 3


class Budget:
    """``every``: the matrices of each layer; ``tokens``: of all batches. ``statistics_bytes``: for Hessians
    at once; the others are those of ``LayerPass``.

    Errors: BadInput where what is allowed does not hold the largest layer, its activations and the Hessian
    of one matrix (not without ``hessians``).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        every: Sequence[Sequence[Linear]],
        run: RunOptions,
        batch_tokens: int,
        tokens: int = 0,
        *,
        hessians: bool = True,
    ):
        import psutil

        layer = max(sum(4 * each.outputs * each.inputs for each in mine) for mine in every if mine)
        outside = max(
            (4 * info.parameters for name, info in checkpoint.tensors.items() if len(info.shape) == 2),
            default=0,
        )
        widest = max(each.outputs for mine in every for each in mine)
        narrow = min(min(each.outputs, each.inputs) for mine in every for each in mine)
        activations = 4 * batch_tokens * (3 * widest + WIDTHS * narrow)
        one = max(4 * each.inputs**2 for mine in every for each in mine) if hessians else 0
        # the factor of a Hessian is computed in float64, on copies
        least = max(layer + max(activations, 7 * one), outside) + one
        held = psutil.Process().memory_info().rss
        allowed = run.memory_bytes or held + psutil.virtual_memory().available
        if allowed < held + least:
            raise BadInput(
                f"{checkpoint.source}: calibrating its largest layer takes about {spell_size(held + least)}, "
                f"and {spell_size(allowed)} is allowed; give more --memory"
                if run.memory_bytes
                else f"{checkpoint.source}: calibrating its largest layer takes about "
                f"{spell_size(held + least)}, and this machine has {spell_size(allowed)} free"
            )
        rest = allowed - held - least
        self.statistics_bytes = one + int(STATISTICS * rest)
        share = int(REPEATED * rest)
        self.repeated_bytes = min(share, 2 * MOST_REPEATED * tokens * widest)
        self.state_bytes = rest - int(STATISTICS * rest) - share
