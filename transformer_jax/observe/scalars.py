"""An observer that receives numbers by name, the form that most services take."""

import abc
from collections.abc import Mapping

from transformer_jax.contracts import Observer, Report, Row


class Scalars(Observer):
    """An observer that defines only `log`."""

    @abc.abstractmethod
    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers.

        Args:
          step: steps taken.
          numbers: `train/loss`, ... of a row; `validation/...` or `test/...` of an evaluation.
        """

    def row(self, row: Row) -> None:
        self.log(int(row["step"]), {f"train/{name}": float(value) for name, value in row.items() if name != "step"})

    def evaluation(self, step: int, name: str, report: Report) -> None:
        numbers = {f"{name}/{key}": float(value) for key, value in report.items() if not isinstance(value, str)}
        self.log(step, numbers)
