"""GPTQModel as it is installed here."""

from typing import ClassVar

from quantize.engines.base import Engine


class GptqModel(Engine):
    distribution: ClassVar[str] = "gptqmodel"
    needs: ClassVar[tuple[tuple[str, str], ...]] = (
        ("gptqmodel", "gptqmodel"),
        ("optimum", "optimum"),
        ("ninja", "ninja"),
    )
    extra: ClassVar[str] = "gptq"
    libraries: ClassVar[tuple[str, ...]] = ("gptqmodel", "torch", "transformers")


GPTQMODEL = GptqModel()
