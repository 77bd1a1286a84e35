"""Icons drawn from words: a small decoder over captions and codes of pictures, which runs on every machine.

tools/run experiments.text_to_image.icons
transformer-jax train text_to_image.icons --seed 1 --workdir runs/icons-1
transformer-jax predict runs/text_to_image-icons "arrow left bold" --out arrows.png --count 16

Data: the 15,510 glyphs of `embed.icons` with their names, 32 x 32 pixels, a tenth of the names' stems held out. A
picture is 8 x 8 codes of patches, by a codebook of 256 patches.
Model: the modern decoder, 4 layers, 160 wide, over 8 tokens of a name and 64 codes.

Hardware and time: 2 CPU cores, about twelve minutes.
Expected: 1.28 to 1.36 nats per code of held-out icons with their own name, and 1.39 to 1.48 with another's. The codes
to the left and above give 1.8 to 1.9, none 3.2 to 3.3 (measured, printed by each run). drawn/ in the workdir shows
icons of 32 held-out names at each evaluation.
"""

from transformer_jax.data.tokenizers import TrainWordPiece
from transformer_jax.experiment import Checkpoint, Evaluate, Experiment, Train
from transformer_jax.models import gpt
from transformer_jax.optim import Muon
from transformer_jax.tasks import TextToImage
from transformer_jax.tasks.contrastive.icons import Icons
from transformer_jax.tasks.text_to_image import Draw
from transformer_jax.tasks.text_to_image.captioned import Captioned
from transformer_jax.tasks.text_to_image.tokenizer import TextAndCodes


def experiment() -> Experiment:
    return Experiment(
        model=gpt.Config(
            vocab_size=1280,  # 256 codes, the blank and the tokens of text
            max_length=8 + 64,
            width=160,
            num_layers=4,
            num_heads=5,
            mlp_width=432,  # 8/3 of the width, as a gate is a third matrix
            activation="silu",
            gated=True,
            norm="rms",
            bias=False,
            position="learned",
            scan_layers=False,
        ),
        data=Captioned(
            Icons(),
            TextAndCodes(TrainWordPiece(1023), num_codes=256, patch=4, size=32, channels=1),
            caption_length=8,
        ),
        task=TextToImage(),
        optim=Muon(
            peak_lr=0.02, adamw_lr=4e-3, lr_schedule="linear", warmup_steps=30, final_lr_fraction=0.0, iterations=4
        ),
        train=Train(steps=800, batch_size=32, log_every=20),
        evaluate=Evaluate(every=400, batch_size=142),
        checkpoint=Checkpoint(every=400),
        sample=Draw(),
    )


if __name__ == "__main__":
    import sys

    from transformer_jax.__main__ import main

    raise SystemExit(main(["train", __file__, *sys.argv[1:]]))
