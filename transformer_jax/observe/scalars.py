"""What most services take: numbers by name at a step."""

from collections.abc import Mapping

from transformer_jax.contracts import Observer, Report, Row


class Scalars(Observer):
    """An observer that only has to say how it logs numbers."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of a step: `train/loss`, ... of a row, `validation/...` and `test/...` of an evaluation."""
        raise NotImplementedError

    def row(self, row: Row) -> None:
        self.log(int(row["step"]), {f"train/{name}": float(value) for name, value in row.items() if name != "step"})

    def evaluation(self, step: int, name: str, report: Report) -> None:
        numbers = {f"{name}/{key}": float(value) for key, value in report.items() if not isinstance(value, str)}
        self.log(step, numbers)
