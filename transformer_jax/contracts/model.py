"""A model family, and the Hugging Face folders that hold its models."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from transformer_jax.contracts.task import Task


class Family(Protocol):
    """A model: the module that defines its Config, a frozen dataclass.

    Training needs only `declare`; a task calls the other functions that it needs (`hidden`, `apply`, `head`, ...). The
    functions and constants below are optional: where the module does not define one, this default holds
    (`models.hook`).
    """

    TRUNK: ClassVar[tuple[str, ...] | None] = None
    """The top-level names of the parameter tree without the heads; `init_from` must fill them. None: all names."""
    LABEL_HEADS: ClassVar[tuple[str, ...]] = ()
    """The heads whose last dimension is the task's labels, in their order."""

    @staticmethod
    def declare(cfg: Any) -> Any:
        """The tree of `nn.params.Param` of `cfg`: shape, axis names and initialiser of each parameter."""

    @staticmethod
    def mesh_sizes(cfg: Any) -> Mapping[str, tuple[str, int]]:
        """{field of `cfg`: (logical axis, size)}: sizes, besides the parameters', that a mesh must divide."""
        return {}

    @staticmethod
    def resized(params: Any, cfg: Any, wanted: Any, log: Callable[[str], None]) -> Any:
        """The parameters for another Config that differs in fields marked `RUN`.

        A Vision Transformer resamples its position embeddings here, for images of another size.

        Args:
          params: the parameter tree of `cfg`.
          cfg: the Config that `params` were trained with.
          wanted: the Config of the run.
          log: called with each line to print.
        """
        return params


class Format(Protocol):
    """A kind of Hugging Face folder, read and written: a module."""

    MODEL_TYPES: tuple[str, ...]
    """The values of "model_type" in config.json that this format reads."""
    SIGNS: ClassVar[tuple[str | tuple[str, Any], ...]] = ()
    """The settings, or (setting, its value), by which a config.json without "model_type" is recognised as the first of
    these types; (): none."""
    IMAGE_PROCESSORS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """{image processor of preprocessor_config.json: the defaults of its own}: {"ViT": {"size": 224, ...}}."""

    @staticmethod
    def read_config(given: Mapping[str, Any], names: Any, where: str) -> Any:
        """The Config that a config.json describes.

        Args:
          given: the object in config.json.
          names: the names of the tensors in the folder.
          where: the file's name, for messages.
        """
        ...

    @staticmethod
    def holds(cfg: Any) -> bool:
        """Whether this format is the one to write `cfg` in."""
        ...

    @staticmethod
    def write_config(cfg: Any) -> dict[str, Any]:
        """The object of a config.json that describes `cfg`."""
        ...

    @staticmethod
    def read_extractor(cfg: Any, given: Mapping[str, Any], where: str) -> Any:
        """`cfg` with what preprocessor_config.json says of the features of sound that the model reads.

        A format of models of sound defines it, and `write_extractor`.

        Args:
          cfg: the config that `read_config` returned.
          given: the object in preprocessor_config.json.
          where: the file's name, for messages.

        Raises:
          InputError: features that the model would not compute.
        """
        return cfg

    @staticmethod
    def write_extractor(cfg: Any) -> dict[str, Any] | None:
        """The object of a preprocessor_config.json that describes the features of `cfg`; None: it reads no sound."""
        return None

    @staticmethod
    def for_tokenizer(written: Mapping[str, Any], tokenizer_class: str) -> dict[str, Any]:
        """The object of a config.json with the model type that has tokenizers of a class.

        A format defines it if its model types differ in nothing else.

        Args:
          written: the object that `write_config` returned.
          tokenizer_class: the name of Transformers' class.
        """
        return dict(written)

    @staticmethod
    def read_tokenizer(folder: Path, cfg: Any) -> Any:
        """The tokenizer of `folder`, whose Config is `cfg`; None: it has none.

        A format whose tokenizer is not in Hugging Face's tokenizer files defines it, and `write_tokenizer`.
        """
        return None

    @staticmethod
    def write_tokenizer(folder: Path, tokenizer: Any) -> None:
        """Writes the files of `tokenizer` into `folder`, which is renamed when it is whole."""
        tokenizer.save(folder)

    @staticmethod
    def table(cfg: Any) -> Any:
        """The `hub.mapping.Table` between our leaves and the tensors of `cfg`."""
        ...

    @staticmethod
    def task(folder: Path, cfg: Any) -> Task | None:
        """The task of the model in `folder`, whose Config is `cfg`; None where the package has no such task."""
        ...
