"""A task: from data to batches, a loss, reported numbers and predictions."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from transformer_jax.contracts.values import Evaluation, Frozen, Input, Outputs, Prepared, Progress, Sums, no_progress
from transformer_jax.errors import InputError

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True)
class Predict:
    """The inputs that a model predicts when training ends, and the defaults of the command `predict`."""

    inputs: tuple[str, ...] = ()
    """Texts of one line each; a TAB separates the texts of a pair. For images, the files."""
    top: int = 5
    """Answers per input."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InputError(f"sample.top = {self.top}: must be 1 or more")


@dataclass(frozen=True)
class Answers:
    """The options of `predict`."""

    top: int = 5
    """Answers per input."""
    file: str = ""
    """A text file with one input per line; or a table (.csv, .tsv, .jsonl) with one per row."""
    text: str = ""
    """The column of the table that is the input; empty: the one that the run was trained on."""
    text_b: str = ""
    """The column of the second text of a pair."""
    out: str = ""
    """Write the answers into this file, .csv or .jsonl, with the other columns of the table, and print none."""
    json: bool = False
    """One JSON object per line."""


class Task(Protocol):
    """A frozen dataclass. A task defines `example`, `prepare`, `loss` and `report`; the rest has defaults.

    Arguments of the same name mean the same in every method:

      params: the family's parameter tree.
      model_cfg: the family's Config.
      data: the experiment's `data`.
      tokenizer: a `Tokenizer`; None where the task reads no text.
    """

    reads_text: ClassVar[bool] = False
    """Whether a model of this task needs a tokenizer."""
    unit: ClassVar[str] = "examples"
    """What `tokens` counts, for people."""
    takes_pairs: ClassVar[bool] = False
    """Whether an input of `predict` may be a pair of texts, separated by a TAB on a line."""
    pipeline_tag: ClassVar[str] = ""
    """The Hub's name of the task, for model cards: "text-classification"; "": it has none."""

    writes: ClassVar[tuple[str, ...]] = ()
    """The endings of the files that `respond` writes itself where `--out` names one: (".png",)."""

    accumulates: ClassVar[bool] = False
    """Whether the loss of a row depends on the other rows. Micro-batches are then not the same batch: the step passes
    `train.accumulate` to `loss`, which computes the whole batch's loss in that many parts."""

    # ---- Data

    def settle(self, data: Any) -> "Task":
        """This task with the settings that `data` decide, such as the classes; config.json stores the result."""
        return self

    def sized(self, model_cfg: Any) -> Any:
        """`model_cfg` with as many outputs as this task has labels, where the number is its default: see `fill`."""
        return model_cfg

    def check(self, model_cfg: Any, data: Any) -> None:
        """Raises `InputError` where the settings of `model_cfg` and `data` contradict each other."""

    def adopt(self, trained: "Task", log: Callable[[str], None], origin: str) -> "Task":
        """This task with what it takes from a checkpoint's task, such as the normalisation of images.

        Args:
          trained: the task that the checkpoint was trained for.
          log: called with each line to print.
          origin: the checkpoint's name, for messages.
        """
        return self

    def example(self, data: Any) -> dict[str, "jax.ShapeDtypeStruct"]:
        """The shapes and dtypes of one example of `data`; "weights" is one of its names."""
        ...

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """Reads and checks the data.

        Args:
          data: the experiment's `data`.
          model_cfg: the family's Config.
          seed: orders the training data.
          workdir_tokenizer: the tokenizer that the parameters were trained with; None: the data decide.
        """
        ...

    def frozen(self, model_cfg: Any) -> Mapping[str, tuple[str, Any]]:
        """{name: (path, Config)} of further models that `loss` and `evaluate` read: `batch[name]` is a `Frozen`.

        They are loaded from a run, a step or a Hugging Face folder when a run starts, sharded like a model that is
        trained, and are no part of its checkpoints. The Config describes a model that is not loaded yet, to a compiler.

        Args:
          model_cfg: the Config of the model that is trained.
        """
        return {}

    def initial(self, params: Any, frozen: Mapping[str, Frozen]) -> Any:
        """The parameters of a run from scratch, where the task reads further models.

        Args:
          params: as the family initialises them.
          frozen: the further models.
        """
        return params

    # ---- Numbers

    def loss(
        self, params: Any, model_cfg: Any, batch: Mapping[str, "jax.Array"], *, key: "jax.Array | None" = None
    ) -> Any:
        """(sum, weight, {name: (sum, weight)}): training minimises sum / weight; a row of metrics shows the others.

        Args:
          params: the family's parameter tree.
          model_cfg: the family's Config.
          batch: {name: [B, ...]}, the examples of a step; and a `Frozen` for each name of `frozen`.
          key: switches dropout on.
        """
        ...

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, "jax.Array"]) -> tuple[Any, Any]:
        """(sums, outputs) of an evaluation batch.

        Args:
          params: the family's parameter tree.
          model_cfg: the family's Config.
          batch: as for `loss`.

        Returns:
          {name: (sum, weight)}, added up over the set; and {name: [B, ...]}, kept for each example.
        """
        return self.loss(params, model_cfg, batch)[2], {}

    def logits_and_states(
        self, params: Any, model_cfg: Any, batch: Mapping[str, "jax.Array"], *, key: "jax.Array | None" = None
    ) -> tuple[Any, Any, Any]:
        """(logits float32 [..., V], last hidden states [B, T, D], their mask float32 [B, T]), for a student to learn.

        The weights of the batch have the leading dimensions of the logits.

        Args:
          params: the family's parameter tree.
          model_cfg: the family's Config.
          batch: as for `loss`.
          key: as for `loss`.
        """
        raise InputError(f"{type(self).__name__} defines no logits_and_states, from which a student would learn")

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The numbers of an evaluation by name; the name states the unit.

        Args:
          sums: {name: (sum, weight)} of the whole set.
          outputs: {name: [examples, ...]}, what `evaluate` returned for each example.
          evaluation: the set.
        """
        ...

    def records(self, outputs: Outputs, evaluation: Evaluation) -> Mapping[str, Sequence[Any]]:
        """What is stored of each example of an evaluation, by which `compare` tests the difference of two runs.

        Args:
          outputs: as for `report`.
          evaluation: the set.

        Returns:
          {name: [examples]}. A value is a number, or a pair (sum, weight) where the run's number is the sum of the sums
          over that of the weights, or a text to show, such as a label; texts of the data are named "label". {}: the
          sums of each batch are stored instead.
        """
        return {}

    def best_metric(self) -> str:
        """The number of `report` whose lowest value is the best checkpoint, where the experiment names none."""
        return "loss_nats_per_token"

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """The paths of the figures that it draws of an evaluation.

        Args:
          outputs: as for `report`.
          evaluation: the set.
          folder: where to write.
          name: begins the name of each file: FOLDER/NAME_*.png.
        """
        return []

    def drawn(
        self, params: Any, model_cfg: Any, tokenizer: Any, evaluation: Evaluation, options: Any, folder: Path, name: str
    ) -> list[Path]:
        """The paths of what the model itself draws at each evaluation, such as pictures of a few captions.

        Only the first process calls this.

        Args:
          params: the family's parameter tree, on this process's devices.
          model_cfg: the family's Config.
          tokenizer: the tokenizer of the run.
          evaluation: the set.
          options: the experiment's `sample`.
          folder: where to write.
          name: begins the name of each file: FOLDER/NAME_*.png.
        """
        return []

    def score(
        self,
        params: Any,
        model_cfg: Any,
        tokenizer: Any,
        evaluation: Evaluation,
        folder: Path,
        name: str,
        *,
        mesh: Any,
        log: Callable[[str], None],
        progress: Progress = no_progress,
    ) -> dict[str, float | str]:
        """The final numbers that need generated text, such as BLEU, and as strings their conventions.

        They are added to those of `report`. Every process calls this and gets the same numbers.

        Args:
          params: the family's parameter tree, on the devices of `mesh`.
          model_cfg: the family's Config.
          tokenizer: encodes and decodes the texts.
          evaluation: the set.
          folder: where to write the generated text.
          name: begins the name of each file: FOLDER/NAME.*.
          mesh: the devices to generate on.
          log: called with each line to print.
          progress: called with (done, total) from time to time; an exception that it raises ends the scoring.
        """
        return {}

    def tokens(self, data: Any) -> int:
        """What throughput counts per example of `data`, in `unit`s: tokens, padding included, or 1."""
        return 1

    def flops(self, model_cfg: Any, data: Any) -> float:
        """FLOPs of a training step per example, forward and backward; 0 where they are not known.

        Args:
          model_cfg: the family's Config.
          data: the experiment's `data`.
        """
        return 0.0

    # ---- Predictions

    def default_sample(self) -> Any:
        """The experiment's `sample` where it states none: a frozen dataclass, the defaults of `predict`."""
        return Predict()

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Any) -> None:
        """Raises `InputError`, before the first step, for options that `sample` would refuse at the end.

        Args:
          model_cfg: the family's Config.
          tokenizer: the tokenizer of the run.
          options: the experiment's `sample`.
        """
        return None

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """The text to print when training ends, in pieces: by default the predictions for `options.inputs`.

        Args:
          params: the family's parameter tree.
          model_cfg: the family's Config.
          tokenizer: the tokenizer of the run.
          options: the experiment's `sample`.
          seed: the seed of the run, for random sampling.
        """
        for answer in self.predict(params, model_cfg, tokenizer, options.inputs, top=options.top):
            yield self._line(answer)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[Any], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """One answer per input, in order: a dict that JSON can hold, {"error": why} where there is no answer.

        Args:
          params: the family's parameter tree.
          model_cfg: the family's Config.
          tokenizer: the tokenizer of the run.
          inputs: each a `Query`.
          top: answers to give per input, the most probable first.
        """
        raise InputError(f"{type(self).__name__} makes no predictions")

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """A `prediction`, one item of `predict`, as text for people."""
        return json.dumps(prediction, ensure_ascii=False)

    # ---- The command `predict`

    def predict_options(self, defaults: Any) -> Any:
        """The options of the command `predict`: a frozen dataclass, whose values are the command's defaults.

        With a field `file`, the command reads inputs from a file, one per line; without, stdin is one input.

        Args:
          defaults: the experiment's `sample`.
        """
        return Answers(top=defaults.top)

    def read(self, given: Sequence[str], options: Any) -> Sequence[Input] | None:
        """The inputs of the command `predict` for a task that reads its own format, such as words with tags.

        Args:
          given: the arguments on the command line.
          options: the options that `predict_options` returned.

        Returns:
          None where `data.inputs` reads arguments, lines and tables as usual.
        """
        return None

    def respond(
        self, loaded: Any, inputs: Sequence[Input], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[str]:
        """What `predict` prints, in pieces: the answer to each input on a line, or as JSON.

        Args:
          loaded: a `restore.Loaded`.
          inputs: what to answer.
          options: the options that `predict_options` returned.
          progress: called with (done, total) from time to time.
        """
        for one, answer in self.answered(loaded, inputs, options, progress=progress):
            as_json = {"input": one.query, **answer} if "error" in answer else answer
            yield json.dumps(as_json, ensure_ascii=False) + "\n" if options.json else self.show(answer, options)

    def answered(
        self, loaded: Any, inputs: Sequence[Input], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[tuple[Input, Mapping[str, Any]]]:
        """(input, answer) of each input, in order; the answer is {"error": why} where there is none.

        Args:
          loaded: a `restore.Loaded`.
          inputs: what to answer.
          options: the options that `predict_options` returned.
          progress: called with (done, total) from time to time.

        Raises:
          InputError: after the last input, where none has an answer.
        """
        answers = iter(self.answers(loaded, [one.query for one in inputs if not one.error], options, progress=progress))
        failed: list[str] = []
        for one in inputs:
            answer = {"error": one.error} if one.error else next(answers)
            failed += [f"{one.where}: {answer['error']}"] if "error" in answer else []
            yield one, answer
        next(answers, None)  # a task may write a file after its last answer
        if failed and len(failed) == len(inputs):
            some = f"none of {len(inputs)} inputs has an answer; the first: " if len(inputs) > 1 else ""
            raise InputError(f"{some}{failed[0]}")
        if failed:
            print(f"{len(failed)} of {len(inputs)} inputs have no answer; the first: {failed[0]}", file=sys.stderr)

    def answers(
        self, loaded: Any, queries: Sequence[Any], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[Mapping[str, Any]]:
        """`predict` with the options of the command.

        Args:
          loaded: a `restore.Loaded`.
          queries: each a `Query`.
          options: the options that `predict_options` returned.
          progress: called with (done, total) from time to time.
        """
        return self.predict(loaded.params, loaded.config, loaded.tokenizer, queries, top=options.top)

    def show(self, answer: Mapping[str, Any], options: Any) -> str:
        """An answer as `predict` prints it for people, with the end of its line.

        Args:
          answer: one item of `answers`.
          options: the options that `predict_options` returned.
        """
        return self._line(answer)

    def _line(self, answer: Mapping[str, Any]) -> str:
        return (f"(no answer: {answer['error']})" if "error" in answer else self.describe(answer)) + "\n"

    # ---- Hugging Face folders

    def snapshot_settings(self) -> dict[str, Any]:
        """What an exported folder stores of the task: the arguments `labels`, `beam`, `preprocess` of `hub.export`."""
        return {}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> Any:
        """The data of a workdir made from imported parameters; it may name files that the user has to provide.

        Args:
          tokenizer: a spec of the tokenizer in that workdir.
          model_cfg: the family's Config.
        """
        raise InputError(f"{type(self).__name__} has no data of its own, so no workdir can be made of a folder for it")
