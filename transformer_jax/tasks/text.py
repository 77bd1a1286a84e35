"""What every task of text has alike: a tokenizer, a length in tokens, and tokens as what throughput counts."""

from typing import Any, ClassVar

from transformer_jax.contracts import Task
from transformer_jax.errors import InputError


class TextTask(Task):
    """A task whose data have a `length` in tokens."""

    reads_text: ClassVar[bool] = True
    unit: ClassVar[str] = "tokens"

    def check(self, model_cfg: Any, data: Any) -> None:
        """Raises `InputError` for examples longer than the model's positions."""
        if data.length > model_cfg.max_length:
            raise InputError(
                f"data.length = {data.length} is longer than model.max_length = {model_cfg.max_length}; "
                "lower the one or raise the other"
            )

    def tokens(self, data: Any) -> int:
        """The tokens of one example, padding included."""
        return data.length

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Any) -> None:
        """Raises `InputError` for an input that the tokenizer cannot encode."""
        for text in options.inputs:
            tokenizer.encode_prompt(text)
