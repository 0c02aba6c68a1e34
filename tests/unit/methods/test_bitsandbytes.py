"""What bitsandbytes cannot quantize is refused before any work."""

from pathlib import Path

import pytest
from decoder_cases import make_decoder

from quantize.errors import Unsupported
from quantize.methods.registry import parse_recipe, plan
from quantize.sources.opening import open_checkpoint


@pytest.mark.parametrize("recipe", ["bnb-nf4", "bnb-int8"])
def test_linear_layers_of_a_models_own_class_stay_as_they_are(recipe: str, tmp_path: Path) -> None:
    """transformers puts bitsandbytes' layers in place of torch's own only: nothing of Falcon's would be
    quantized."""
    checkpoint = open_checkpoint(make_decoder("falcon", tmp_path))
    with pytest.raises(Unsupported, match="has no linear layers for bitsandbytes to quantize"):
        plan(checkpoint, parse_recipe(recipe))
    assert plan(checkpoint, parse_recipe("quanto-int8")).expected
