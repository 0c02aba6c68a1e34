"""GPTQModel replaces classes of transformers for the life of the process: put them back."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def contained(model_type: str) -> Iterator[None]:
    """What is replaced inside in transformers' modules (experts by unfused ones, the mapping of checkpoints'
    names) is put back.

    Models that were made inside keep the classes they were made of.
    """
    import gptqmodel  # noqa: F401  (what it replaces when it is imported stays: it does so once)
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    with contextlib.suppress(KeyError):  # its modules must be there before, to know what was in them
        MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
    before = {
        name: dict(vars(module))
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "transformers" and module
    }
    try:
        yield
    finally:
        for name, values in before.items():
            own = vars(sys.modules[name])
            for key, value in values.items():
                if own.get(key) is not value and isinstance(value, type | type(contained)):
                    own[key] = value
