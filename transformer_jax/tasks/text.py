"""Shared by the tasks of text: they need a tokenizer, their data has a length in tokens, throughput counts tokens."""

from typing import Any, ClassVar

from transformer_jax.contracts import Task
from transformer_jax.errors import InputError


class TextTask(Task):
    """A task whose data has a `length` in tokens."""

    reads_text: ClassVar[bool] = True
    unit: ClassVar[str] = "tokens"

    def check(self, model_cfg: Any, data: Any) -> None:
        """Refuses examples that are longer than the model's positions."""
        if data.length > model_cfg.max_length:
            raise InputError(
                f"data.length = {data.length} is longer than model.max_length = {model_cfg.max_length}; "
                "lower the one or raise the other"
            )

    def tokens(self, data: Any) -> int:
        """The number of tokens of one example, padding included."""
        return data.length

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Any) -> None:
        """Refuses an input that the tokenizer cannot encode."""
        for text in options.inputs:
            tokenizer.encode_prompt(text)
