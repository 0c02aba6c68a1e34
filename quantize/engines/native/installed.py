"""What must be there for packed weights that this program made itself: to make them nothing, to open them
transformers' own layers, which are GPTQModel's."""

from typing import ClassVar

from quantize.engines.base import Engine
from quantize.engines.gptqmodel.installed import GPTQMODEL


class NativePacked(Engine):
    needs: ClassVar[tuple[tuple[str, str], ...]] = GPTQMODEL.needs
    extra: ClassVar[str] = GPTQMODEL.extra
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers")


NATIVE_PACKED = NativePacked()
