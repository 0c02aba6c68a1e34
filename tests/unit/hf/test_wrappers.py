"""Models that also see: which class opens them, and what of them is the text model."""

from pathlib import Path

import pytest
from decoder_cases import make_decoder
from wrapper_cases import WRAPPERS, make_wrapper

from quantize.checkpoint.checkpoint import Checkpoint
from quantize.hf.names import empty_model
from quantize.hf.wrappers import auto_class, beside_text, lies_in, text_model, ties_head

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' remarks on odd little configs


@pytest.mark.parametrize("model_type", sorted(WRAPPERS))
def test_the_text_model_and_what_lies_beside_it(model_type: str, tmp_path: Path) -> None:
    """Every parameter is in the text model, its output layer, or one of the modules beside; a forward pass of
    text uses none of the last, which transformers' own gradients say."""
    import torch
    from transformers import AutoModelForImageTextToText

    checkpoint = Checkpoint.open(make_wrapper(model_type, tmp_path / "source"))
    empty = empty_model(checkpoint, buffers=False)
    assert type(empty).__name__ == checkpoint.architecture
    beside = beside_text(empty)
    assert beside
    assert text_model(empty)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.folder)
    model(input_ids=torch.arange(1, 17)[None]).logits.sum().backward()
    for name, parameter in model.named_parameters():
        used = parameter.grad is not None
        if lies_in(name, beside):
            assert not used, name
        elif "experts" not in name:  # some experts are not chosen
            assert used, name


@pytest.mark.parametrize("tied", [True, False])
def test_the_outer_config_ties_the_output_layer(tied: bool, tmp_path: Path) -> None:
    """As transformers does, whatever the text model's config has."""
    from transformers import AutoModelForImageTextToText

    source = make_wrapper("mistral3", tmp_path / "source", tie_word_embeddings=tied)
    model = AutoModelForImageTextToText.from_pretrained(source)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    assert ties_head(empty_model(Checkpoint.open(source), buffers=False)) == tied


def test_a_model_of_text_alone_has_nothing_beside_it(tmp_path: Path) -> None:
    model = empty_model(Checkpoint.open(make_decoder("llama", tmp_path / "source")), buffers=False)
    assert text_model(model) == ""
    assert beside_text(model) == ()


def test_the_class_that_the_config_names_opens_it() -> None:
    def opened(model_type: str, *architectures: str) -> str:
        config = {"model_type": model_type, "architectures": list(architectures)}
        return str(auto_class(config).__name__)

    assert opened("llama4", "Llama4ForConditionalGeneration") == "AutoModelForImageTextToText"
    assert opened("llama4", "Llama4ForCausalLM") == "AutoModelForCausalLM"
    assert opened("qwen3_vl") == "AutoModelForImageTextToText"
    assert opened("gemma3", "Gemma3ForConditionalGeneration") == "AutoModelForCausalLM"  # the whole of it
    assert opened("llama", "LlamaForCausalLM") == "AutoModelForCausalLM"
    assert opened("unheard_of") == "AutoModelForCausalLM"
