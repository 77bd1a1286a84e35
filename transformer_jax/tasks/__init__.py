"""The tasks. The folder of each has its data, loss, reported numbers and predictions."""

from transformer_jax.tasks.audio_classification import AudioClassification
from transformer_jax.tasks.causal_lm import CausalLM
from transformer_jax.tasks.chat import Chat
from transformer_jax.tasks.classification import Classification
from transformer_jax.tasks.contrastive import Contrastive
from transformer_jax.tasks.denoising import Denoising
from transformer_jax.tasks.detection import Detection
from transformer_jax.tasks.distillation import Distillation
from transformer_jax.tasks.image_classification import ImageClassification
from transformer_jax.tasks.masked_image import MaskedImage
from transformer_jax.tasks.masked_lm import MaskedLM
from transformer_jax.tasks.next_item import NextItem
from transformer_jax.tasks.panoptic import Panoptic
from transformer_jax.tasks.preferences import DPO
from transformer_jax.tasks.segmentation import Segmentation
from transformer_jax.tasks.span_qa import SpanQA
from transformer_jax.tasks.speech_recognition import SpeechRecognition
from transformer_jax.tasks.speech_synthesis import SpeechSynthesis
from transformer_jax.tasks.tagging import Tagging
from transformer_jax.tasks.text_to_image import TextToImage
from transformer_jax.tasks.transcription import Transcription
from transformer_jax.tasks.translation import Translation

__all__ = [
    "DPO",
    "AudioClassification",
    "CausalLM",
    "Chat",
    "Classification",
    "Contrastive",
    "Denoising",
    "Detection",
    "Distillation",
    "ImageClassification",
    "MaskedImage",
    "MaskedLM",
    "NextItem",
    "Panoptic",
    "Segmentation",
    "SpanQA",
    "SpeechRecognition",
    "SpeechSynthesis",
    "Tagging",
    "TextToImage",
    "Transcription",
    "Translation",
]
