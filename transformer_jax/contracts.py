"""What anyone may bring: a model, a task, a source, a tokenizer, an optimiser, an observer, a Hugging Face format.

Each contract is a small Protocol. A value that has its methods satisfies it; inheriting from it brings the methods that
have a default. Nothing is registered: an experiment holds the value, and what ships with the package stands on the same
contracts. Values that pass between rooms, such as the state of a run, are here as well.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from flax import struct

from transformer_jax.errors import InputError

if TYPE_CHECKING:
    import jax
    import numpy as np
    import optax

Sums = Mapping[str, tuple[float, float]]  # {"name": (sum, weight)}
Outputs = Mapping[str, "np.ndarray"]  # {"name": [examples, ...]}
Row = Mapping[str, float]  # one row of metrics, with "step"
Ask = str | tuple[str, ...]  # an input of `predict`: a text; or the two of a pair, or the words of a sentence
Report = Mapping[str, float | str]  # the numbers of an evaluation by name, and as strings their conventions
Progress = Callable[[int, int], None]  # called with (done, total) every now and then


def no_progress(done: int, total: int) -> None:
    """Reports nothing."""


# -------------------------------------------------------------------------------------------------- marks of a field

# `field(default=..., metadata=LAUNCH)`: who decides a field of a frozen dataclass that an experiment holds. What is not
# marked decides what the parameters mean: a resume may not change it, and a checkpoint brings it along.
LAUNCH = {"decided": "launch"}
"""How something is computed or written, not what: a resume may change it."""
TRAINING = {"decided": "training"}
"""How a model is trained: a checkpoint that a run starts from does not bring it along, and no snapshot states it."""
RUN = {"decided": "run"}
"""What a run decides of a model that it starts from, such as its labels."""
NOT_STORED = {"decided": "launch", "stored": False}
"""Not in config.json at all."""


def decided_by(cls: Any, *who: str) -> frozenset[str]:
    """The names of the fields of a dataclass that "launch", "training" or "run" decides."""
    return frozenset(f.name for f in dataclasses.fields(cls) if f.metadata.get("decided") in who)


# --------------------------------------------------------------------------------------------------------------- values


@struct.dataclass
class TrainState:
    """What a step reads and writes. All arrays, so the whole of it can be donated.

    The same structure carries what there is to say about each leaf: shapes and dtypes (`state.abstract`), shardings.

    Fields:
      step: int32 scalar, steps taken, the skipped ones included.
      params: the family's parameter tree, float32.
      opt_state: the optax state.
      ema: the exponential moving average of `params`, or None when it is off.
      skipped: int32 scalar, steps whose loss or gradient was not finite, or whose loss was a spike to be skipped, and
        that changed nothing.
      recent: float32 [n], the last n finite losses, the newest last, NaN where there were none yet; None when spikes
        are not looked for.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    skipped: Any
    recent: Any = None


@dataclass(frozen=True)
class Evaluation:
    """A finite set to evaluate on.

    Fields:
      examples: `examples[i]` is a dict of arrays without the batch dimension; it has "weights".
      reference: what the task's `report` needs to know of the set beside the model's outputs, such as gold answers.
    """

    examples: Any
    reference: Any = None


@dataclass(frozen=True)
class Prepared:
    """The data of a run.

    Fields:
      train: example i of an endless stream, `train[i]`, a dict of arrays without the batch dimension.
      validation: the set that is watched while training, and that chooses the best checkpoint.
      facts: what to print and store about the data.
      tokenizer: with the vocabulary that the model's ids mean; None where there are none (`Task.reads_text`).
      test: the set that the best checkpoint is reported on, once, at the end; None where there is none.
      identity: a hash of the whole data where that is known anyway; several hosts compare it.
    """

    train: Any
    validation: Evaluation
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    test: Evaluation | None = None
    identity: str = ""


@dataclass(frozen=True)
class Special:
    """Ids of the special tokens; None where the tokenizer has none."""

    cls: int | None = None
    """Stands at the head of an example; its hidden state is the example's."""
    sep: int | None = None
    """Ends each part of an example."""
    pad: int | None = None
    mask: int | None = None
    unk: int | None = None

    def present(self) -> dict[str, int]:
        """{"cls": 2, ...} of those there are."""
        return {f.name: id for f in fields(self) if (id := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class RunFacts:
    """What an observer is told when a run starts.

    Fields:
      folder: where files may be written: the workdir, or the local mirror of one that is in an object store.
      workdir: the workdir's own path or URL.
      run_id: names the run; the same when the run is resumed, on all hosts.
      config: the resolved experiment, as config.json holds it.
      first_step: the step that the run goes on from; 0 for a new run.
      steps: the run's last step.
      metric: the reported number that the run is judged by (`checkpoint.best_metric`).
    """

    folder: Path
    workdir: str
    run_id: str
    config: Mapping[str, Any]
    first_step: int
    steps: int
    metric: str


class Input(NamedTuple):
    """One thing to answer, for `predict`.

    Fields:
      ask: what the task's `predict` gets.
      where: names it in messages: "new.csv:17".
      columns: the record that it is from, in a table; {} elsewhere.
      error: why there is nothing to answer; "" where there is.
    """

    ask: Ask
    where: str
    columns: Mapping[str, Any]
    error: str = ""


# ------------------------------------------------------------------------------------------------------------ contracts


class Family(Protocol):
    """A model: the module that its Config, a frozen dataclass, is defined in.

    Training needs `declare` alone; a task calls whatever else it asks of a model (`hidden`, `apply`, `head`, ...). The
    module may define any of the other functions and constants here, and has these defaults otherwise (`models.hooks`).
    """

    TRUNK: ClassVar[tuple[str, ...] | None] = None
    """The top-level names of the parameter tree that are no head, which `init_from` must fill; None: all of them."""
    LABEL_HEADS: ClassVar[tuple[str, ...]] = ()
    """The heads whose last dimension is the task's labels, in their order."""

    @staticmethod
    def declare(cfg: Any) -> Any:
        """The tree of `nn.params.Param`: shape, axes and initialiser of each parameter."""

    @staticmethod
    def mesh_sizes(cfg: Any) -> Mapping[str, tuple[str, int]]:
        """{field: (logical axis, size)} of what a mesh must divide besides the parameters, such as whole heads."""
        return {}

    @staticmethod
    def resized(params: Any, cfg: Any, wanted: Any, say: Callable[[str], None]) -> Any:
        """The parameters of `cfg` for `wanted`, which differs in what a run decides (`RUN`): a Vision Transformer
        resamples its positions for another size of images."""
        return params


class Task(Protocol):
    """From data to batches, a loss, reported numbers and predictions: a frozen dataclass.

    A task defines `example`, `prepare`, `loss` and `report`; the rest has defaults.
    """

    reads_text: ClassVar[bool] = False
    """Whether a model means nothing without a tokenizer."""
    unit: ClassVar[str] = "examples"
    """What `tokens` counts, for people."""
    takes_pairs: ClassVar[bool] = False
    """Whether an input of `predict` may be two texts, with a TAB between them where they are on a line."""

    def settle(self, data: Any) -> "Task":
        """This task with what it leaves to the data, such as the names of classes: what config.json is to hold."""
        return self

    def check(self, model_cfg: Any, data: Any) -> None:
        """Raises `InputError` where model and data contradict each other, as far as their settings show it."""

    def adopt(self, theirs: "Task", say: Callable[[str], None], origin: str) -> "Task":
        """This task for a run that starts from a checkpoint of task `theirs`, such as its normalisation of images."""
        return self

    def example(self, data: Any) -> dict[str, "jax.ShapeDtypeStruct"]:
        """The shapes and dtypes of one example, "weights" among them."""
        ...

    def prepare(self, data: Any, model_cfg: Any, *, seed: int, workdir_tokenizer: Any = None) -> Prepared:
        """Reads and checks the data. `workdir_tokenizer`: the one that the parameters were trained with, if any."""
        ...

    def loss(
        self, params: Any, model_cfg: Any, batch: Mapping[str, "jax.Array"], *, key: "jax.Array | None" = None
    ) -> Any:
        """(sum, weight, {"name": (sum, weight)}): what training minimises, and what a row of metrics shows."""
        ...

    def evaluate(self, params: Any, model_cfg: Any, batch: Mapping[str, "jax.Array"]) -> tuple[Any, Any]:
        """(sums, outputs): sums are added up over the set; outputs, {"name": [B, ...]}, are kept for every example."""
        return self.loss(params, model_cfg, batch)[2], {}

    def report(self, sums: Sums, outputs: Outputs, evaluation: Evaluation) -> dict[str, float]:
        """The numbers of an evaluation, each named with its unit where it has one."""
        ...

    def pictures(self, outputs: Outputs, evaluation: Evaluation, folder: Path, name: str) -> list[Path]:
        """Draws what is better seen than read into FOLDER/NAME_*.png and returns the paths."""
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
        say: Callable[[str], None],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, float | str]:
        """The final numbers that need text which the model makes, and the conventions they are computed by, as strings.

        They join those of `report`. The text is written into FOLDER/NAME.* and some of it is printed.

        Args:
          params: on the devices of `mesh`; every process calls, and gets the same numbers.
          say: takes a line for people.
          progress: called with (done, total) every now and then; what it raises ends the scoring.
        """
        return {}

    def tokens(self, data: Any) -> int:
        """What throughput counts of one example, padding included: tokens, or 1 where examples are counted."""
        return 1

    def flops(self, model_cfg: Any, data: Any) -> float:
        """FLOPs of one training step on one example, forward and backward; 0 where nobody has counted them."""
        return 0.0

    # What the model is asked.

    def default_sample(self) -> Any:
        """What to ask of a model when nothing is said: the defaults of `predict`, a frozen dataclass."""
        return Predict()

    def check_sample(self, model_cfg: Any, tokenizer: Any, options: Any) -> None:
        """Raises `InputError` for what `sample` would refuse at the end: called before the first step."""
        return None

    def sample(self, params: Any, model_cfg: Any, tokenizer: Any, options: Any, *, seed: int) -> Iterator[str]:
        """What to show of the model when training ends, in pieces: by default the predictions for `options.inputs`."""
        for answer in self.predict(params, model_cfg, tokenizer, options.inputs, top=options.top):
            yield self._line(answer)

    def predict(
        self, params: Any, model_cfg: Any, tokenizer: Any, inputs: Iterable[Any], *, top: int
    ) -> Iterator[dict[str, Any]]:
        """One JSON-able dict for each `Ask`, in order, {"error": why} for one that has no answer; `top`: how many
        answers of each to give."""
        raise InputError(f"{type(self).__name__} makes no predictions")

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """A prediction as text for people."""
        return json.dumps(prediction, ensure_ascii=False)

    def predict_options(self, defaults: Any) -> Any:
        """The options of the command `predict`, a frozen dataclass with its defaults. With a field `file`, inputs may
        come from a file, one on a line; without, stdin is one input.

        Args:
          defaults: the run's `sample`.
        """
        return Answers(top=defaults.top)

    def read(self, given: Sequence[str], options: Any) -> Sequence[Input] | None:
        """The inputs of the command `predict`, for a task with a way of its own to read them, such as words with tags;
        None: arguments, lines and tables, as `data.inputs` reads them."""
        return None

    def respond(
        self, loaded: Any, inputs: Sequence[Input], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[str]:
        """What `predict` prints, in pieces: of each input its answer on a line, or as JSON.

        Args:
          loaded: a `restore.Loaded`.
          options: of `predict_options`.
          progress: called with (done, total) every now and then.
        """
        for one, answer in self.answered(loaded, inputs, options, progress=progress):
            as_json = {"input": one.ask, **answer} if "error" in answer else answer
            yield json.dumps(as_json, ensure_ascii=False) + "\n" if options.json else self.show(answer, options)

    def answered(
        self, loaded: Any, inputs: Sequence[Input], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[tuple[Input, Mapping[str, Any]]]:
        """Each input and its answer, in order; {"error": why} where there is none.

        Raises:
          InputError: after the last, where no input has an answer.
        """
        answers = iter(self.answers(loaded, [one.ask for one in inputs if not one.error], options, progress=progress))
        failed: list[str] = []
        for one in inputs:
            answer = {"error": one.error} if one.error else next(answers)
            failed += [f"{one.where}: {answer['error']}"] if "error" in answer else []
            yield one, answer
        if failed and len(failed) == len(inputs):
            some = f"none of {len(inputs)} inputs has an answer; the first: " if len(inputs) > 1 else ""
            raise InputError(f"{some}{failed[0]}")
        if failed:
            print(f"{len(failed)} of {len(inputs)} inputs have no answer; the first: {failed[0]}", file=sys.stderr)

    def answers(
        self, loaded: Any, asked: Sequence[Any], options: Any, *, progress: Progress = no_progress
    ) -> Iterator[Mapping[str, Any]]:
        """`predict` as the options of the command say."""
        return self.predict(loaded.params, loaded.config, loaded.tokenizer, asked, top=options.top)

    def show(self, answer: Mapping[str, Any], options: Any) -> str:
        """An answer as `predict` prints it for people, with the end of its line."""
        return self._line(answer)

    def _line(self, answer: Mapping[str, Any]) -> str:
        return (f"(no answer: {answer['error']})" if "error" in answer else self.describe(answer)) + "\n"

    # Hugging Face folders.

    def snapshot_settings(self) -> dict[str, Any]:
        """What an exported folder states of the task: the arguments `labels`, `beam`, `preprocess` of `hub.export`."""
        return {}

    def default_data(self, tokenizer: Any, model_cfg: Any) -> Any:
        """What a workdir made of imported parameters is evaluated on; it may name files that the user has to give.

        Args:
          tokenizer: a spec of the tokenizer in that workdir.
        """
        raise InputError(f"{type(self).__name__} has no data of its own, so no workdir can be made of a folder for it")


@dataclass(frozen=True)
class Predict:
    """What a model is asked when training ends, and `predict`'s defaults."""

    inputs: tuple[str, ...] = ()
    """Texts, each on one line; the two of a pair are separated by a tab. Of images the files."""
    top: int = 5
    """Answers to give for each."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise InputError(f"sample.top = {self.top}: must be 1 or more")


@dataclass(frozen=True)
class Answers:
    """The options of `predict`."""

    top: int = 5
    """Answers to give for each input."""
    file: str = ""
    """A text file with one input a line; or a table (.csv, .tsv, .jsonl) with one a row."""
    text: str = ""
    """The column of the table that is the input; empty: the one that the run was trained on."""
    text_b: str = ""
    """The column of the second text of a pair."""
    out: str = ""
    """Write the answers into this file, .csv or .jsonl, beside the other columns of the table, and print none."""
    json: bool = False
    """One JSON object a line."""


class Source(Protocol):
    """Where a corpus of text comes from: a frozen dataclass. Sources of tables, pairs and images have contracts of
    their own, beside the data that read them (`rows`, `pairs`, `images`)."""

    def documents(self, split: Any) -> Any:
        """The `data.sources.Documents` of "train" or "validation", which can be read again and again."""
        ...


class TokenizerSpec(Protocol):
    """Which tokenizer an experiment wants: a frozen dataclass.

    One whose tokenizer saves files of its own also has `read(folder)`, which gives the tokenizer that was saved there;
    the files of `data.tokenizers` are read without it.
    """

    def build(self, documents: Iterable[tuple[str, str]], cache: Path | None = None) -> Any:
        """The `Tokenizer`, learned from (name, text) pairs where it is learned; `cache`: where it may be kept."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back. Ids are int32 in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides how text is encoded."""
        ...

    def encode(self, text: str) -> "np.ndarray":
        """The ids of a text of the data, int32 [n]."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; of an id that is no token nothing."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer into a folder, which need not exist."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that the model was trained to find at the head of every text; None: there is none."""
        return None

    @property
    def eos_id(self) -> int | None:
        """The token that ends generation, and where there is no `bos_id`, stands before each document; None: documents
        simply follow another."""
        return None

    @property
    def special_spellings(self) -> tuple[str, ...]:
        """The special tokens as they are written in a text."""
        return ()

    @property
    def special(self) -> Special:
        """The ids of [CLS], [SEP], [PAD], [MASK] and [UNK], by whatever name."""
        return Special()

    @property
    def languages(self) -> Any:
        """mBART's codes of the source's and the target's language; None for every other."""
        return None

    @property
    def target(self) -> "Tokenizer":
        """The tokenizer of the target side: itself where both sides share one, which all do but Marian's."""
        return self

    @property
    def continues(self) -> "np.ndarray":
        """bool [vocab_size]: this token goes on with the word before it. Special tokens do not."""
        raise NotImplementedError(f"{type(self).__name__} does not say which tokens go on with a word")

    def encode_batch(self, texts: Sequence[str]) -> "list[np.ndarray]":
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_prompt(self, text: str) -> "np.ndarray":
        """As `encode`, but special tokens written in the text are meant: "Paris is the [MASK] of France."."""
        return self.encode(text)

    def encode_with_offsets(self, text: str) -> "tuple[np.ndarray, np.ndarray]":
        """Ids int32 [n], and the characters of the text that each came from: int32 [n, 2], start and end."""
        raise NotImplementedError(f"{type(self).__name__} does not say where in a text its tokens are")

    def encode_words(self, words: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
        """Ids int32 [n] of a sentence given as words, and the index of the word that each came from: int32 [n]."""
        raise NotImplementedError(f"{type(self).__name__} does not encode a sentence word by word")

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text as it comes, one piece a token at most, never half a character; together `decode(ids)`."""
        if text := self.decode(ids):
            yield text


class Optimizer(Protocol):
    """A frozen dataclass that makes an Optax transformation. Every count is in updates of the optimiser."""

    def schedule(self, total_updates: int) -> "optax.Schedule":
        """The learning rate as a function of the number of updates applied so far, for the rows of metrics."""
        ...

    def make(self, total_updates: int, declaration: Any) -> "optax.GradientTransformation":
        """The transformation for parameters of this declaration, a tree of `nn.params.Param`.

        Its `update` may take `grad_norm=`, the global norm of the gradients, and `finite=`, a bool scalar: where it is
        False the state must stay as it is. A plain transformation is wrapped so that it holds.
        """
        ...


@runtime_checkable
class ScalesRates(Optimizer, Protocol):
    """An optimiser with learning rates by parameter, and with frozen ones. All that inherit `optim.Rates` are."""

    def lr_scales(self, declaration: Any) -> Any:
        """What each parameter's learning rate is multiplied by: a tree like the parameters, of arrays that broadcast to
        them. A parameter whose factor is 0 is frozen: its gradient is not computed."""
        ...


@runtime_checkable
class EvaluatesOther(Optimizer, Protocol):
    """An optimiser whose evaluated weights are not the trained ones, such as schedule-free."""

    def evaluated(self, opt_state: Any, params: Any) -> Any:
        """The parameters to evaluate, which each checkpoint stores beside the trained ones."""
        ...


class Observer(Protocol):
    """Something that hears what happens in a run: a logger, a plot, a message. Called on host 0 alone.

    Every method has a default that does nothing. What a method raises is logged once and never ends the run, and from
    then on the observer is left alone.
    """

    def start(self, run: RunFacts) -> None:
        """The run starts, or goes on."""
        return  # to a type checker a method with a docstring alone is abstract

    def row(self, row: Row) -> None:
        """One row of training metrics."""
        return

    def evaluation(self, step: int, name: str, report: Report) -> None:
        """The numbers of the set `name`, "validation" or "test", after `step` steps."""
        return

    def save(self, step: int) -> None:
        """A checkpoint is about to be written: bring what was heard to the disk."""
        return

    def end(self, results: Mapping[str, Any]) -> None:
        """The run has ended; `results` is what results.json holds, or {} when a signal or an error ended it."""
        return


class Format(Protocol):
    """A kind of Hugging Face folder, in and out: a module."""

    MODEL_TYPES: tuple[str, ...]
    """The values of "model_type" in config.json that this format reads."""

    @staticmethod
    def read_config(given: Mapping[str, Any], names: Any, where: str) -> Any:
        """The Config of a config.json's object. `names`: of the tensors in the folder."""
        ...

    @staticmethod
    def holds(cfg: Any) -> bool:
        """Whether this is the format to try for a Config."""
        ...

    @staticmethod
    def write_config(cfg: Any) -> dict[str, Any]:
        """The object of a config.json that says `cfg`."""
        ...

    @staticmethod
    def table(cfg: Any) -> Any:
        """The `hub.mapping.Table` from our leaves to their tensors."""
        ...

    @staticmethod
    def task(folder: Path, cfg: Any) -> Task | None:
        """What the model in this folder is for; None where no task here is."""
        ...


CONTRACTS = (Task, Source, TokenizerSpec, Optimizer, Observer)


def missing(value: Any, contract: Any) -> list[str]:
    """The methods of a contract that have no default and that a value, or a type, lacks."""
    cls = value if isinstance(value, type) else type(value)
    own = {name: getattr(cls, name, None) for name in required(contract)}
    return [name for name, method in own.items() if not callable(method) or method is vars(contract).get(name)]


def defaults(contract: Any) -> tuple[str, ...]:
    """The names of a contract's methods and constants with a default."""
    return tuple(name for name in vars(contract) if not name.startswith("_") and name not in required(contract))


def required(contract: Any) -> tuple[str, ...]:
    """The names of a contract's methods without a default; of a contract that stands beside its data all methods."""
    known: dict[Any, tuple[str, ...]] = {
        Task: ("example", "prepare", "loss", "report"),
        Source: ("documents",),
        TokenizerSpec: ("build",),
        Optimizer: ("schedule", "make"),
        Observer: (),
        Family: ("declare",),
    }
    if contract in known:
        return known[contract]
    return tuple(name for name, member in vars(contract).items() if name[0] != "_" and callable(member))
