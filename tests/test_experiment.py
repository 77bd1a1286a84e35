"""Experiments as values: the JSON round trip, what it refuses, what may change in a workdir, and every one on disk."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from PIL import Image

from transformer_jax import brought, config_json, models, restore, sharding
from transformer_jax import experiment as experiments
from transformer_jax.cli import process
from transformer_jax.data import (
    boxes,
    conversations,
    corpus,
    image_sources,
    images,
    interactions,
    masks,
    sources,
    tables,
    tokenizers,
    waves,
)
from transformer_jax.errors import InputError
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Precision, Predict, Train
from transformer_jax.models import detr, eomt, gpt, seq2seq
from transformer_jax.nn.positions import RopeScaling
from transformer_jax.optim import Optim
from transformer_jax.tasks import (
    Distillation,
    MaskedLM,
    SpeechRecognition,
    SpeechSynthesis,
    Transcription,
    chat,
    tagging,
)
from transformer_jax.tasks.audio_classification import sounds
from transformer_jax.tasks.classification import labelled
from transformer_jax.tasks.contrastive import paired
from transformer_jax.tasks.detection import scenes
from transformer_jax.tasks.next_item import histories
from transformer_jax.tasks.panoptic.segments import SegmentSet
from transformer_jax.tasks.span_qa import questions
from transformer_jax.tasks.speech_recognition import recordings, utterances
from transformer_jax.tasks.tagging import tagged
from transformer_jax.tasks.text_to_image import captioned
from transformer_jax.tasks.text_to_image.tokenizer import TextAndCodes
from transformer_jax.tasks.translation import bitext, parallel
from transformer_jax.train import loop
from transformer_jax.train import program as programs

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in (ROOT / "experiments").rglob("*.py") if path.name != "__init__.py")


def small(**changes) -> Experiment:
    model = gpt.Config(vocab_size=257, max_length=32, width=16, num_layers=1, num_heads=2)
    return dataclasses.replace(Experiment(model=model, data=corpus.TextCorpus(length=16)), **changes)


# ---- JSON


@pytest.mark.parametrize(
    "experiment",
    [
        small(),
        small(data=corpus.TextCorpus(sources.TextFiles(("a", "b/*.txt")), tokenizers.Characters(), length=8)),
        small(data=corpus.TextCorpus(sources.Records(("a",)), tokenizers.TokenizerFile("t"), 8, "random")),
        small(data=corpus.TextCorpus(sources.Tfds("c4/en"), tokenizers.Bytes(), length=8)),
        small(
            model=gpt.Config(
                vocab_size=257, position="rotary", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), num_kv_heads=4
            )
        ),
    ],
)
def test_round_trip(experiment):
    text = json.dumps(config_json.to_json(experiment))
    assert config_json.from_json(json.loads(text)) == experiment


def test_settings_that_are_gone():
    """Each in a file that old versions wrote, with the value that means what is computed today, and with another."""
    for name, removed in models.REMOVED_FIELDS.items():
        cls = models.type_of(name)
        assert cls is not None and not set(removed) & {f.name for f in dataclasses.fields(cls)}
    tree = config_json.to_json(small())
    tree["data"]["eval_stride"] = 0
    assert config_json.from_json(tree) == small()
    tree["data"]["eval_stride"] = 4
    with pytest.raises(InputError, match=r"x.data.eval_stride is 4: corpus.TextCorpus has no such setting any more"):
        config_json.from_json(tree, where="x")


def test_absent_fields_take_their_defaults():
    tree = config_json.to_json(small())
    del tree["ema"], tree["train"]["log_every"]
    assert config_json.from_json(tree) == small()


def broken(**edits):
    tree = config_json.to_json(small())
    for path, value in edits.items():
        *parents, last = path.split("__")
        part = tree
        for name in parents:
            part = part[name]
        part[last] = value
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (broken(type="os.system"), r"x: type 'os.system' is not one of experiment.Experiment"),
        (
            broken(data__source__type="builtins.eval"),
            r"x.data.source: type 'builtins.eval' is not one of the package's own",
        ),
        (broken(model={"type": "causal_lm.CausalLM"}), r"x: model is a CausalLM, but .* has no function declare"),
        (broken(train__stepz=3), r"x.train.stepz: experiment.Train has no such field; the nearest is steps"),
        (broken(train__steps=3.5), r"x.train.steps: 3.5 is not int"),
        (broken(train__steps=True), r"x.train.steps: true is not int"),
        (broken(model__norm="batch"), r"x.model.norm: \"batch\" is not"),
        (broken(model__num_kv_heads="two"), r"x.model.num_kv_heads: \"two\" is not"),
        (broken(train=[1]), r"x.train: \[1\] is not Train"),
        (broken(train__steps=0), r"x: train.steps = 0: must be 1 or more"),
        (broken(model__num_heads=3), r"x.model: model.num_heads 3 does not divide model.width 16"),
        ([], r"x: \[\] is not Experiment"),
    ],
)
def test_refused(tree, message):
    with pytest.raises(InputError, match=message):
        config_json.from_json(tree, where="x")


def test_a_missing_field_is_named():
    tree = config_json.to_json(small())
    del tree["model"]["vocab_size"]
    with pytest.raises(InputError, match=r"x.model: gpt.Config needs the field 'vocab_size'"):
        config_json.from_json(tree, where="x")


def test_a_type_of_ones_own_cannot_be_stored():
    @dataclasses.dataclass(frozen=True)
    class Mine(sources.Embedded):
        pass

    with pytest.raises(InputError, match=r"Mine is defined inside a function"):
        config_json.to_json(small(data=corpus.TextCorpus(Mine(), length=16)))


# ---- Checks on construction


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": Train(batch_size=10, accumulate=4)}, r"batch_size = 10 does not divide into train.accumulate = 4"),
        ({"train": Train(steps=-1)}, r"train.steps = -1"),
        ({"evaluate": Evaluate(every=-5)}, r"evaluate.every = -5"),
        ({"checkpoint": Checkpoint(keep=0)}, r"checkpoint.keep = 0"),
        ({"checkpoint": Checkpoint(best_metric="accuracy")}, r"'lowest' of accuracy would keep the worst; .* highest"),
        ({"checkpoint": Checkpoint(best="highest")}, r"'highest' of loss_nats_per_token would keep the worst"),
        ({"ema": experiments.Ema(1.0)}, r"ema.decay = 1.0"),
        ({"data": corpus.TextCorpus(length=64)}, r"data.length = 64 is longer than model.max_length = 32"),
    ],
)
def test_contradictions(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


def test_precision_is_resolved_by_platform():
    assert [experiments.compute_dtype(Precision(), p) for p in ("cpu", "gpu", "tpu")] == ["float32"] + 2 * ["bfloat16"]
    assert experiments.compute_dtype(Precision("bfloat16"), "cpu") == "bfloat16"


# ---- The same workdir


def test_what_may_change_is_said(tmp_path):
    asked = small(train=Train(steps=7), mesh=experiments.Mesh(fsdp=2), init_from="elsewhere")
    assert config_json.refuse_other(small(), asked, tmp_path) == [
        "train.steps: 1000 -> 7",
        "mesh.fsdp: 1 -> 2",
        'init_from: "" -> "elsewhere"',
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"seed is 0 there and 1 here"),
        ({"optim": Optim(beta2=0.5)}, r"optim.beta2 is 0.95 there and 0.5 here"),
        ({"data": corpus.TextCorpus(sources.Tfds("c4"), length=16)}, r"data.source is sources.Embedded there"),
    ],
)
def test_what_makes_it_another_experiment(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        config_json.refuse_other(small(), small(**changes), tmp_path)


# ---- Every experiment on disk


def all_recipes():
    for path in FILES:
        for name, recipe in process.variants(brought.read(str(path))[0]).items():
            yield pytest.param(recipe, id=f"{path.relative_to(ROOT / 'experiments').with_suffix('')}:{name}")


def test_there_are_experiments():
    assert {"causal_lm/stdlib:experiment", "causal_lm/shakespeare_char:gpu"} <= {param.id for param in all_recipes()}


@pytest.mark.parametrize("recipe", list(all_recipes()))
def test_few_steps_of_any_recipe_are_a_smoke_run(recipe):
    whole = recipe()
    for steps in {1, 30} & set(range(whole.train.steps)):
        given = dataclasses.replace(whole, train=dataclasses.replace(whole.train, steps=steps))
        short, shortened = process.smoke(given, whole)
        rates = np.asarray(short.optim.schedule(steps)(np.arange(steps)))  # raises where the warm-up does not fit
        peak = float(whole.optim.schedule(whole.train.steps)(whole.optim.warmup_steps))
        assert rates.max() >= 0.5 * peak, "the warm-up does not come to its end"
        if 10 * steps <= whole.train.steps:
            assert shortened.startswith(f"a smoke run, {steps} of the recipe's {whole.train.steps:,} steps")
            assert max(short.evaluate.every, short.checkpoint.every, short.train.log_every) <= steps
            assert bool(short.evaluate.every) == bool(whole.evaluate.every)


def test_a_smoke_run_keeps_what_the_user_states():
    whole = small(optim=Optim(warmup_steps=100), train=Train(steps=1000), evaluate=Evaluate(every=500))
    given = dataclasses.replace(
        whole, optim=Optim(warmup_steps=7), train=Train(steps=50, log_every=3), evaluate=Evaluate(every=500)
    )
    short, shortened = process.smoke(given, whole)
    assert (short.optim.warmup_steps, short.train.log_every) == (7, 3)
    assert (short.evaluate.every, short.checkpoint.every) == (25, 50)
    assert shortened.endswith("in proportion: evaluate.every 500 -> 25, checkpoint.every 1,000 -> 50")
    half = dataclasses.replace(whole, train=Train(steps=500))
    assert process.smoke(half, whole) == (half, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_docstring_says_what_to_expect(path):
    text = brought.read(str(path))[0].__doc__ or ""
    for part in ("transformer-jax train ", "xpected", "ardware", "CPU"):
        assert part in text or part == "CPU" or (part == "ardware" and "core" in text), f"{path}: no {part!r}"
    assert any(label in text for label in ("measured", "published", "estimated"))


def on_256_devices(experiment: Experiment) -> tuple[programs.Program, AbstractMesh]:
    """The program on a mesh of 256 TPUs, 32 hosts of 8: the first shape that fits of those that cut the batch most.

    All of it data and fsdp (8, a host's), or tensor and sequence where the batch has too few rows; without
    accumulation, which is for few devices, if need be; and where no shape fits, with one row for each device.
    """
    train, chip = experiment.train, AbstractDevice("TPU v5p", 2, "tpu")
    tries = [(train.batch_size, n, cut) for n in dict.fromkeys((train.accumulate, 1)) for cut in (1, 2, 4, 8)]
    for batch_size, accumulate, cut in [*tries, (256, 1, 1)]:
        rows = 256 // cut
        for tensor in [cut // n for n in (1, 2, 4, 8) if cut % n == 0]:
            sizes = (rows // min(rows, 8), min(rows, 8), cut // tensor, tensor)
            mesh = AbstractMesh(sizes, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 4, abstract_device=chip)
            if sizes[2] > 1 and not experiment.task.reads_text:
                continue  # of an image's tokens, 197, no number divides
            changed = dataclasses.replace(train, batch_size=batch_size, accumulate=accumulate)
            try:
                return programs.make(dataclasses.replace(experiment, train=changed), mesh, platform="tpu"), mesh
            except InputError:
                continue
    raise AssertionError("no mesh of 256 devices fits, whatever the batch")


def one_of_each_file(param):
    """A recipe; the variants of a file are marked slow, because few of them change more than sizes and sources."""
    is_first = param.id.endswith(":experiment") and not param.id.startswith("detect/detr")  # 53 convolutions to trace
    return pytest.param(*param.values, id=param.id, marks=[] if is_first else [pytest.mark.slow])


@pytest.mark.parametrize("recipe", [one_of_each_file(param) for param in all_recipes()])
def test_the_full_size_step_lowers_for_256_devices_without_arrays(recipe):
    program, mesh = on_256_devices(recipe())
    assert mesh.size == 256 and program.model.dtype == "bfloat16"
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.sharding.use_abstract_mesh(mesh):
        lowered = program.step.trace(program.state, program.batch, key, *program.frozen).lower(
            lowering_platforms=("tpu",)
        )
    new_state, metrics = lowered.out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new_state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), program.state
    )
    assert metrics["sums"]["loss"][0].shape == ()


BART = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def shrink_data(experiment: Any, text: Path, write_tfds) -> Any:
    """A few words on disk in place of the data that the recipe names."""
    small: Any
    source: Any = getattr(experiment.data, "source", None)
    if isinstance(experiment.data, tagged.TaggedWords):
        small = dataclasses.replace(source, data_dir=small_conll2003(write_tfds))
        return tagged.TaggedWords(small, tokenizers.TrainWordPiece(60), 16)
    if isinstance(experiment.data, questions.Questions):
        small = dataclasses.replace(source, data_dir=small_squad(write_tfds))
        return questions.Questions(small, tokenizers.TrainWordPiece(60), 16, 4)
    if isinstance(experiment.data, labelled.LabelledText):
        labels, table = getattr(experiment.task, "labels", ()) or (0.5, 2.0), text.with_suffix(".jsonl")
        rows = [{"text": f"rose {i} is a rose", "b": "it is", "label": labels[i % len(labels)]} for i in range(60)]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        pairs = "b" if experiment.data.source.pairs else ""
        small = tables.Table((str(table),), test=(str(table),), text_b=pairs)
        return labelled.LabelledText(small, tokenizers.TrainWordPiece(60), 16)
    if isinstance(experiment.data, chat.Chats):
        lines, turns = text.with_suffix(".jsonl"), [("user", "a rose is a"), ("assistant", "rose")]
        messages = [{"role": role, "content": said} for role, said in turns]
        lines.write_text(json.dumps({"messages": messages}) + "\n")
        spec: Any = dataclasses.replace(experiment.data.tokenizer, vocab_size=259)  # type: ignore[type-var]
        return chat.Chats(conversations.Messages((str(lines),), validation=(str(lines),)), spec, length=32)
    if isinstance(experiment.model, seq2seq.Config):
        special = BART if experiment.model.eos_id == 2 else tokenizers.t5_special(8)
        spec = tokenizers.TrainBPE(280, special=special)
        if isinstance(experiment.data, corpus.TextCorpus):
            return corpus.TextCorpus(sources.TextFiles((str(text),)), spec, length=16)
        other = text.with_suffix(".other")
        other.write_text(text.read_text())
        both = (str(text), str(other))
        return parallel.ParallelText(bitext.Lines(both, both), spec, source_length=16, target_length=16)
    if isinstance(getattr(experiment.task, "of", experiment.task), MaskedLM):
        folder = text.with_suffix("")
        folder.mkdir()
        for i in range(40):  # several on each side: next_sentence wants another document
            (folder / f"{i}.txt").write_text(text.read_text()[: 100 - i])
        source = sources.TextFiles((str(folder),))
        return dataclasses.replace(experiment.data, source=source, tokenizer=tokenizers.TrainWordPiece(60), length=16)
    return dataclasses.replace(
        experiment.data,
        source=sources.TextFiles((str(text),)),
        tokenizer=tokenizers.Bytes(),
        length=16,
    )


def small_conll2003(write_tfds) -> str:
    """A store with nine sentences in the features and splits of TFDS's conll2003."""
    import tensorflow_datasets as tfds

    labels = tfds.features.ClassLabel(names=tagging.CONLL_2003)
    features = {"tokens": tfds.features.Sequence(tfds.features.Text()), "ner": tfds.features.Sequence(labels)}
    sentence = {"tokens": ["Rose", "is", "a", "rose"], "ner": ["B-PER", "O", "O", "O"]}
    empty: dict[str, list[str]] = {"tokens": [], "ner": []}
    return write_tfds("conll2003", {split: [sentence] * 9 + [empty] for split in ("train", "dev", "test")}, features)


def small_squad(write_tfds) -> str:
    """A store with nine questions in the features and splits of TFDS's squad."""
    import tensorflow_datasets as tfds

    text = {name: tfds.features.Text() for name in ("id", "title", "context", "question")}
    answers = tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32})
    question = {
        **{"id": "q", "title": "roses", "question": "what is a rose?", "context": "a rose is a rose is a rose"},
        "answers": {"text": ["a rose"], "answer_start": [10]},
    }
    splits = {split: [question] * 9 for split in ("train", "validation")}
    return write_tfds("squad/v1.1:3.0.0", splits, text | {"answers": answers})


def shrink_dual(experiment: Experiment, text: Path) -> Experiment:
    """Two small towers, and pairs of a few words, with pictures of noise where the recipe has pictures."""
    small: dict[str, Any] = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
    words, picture = small | {"vocab_size": 280, "max_length": 16}, small | {"image_size": 16, "patch_size": 8}
    model, source, task = experiment.model, experiment.data.source, experiment.task
    towers = {
        side: dataclasses.replace(tower, **(picture if hasattr(tower, "image_size") else words))
        for side in ("left", "right")
        if (tower := getattr(model, side)) is not None
    }
    model = dataclasses.replace(model, **towers, width=16, text_length=0)
    rng, channels = np.random.default_rng(0), len(task.preprocess.mean)
    rows = [{"left": f"{i}.png", "right": f"a rose is rose {i}"} for i in range(40)]
    for row in rows:
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(text.with_name(row["left"]))
    table = text.with_suffix(".jsonl")
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = paired.Table((str(table),), pictures=str(text.parent) if source.images else "")
    data = paired.Paired(pairs, tokenizers.TrainWordPiece(60), length=16)
    size = dataclasses.replace(task.preprocess, size=16, resize=16)
    return dataclasses.replace(experiment, model=model, data=data, task=dataclasses.replace(task, preprocess=size))


def shrink_captioned(experiment: Experiment, text: Path) -> Experiment:
    """Pictures of noise in place of those of the recipe, with captions of a few words."""
    rng, channels = np.random.default_rng(0), experiment.data.tokenizer.channels
    rows = [{"left": f"{i}.png", "right": f"a rose is rose {i}"} for i in range(20)]
    for row in rows:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(text.with_name(row["left"]))
    table = text.with_suffix(".jsonl")
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = TextAndCodes(tokenizers.TrainWordPiece(60), num_codes=8, patch=4, size=8, channels=channels)
    data = captioned.Captioned(paired.Table((str(table),), pictures=str(text.parent)), spec, caption_length=4)
    small: dict[str, Any] = {"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": None, "mlp_width": 32}
    model = dataclasses.replace(experiment.model, **small, vocab_size=80, max_length=8)
    return dataclasses.replace(experiment, model=model, data=data)


def shrink_images(experiment: Experiment, folder: Path) -> Experiment:
    """Sixteen pixels in place of a photograph; the digits are small enough."""
    rng = np.random.default_rng(0)
    changes: dict[str, Any] = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
    model, task, data = experiment.model, experiment.task, experiment.data
    if not isinstance(data.source, image_sources.Digits):
        changes |= {"image_size": 16, "patch_size": 8, "num_classes": 3}
        task = dataclasses.replace(task, preprocess=dataclasses.replace(task.preprocess, size=16, resize=18))
        for side, name, number in itertools.product(("train", "val", "test"), ("ant", "bee", "cow"), range(3)):
            path = folder / side / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
        data = dataclasses.replace(data, source=image_sources.Folder(str(folder)))
    return dataclasses.replace(experiment, model=dataclasses.replace(model, **changes), task=task, data=data)


def shrink_scenes(experiment: Experiment) -> Experiment:
    """A few scenes of digits."""
    data: Any = {
        boxes.BoxSet: boxes.BoxSet(scenes.Scenes(train=16, validation=8), most_objects=4),
        masks.MaskSet: masks.MaskSet(scenes.Scenes(train=16, validation=8)),
        SegmentSet: SegmentSet(scenes.Scenes(train=16, validation=8), most_segments=4),
    }[type(experiment.data)]
    changes: dict[str, Any] = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32, "image_size": 32}
    changes["num_classes"] = 11 if isinstance(experiment.data, masks.MaskSet) else 10
    if isinstance(experiment.model, detr.Config):
        changes |= {"num_decoder_layers": 1, "stem_width": 4, "stage_depths": (1, 1), "stage_widths": (8, 8)}
    elif isinstance(experiment.model, eomt.Config):
        changes |= {"patch_size": 16, "num_layers": 2, "num_blocks": 1, "num_queries": 5}
    else:
        changes |= {"patch_size": 16}
    model = dataclasses.replace(experiment.model, **changes)
    task = dataclasses.replace(
        experiment.task, preprocess=dataclasses.replace(experiment.task.preprocess, size=32, resize=32)
    )
    return dataclasses.replace(experiment, model=model, data=data, task=task)


def shrink_histories(experiment: Experiment, text: Path) -> Experiment:
    """Nine users of six items each."""
    events = text.with_suffix(".inter")
    rows = [f"u{user}\ti{(user + at) % 7}\t{at}" for user in range(9) for at in range(6)]
    events.write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows, ""]))
    data = histories.Histories(interactions.Table((str(events),)), length=8)
    model = dataclasses.replace(experiment.model, vocab_size=9, max_length=8, width=16, num_layers=1, num_heads=2)
    return dataclasses.replace(experiment, model=model, data=data, sample=Predict(inputs=("i1, i2",)))


def shrink(experiment: Experiment, text: Path, write_tfds) -> Experiment:
    """The same recipe with little of everything. Of encoder-decoders no text is asked: other tests search beams."""
    if isinstance(experiment.data, paired.Paired):
        return shrink_run(shrink_dual(experiment, text))
    if isinstance(experiment.data, captioned.Captioned):
        return shrink_run(shrink_captioned(experiment, text))
    if isinstance(experiment.data, sounds.Sounds):
        return shrink_run(shrink_sounds(experiment, text.with_suffix("")))
    if isinstance(experiment.data, utterances.Speech):
        return shrink_run(shrink_speech(experiment, text.with_suffix("")))
    if isinstance(experiment.data, images.ImageSet):
        return shrink_run(shrink_images(experiment, text.with_suffix("")))
    if isinstance(experiment.data, boxes.BoxSet | masks.MaskSet | SegmentSet):
        return shrink_run(shrink_scenes(experiment))
    if isinstance(experiment.data, histories.Histories):
        return shrink_run(shrink_histories(experiment, text))
    pairs = isinstance(experiment.model, seq2seq.Config)
    model = dataclasses.replace(
        experiment.model,
        vocab_size=280 if pairs else 257,
        max_length=16,
        width=16,
        num_layers=1,
        num_heads=2,
        mlp_width=32,
    )
    data = shrink_data(experiment, text, write_tfds)
    if isinstance(experiment.data, chat.Chats):
        model = dataclasses.replace(model, vocab_size=259, max_length=32)
    if pairs or isinstance(experiment.data, chat.Chats):
        task = experiment.task
        task = dataclasses.replace(task, metrics=()) if hasattr(task, "metrics") else task
        experiment = dataclasses.replace(experiment, task=task, sample=Predict() if pairs else None)
    return shrink_run(dataclasses.replace(experiment, model=model, data=data))


def shrink_speech(experiment: Experiment, folder: Path) -> Experiment:
    """A small encoder, and noise of half a second in place of speech."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["path\tsentence"]
    for i in range(20):
        waves.write(folder / f"{i}.wav", rng.normal(0, 0.1, 8000))
        lines.append(f"{i}.wav\ta rose")
    (folder / "a.tsv").write_text("\n".join(lines))
    small = {"vocab_size": 300, "width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 32}
    spec: Any = tokenizers.Bytes()
    if isinstance(experiment.task, Transcription):
        spec = tokenizers.TokenizerFile(str(ROOT / "tests/data/hf/whisper"))
        small |= {"max_frames": 100, "max_length": 24, "eos_id": 30, "pad_id": 30, "decoder_start_id": 31}
        experiment = dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, language="en"))
    else:
        small |= {"mels": 20}
    source = recordings.Recordings((str(folder / "a.tsv"),), (str(folder / "a.tsv"),))
    data = dataclasses.replace(experiment.data, source=source, tokenizer=spec, seconds=1.2, labels=8)
    task = experiment.task
    if isinstance(task, SpeechSynthesis):
        task = dataclasses.replace(task, listener=dataclasses.replace(task.listener, **small))
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **small), data=data, task=task)


def shrink_sounds(experiment: Experiment, folder: Path) -> Experiment:
    """Noise of two classes."""
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / ("high" if i % 2 else "low") / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        waves.write(path, rng.normal(0, 0.1, 4000))
    small = {"num_classes": 2, "num_mels": 20, "max_frames": 26, "width": 16, "num_layers": 1, "num_heads": 2}
    data = sounds.Sounds(sounds.Folders(str(folder), validation_fraction=0.4), seconds=0.25)
    return dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **small), data=data)


def shrink_run(experiment: Experiment) -> Experiment:
    cooled = {"cooldown_steps": 1} if getattr(experiment.optim, "cooldown_steps", 0) else {}
    return dataclasses.replace(
        experiment,
        optim=dataclasses.replace(experiment.optim, warmup_steps=1, decay_steps=0, **cooled),
        train=Train(
            steps=2, batch_size=8 * min(experiment.train.accumulate, 2), accumulate=min(experiment.train.accumulate, 2)
        ),
        evaluate=Evaluate(batch_size=8),
        sample=dataclasses.replace(experiment.sample, max_new_tokens=0)
        if hasattr(experiment.sample, "max_new_tokens")
        else experiment.sample,
        init_from="",
    )


# With little of everything these are others: imagenet_s16, imagefolder, translation.cldr, glue, mlm.stdlib,
# embed.icons.
ALIKE = (
    *("imagenet_b16", "cifar10", "cifar10_finetune", "wmt14_base", "wmt14_big", "multi30k", "sst2", "stdlib_topics"),
    *("roberta_base", "distilbert_base", "stdlib_search", "sentence", "clip_b32", "siglip_b16", "stdlib_calls"),
    *("librispeech_ctc", "synthesis", "whisper_finetune", "llamagen_b", "esm2_8m", "dna", "peptides", "detr_r50_coco"),
    "commands",
)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in ALIKE else []) for path in FILES],
)
def test_a_shrunken_one_trains(path, tmp_path, write_tfds):
    text = tmp_path / "text.txt"
    text.write_text("a rose is a rose is a rose\n" * 30)
    experiment = process.variants(brought.read(str(path))[0])["experiment"]()
    small = shrink(experiment, text, write_tfds)
    if isinstance(small.task, Distillation):  # the same model without a teacher is the teacher
        loop.run(dataclasses.replace(small, task=small.task.of), tmp_path / "teacher", load=restore.load)
        small = dataclasses.replace(small, task=dataclasses.replace(small.task, teacher=str(tmp_path / "teacher")))
    if isinstance(small.task, SpeechSynthesis):
        heard = dataclasses.replace(small, model=small.task.listener, task=SpeechRecognition())
        heard = dataclasses.replace(heard, checkpoint=Checkpoint(best_metric="wer"))
        loop.run(heard, tmp_path / "listener", load=restore.load)
        small = dataclasses.replace(small, task=dataclasses.replace(small.task, recogniser=str(tmp_path / "listener")))
    results = loop.run(small, tmp_path / "run", load=restore.load)
    assert results.step == 2
    for name in (experiment.checkpoint.best_metric, experiment.task.best_metric()):
        assert np.isfinite(results.report[name])
    assert results.report.get("bits_per_byte", 0) < 9
