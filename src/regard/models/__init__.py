"""Whole networks, one readable file each; ``regard.models.TransformerLM`` imports its file when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.models.abcnn import ABCNN as ABCNN
    from regard.models.alphafold import AlphaFold as AlphaFold
    from regard.models.axial_transformer import AxialTransformer as AxialTransformer
    from regard.models.bert import BertEncoder as BertEncoder
    from regard.models.bigbird_encoder import BigBirdEncoder as BigBirdEncoder
    from regard.models.both_ways import across as across
    from regard.models.bpt import BPT as BPT
    from regard.models.by_name import load_by_name as load_by_name
    from regard.models.can import CAN as CAN
    from regard.models.caption_losses import CaptionLoss as CaptionLoss
    from regard.models.captioner import Captioner as Captioner
    from regard.models.code_prior import CodePrior as CodePrior
    from regard.models.compressive_transformer import CompressiveTransformer as CompressiveTransformer
    from regard.models.cosnet import COSNet as COSNet
    from regard.models.decoding import generate as generate
    from regard.models.deep_sets import DeepSets as DeepSets
    from regard.models.evoformer import EvoformerStack as EvoformerStack
    from regard.models.forecaster import TransformerForecaster as TransformerForecaster
    from regard.models.hybrid import attention_loss as attention_loss
    from regard.models.hybrid import hybrid_loss as hybrid_loss
    from regard.models.informer import Informer as Informer
    from regard.models.invariant_point import InvariantPointAttention as InvariantPointAttention
    from regard.models.joint_decoding import joint_search as joint_search
    from regard.models.jukebox_conditions import LabelEmbedding as LabelEmbedding
    from regard.models.jukebox_conditions import LyricsEncoder as LyricsEncoder
    from regard.models.jukebox_conditions import UpperCodes as UpperCodes
    from regard.models.jukebox_prior import JukeboxPrior as JukeboxPrior
    from regard.models.jukebox_sampling import sample_codes as sample_codes
    from regard.models.jukebox_sampling import sample_levels as sample_levels
    from regard.models.jukebox_sampling import sample_windows as sample_windows
    from regard.models.jukebox_transformer import JukeboxTransformer as JukeboxTransformer
    from regard.models.language_models import NeuralLanguageModel as NeuralLanguageModel
    from regard.models.language_models import NGram as NGram
    from regard.models.linformer import Linformer as Linformer
    from regard.models.location_decoder import LocationDecoder as LocationDecoder
    from regard.models.log_mel import LogMel as LogMel
    from regard.models.longformer_encoder import LongformerEncoder as LongformerEncoder
    from regard.models.luong_translator import LuongTranslator as LuongTranslator
    from regard.models.mac_network import MACNetwork as MACNetwork
    from regard.models.map_transformer import MapClassifier as MapClassifier
    from regard.models.map_transformer import MapSegmenter as MapSegmenter
    from regard.models.memformer import Memformer as Memformer
    from regard.models.nystromformer import Nystromformer as Nystromformer
    from regard.models.on_maps import map_attention as map_attention
    from regard.models.pair_classifier import PairClassifier as PairClassifier
    from regard.models.performer import Performer as Performer
    from regard.models.pkm_transformer import PKMTransformer as PKMTransformer
    from regard.models.plugs import Plug as Plug
    from regard.models.pooler import TransformerPooler as TransformerPooler
    from regard.models.qacg_bert import ContextGuidedBert as ContextGuidedBert
    from regard.models.reformer import Reformer as Reformer
    from regard.models.residual_network import ResNet as ResNet
    from regard.models.resnet_family import resnet as resnet
    from regard.models.reversible import ChunkedFeedForward as ChunkedFeedForward
    from regard.models.reversible import PreNorm as PreNorm
    from regard.models.reversible import ReversibleBlock as ReversibleBlock
    from regard.models.reversible import ReversibleSequence as ReversibleSequence
    from regard.models.rnnsearch import RNNsearch as RNNsearch
    from regard.models.routing_transformer import RoutingTransformer as RoutingTransformer
    from regard.models.segmenter import Segmenter as Segmenter
    from regard.models.segmenter import segmentation_loss as segmentation_loss
    from regard.models.set_transformer import SetTransformer as SetTransformer
    from regard.models.slim_performer import SlimPerformerLM as SlimPerformerLM
    from regard.models.sound_blocks import Residual as Residual
    from regard.models.sound_loss import SoundLoss as SoundLoss
    from regard.models.sound_loss import bandwidth as bandwidth
    from regard.models.speech_recognizer import SpeechRecognizer as SpeechRecognizer
    from regard.models.structure_module import StructureModule as StructureModule
    from regard.models.structure_truth import ProteinTruth as ProteinTruth
    from regard.models.template_features import Templates as Templates
    from regard.models.template_pairs import TemplateAttention as TemplateAttention
    from regard.models.template_pairs import TemplateEmbedding as TemplateEmbedding
    from regard.models.template_pairs import TemplatePairStack as TemplatePairStack
    from regard.models.transcribing import timed_labels as timed_labels
    from regard.models.transcribing import timed_words as timed_words
    from regard.models.transcribing import transcribe as transcribe
    from regard.models.transformer import TransformerClassifier as TransformerClassifier
    from regard.models.transformer import TransformerEncoder as TransformerEncoder
    from regard.models.transformer import TransformerLM as TransformerLM
    from regard.models.transformer_2017 import Transformer as Transformer
    from regard.models.translating import beam_search as beam_search
    from regard.models.translating import greedy as greedy
    from regard.models.translation_model import TranslationModel as TranslationModel
    from regard.models.vqvae import VQVAE as VQVAE

_FILES = {
    "abcnn": ("ABCNN",),
    "alphafold": ("AlphaFold",),
    "axial_transformer": ("AxialTransformer",),
    "bert": ("BertEncoder",),
    "bigbird_encoder": ("BigBirdEncoder",),
    "both_ways": ("across",),
    "bpt": ("BPT",),
    "by_name": ("load_by_name",),
    "can": ("CAN",),
    "caption_losses": ("CaptionLoss",),
    "captioner": ("Captioner",),
    "code_prior": ("CodePrior",),
    "compressive_transformer": ("CompressiveTransformer",),
    "cosnet": ("COSNet",),
    "decoding": ("generate",),
    "deep_sets": ("DeepSets",),
    "evoformer": ("EvoformerStack",),
    "forecaster": ("TransformerForecaster",),
    "hybrid": ("attention_loss", "hybrid_loss"),
    "informer": ("Informer",),
    "invariant_point": ("InvariantPointAttention",),
    "joint_decoding": ("joint_search",),
    "jukebox_conditions": ("LabelEmbedding", "LyricsEncoder", "UpperCodes"),
    "jukebox_prior": ("JukeboxPrior",),
    "jukebox_sampling": ("sample_codes", "sample_levels", "sample_windows"),
    "jukebox_transformer": ("JukeboxTransformer",),
    "language_models": ("NGram", "NeuralLanguageModel"),
    "linformer": ("Linformer",),
    "location_decoder": ("LocationDecoder",),
    "log_mel": ("LogMel",),
    "longformer_encoder": ("LongformerEncoder",),
    "luong_translator": ("LuongTranslator",),
    "mac_network": ("MACNetwork",),
    "map_transformer": ("MapClassifier", "MapSegmenter"),
    "memformer": ("Memformer",),
    "nystromformer": ("Nystromformer",),
    "on_maps": ("map_attention",),
    "pair_classifier": ("PairClassifier",),
    "performer": ("Performer",),
    "pkm_transformer": ("PKMTransformer",),
    "plugs": ("Plug",),
    "pooler": ("TransformerPooler",),
    "qacg_bert": ("ContextGuidedBert",),
    "reformer": ("Reformer",),
    "residual_network": ("ResNet",),
    "resnet_family": ("resnet",),
    "reversible": ("ChunkedFeedForward", "PreNorm", "ReversibleBlock", "ReversibleSequence"),
    "rnnsearch": ("RNNsearch",),
    "routing_transformer": ("RoutingTransformer",),
    "segmenter": ("Segmenter", "segmentation_loss"),
    "set_transformer": ("SetTransformer",),
    "slim_performer": ("SlimPerformerLM",),
    "sound_blocks": ("Residual",),
    "sound_loss": ("SoundLoss", "bandwidth"),
    "speech_recognizer": ("SpeechRecognizer",),
    "structure_module": ("StructureModule",),
    "structure_truth": ("ProteinTruth",),
    "template_features": ("Templates",),
    "template_pairs": ("TemplateAttention", "TemplateEmbedding", "TemplatePairStack"),
    "transcribing": ("timed_labels", "timed_words", "transcribe"),
    "transformer": ("TransformerClassifier", "TransformerEncoder", "TransformerLM"),
    "transformer_2017": ("Transformer",),
    "translating": ("beam_search", "greedy"),
    "translation_model": ("TranslationModel",),
    "vqvae": ("VQVAE",),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regard.models' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"regard.models.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
