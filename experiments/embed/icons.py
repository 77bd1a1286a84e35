"""Pictures found by words: 32 x 32 icons and their names in one space, which runs on every machine.

    tools/run experiments.embed.icons
    transformer-jax train embed.icons --seed 1 --workdir runs/icons-1
    transformer-jax predict runs/embed-icons "bicycle" --search photos

Data: 15,510 glyphs of four icon fonts with names such as "arrow left bold", drawn when the run begins. A tenth of the
names' stems are held out with all their pictures: the validation set is 710 pictures and 710 names, none of whose
stems was seen, and a third of which have a word that training has fewer than three times. So names are split into
subwords.
Model: a Vision Transformer of four layers over patches of 8 x 8, and an encoder of one layer over the name, both 96
wide. InfoNCE over batches of 128, in which names that share rare words are right for each other in part (`shared`), and
Muon. Each row of the log has the recall within the batch, of which chance is 0.008.

Hardware and time: 2 CPU cores, about eight minutes.
Expected: recall at 1 of 0.30 to 0.38 from pictures to names and back, at 10 of 0.56 to 0.65. The words of the 20
nearest training pictures, which each run prints, reach 0.30 to 0.34 and 0.60 to 0.64 (measured): the model is ahead at
the first place alone. Its training names are found within the batch nearly always, so it overfits. The recipe was
chosen on 710 other stems, held out of the training ones. validation_retrieval.png in the workdir shows what five names
find.
"""

from transformer_jax.augment import Affine
from transformer_jax.data.preprocess import Preprocess
from transformer_jax.data.tokenizers import TrainWordPiece
from transformer_jax.experiment import Checkpoint, Ema, Evaluate, Experiment, Train
from transformer_jax.models import bert, dual, vit
from transformer_jax.optim import Muon
from transformer_jax.tasks import Contrastive
from transformer_jax.tasks.contrastive.icons import Icons
from transformer_jax.tasks.contrastive.paired import Paired


def experiment() -> Experiment:
    return Experiment(
        model=dual.Config(
            left=vit.Config(
                image_size=32,
                patch_size=8,
                channels=1,
                num_classes=0,
                width=96,
                num_layers=4,
                num_heads=3,
                pool="mean",
                scan_layers=False,
            ),
            right=bert.Config(
                vocab_size=2048,
                max_length=16,
                width=96,
                num_layers=1,
                num_heads=3,
                num_types=0,
                norm_order="pre",
                pooling="mean",
                heads=(),
                scan_layers=False,
            ),
            width=128,
        ),
        data=Paired(Icons(), TrainWordPiece(2048), length=12),
        task=Contrastive(
            preprocess=Preprocess(size=32, resize=32, mean=(0.25,), std=(0.43,)),
            augment=(Affine(degrees=8, shift=0.08, zoom=(0.8, 1.15)),),
            shared=0.5,
        ),
        optim=Muon(
            peak_lr=0.02, adamw_lr=3e-3, lr_schedule="linear", warmup_steps=30, final_lr_fraction=0.0, iterations=4
        ),
        train=Train(steps=2000, batch_size=128, log_every=50),
        evaluate=Evaluate(every=250, batch_size=355),
        checkpoint=Checkpoint(every=500, best_metric="recall_at_1_right_to_left", best="highest"),
        ema=Ema(0.99),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
