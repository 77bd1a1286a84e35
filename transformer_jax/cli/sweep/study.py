"""A study of Optuna: it chooses the fields of the next run by the results of those before."""

from pathlib import Path
from typing import Any

from transformer_jax import extras
from transformer_jax.cli.sweep.plan import Asked, arguments_of


class Study:
    """Optuna's study in WORKDIR/optuna.log, its own journal, from which a killed sweep resumes."""

    def __init__(self, folder: Path, asked: Asked, *, begun: int, highest: bool) -> None:
        extras.need("optuna", "a study")
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.asked, self.states = asked, optuna.trial.TrialState
        self.study: Any = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.log"))),
            sampler=optuna.samplers.TPESampler(seed=begun),  # otherwise a resumed study draws its first values again
            direction="maximize" if highest else "minimize",
            load_if_exists=True,
        )

    def ask(self) -> tuple[int, list[str]]:
        """(the number of the next trial, the arguments of its run)."""
        trial = self.study.ask()
        fields: dict[str, Any] = {
            flag: trial.suggest_categorical(flag, values) for flag, values in self.asked.over.items()
        }
        for flag, chosen in self.asked.between.items():
            if chosen.kind == "int":
                fields[flag] = trial.suggest_int(flag, int(chosen.low), int(chosen.high))
            else:
                fields[flag] = trial.suggest_float(flag, chosen.low, chosen.high, log=chosen.kind == "log")
        return trial.number, arguments_of(fields)

    def tell(self, number: int, value: float | None, *, early: bool = False) -> None:
        """Stores the result of a trial; telling it twice, after a kill, changes nothing.

        Args:
          number: the number of the trial.
          value: its best value; None: it failed.
          early: whether the run was ended early.
        """
        state = self.states.FAIL if value is None else self.states.PRUNED if early else self.states.COMPLETE
        self.study.tell(number, value if state == self.states.COMPLETE else None, state=state, skip_if_finished=True)
