"""A task of the user's own file, as lm-eval runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LocalTask:
    """``items`` hold the keys of their form and nothing else."""

    name: str
    path: Path
    form: str
    items: tuple[dict[str, Any], ...]
    delimiter: str = " "
    typed: str = ""  # what ``--tasks`` said, for the command that measures it again

    @property
    def is_hellaswag(self) -> bool:
        return self.path.suffix == ".txt"

    def config(self) -> dict[str, Any]:
        """The lm-eval task, without its data."""
        shared = {
            "task": self.name,
            "test_split": "test",
            "fewshot_split": "test",  # named, so that lm-eval never uses an item as its own example
            "target_delimiter": self.delimiter,
            "metadata": {"version": 1.0},
        }
        accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
        normalized = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}
        if self.form == "choices":
            return shared | {
                "output_type": "multiple_choice",
                "doc_to_text": "query",
                "doc_to_choice": "choices",
                "doc_to_target": "gold",
                "metric_list": [accuracy, normalized],
            }
        if self.form == "contexts":
            # lm-eval's way for WinoGrande: doc_to_text returns the number of the right context, the choices
            # are the contexts.
            return shared | {
                "output_type": "multiple_choice",
                "doc_to_text": "gold",
                "doc_to_choice": "context_options",
                "doc_to_target": "continuation",
                "metric_list": [accuracy],
            }
        return shared | {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": "{{" + repr(self.delimiter) + " + continuation}}",
            "metric_list": [
                accuracy,
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            ],
        }

    def lm_eval_config(self) -> dict[str, Any]:
        """The task with its items in memory."""
        items = list(self.items)

        def dataset(**_: Any) -> Any:
            from datasets import Dataset, DatasetDict

            return DatasetDict({"test": Dataset.from_list(items)})

        return self.config() | {"custom_dataset": dataset}
