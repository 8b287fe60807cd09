"""Every tested architecture: a tiny seeded model and a tokenizer of the same type."""

from dataclasses import dataclass, field

import torch
import transformers as tf
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

VOCABULARY = 320
POSITIONS = 64

# Sizes under the names that most configurations use.
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
DECODER = {**BASE, "max_position_embeddings": POSITIONS, "num_key_value_heads": 2}
POSITIONED = {**BASE, "max_position_embeddings": POSITIONS}
OFFSET = {**BASE, "max_position_embeddings": POSITIONS + 2, "pad_token_id": 1}
WINDOW = {**DECODER, "head_dim": 16, "sliding_window": 16}
OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": POSITIONS,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class TinyArchitecture:
    """One architecture: its configuration, and its tokenizer's algorithm and special tokens.

    `template` shows the special tokens around one text and around a pair; `$A` and `$B` are texts.
    """

    config: type
    options: dict
    algorithm: str
    template: tuple[str, str]
    special: dict[str, str] = field(default_factory=dict)
    padding_side: str = "right"


BERT = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
ROBERTA = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
PLAIN = ("$A", "$A $B")
BERT_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
ROBERTA_SPECIAL = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
END = {"eos": "<|end|>"}  # decoders with one special token, which is also the padding
# The template and the special tokens of a family.
LLAMA = ("<s> $A", "<s> $A <s> $B"), {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
GEMMA = (
    ("<bos> $A", "<bos> $A <bos> $B"),
    {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"},
)
OPT_WORDS = ("</s> $A", "</s> $A </s> $B"), {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}

ARCHITECTURES = {
    "BERT": TinyArchitecture(tf.BertConfig, POSITIONED, "wordpiece", BERT, BERT_SPECIAL),
    "RoBERTa": TinyArchitecture(tf.RobertaConfig, OFFSET, "bytes", ROBERTA, ROBERTA_SPECIAL),
    "XLM-R": TinyArchitecture(tf.XLMRobertaConfig, OFFSET, "unigram", ROBERTA, ROBERTA_SPECIAL),
    "CamemBERT": TinyArchitecture(tf.CamembertConfig, OFFSET, "unigram", ROBERTA, ROBERTA_SPECIAL),
    "ELECTRA": TinyArchitecture(
        tf.ElectraConfig, {**POSITIONED, "embedding_size": 24}, "wordpiece", BERT, BERT_SPECIAL
    ),
    "ALBERT": TinyArchitecture(
        tf.AlbertConfig, {**POSITIONED, "embedding_size": 24}, "unigram", BERT, BERT_SPECIAL
    ),
    "DistilBERT": TinyArchitecture(
        tf.DistilBertConfig,
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 48,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.2,
        },
        "wordpiece",
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
        BERT_SPECIAL,
    ),
    "MPNet": TinyArchitecture(tf.MPNetConfig, OFFSET, "wordpiece", ROBERTA, ROBERTA_SPECIAL),
    "DeBERTa": TinyArchitecture(
        tf.DebertaConfig,
        {**POSITIONED, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "bytes",
        BERT,
        BERT_SPECIAL,
    ),
    "DeBERTa-v2": TinyArchitecture(
        tf.DebertaV2Config,
        {
            **POSITIONED,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_biased_input": False,
        },
        "unigram",
        BERT,
        BERT_SPECIAL,
    ),
    "ModernBERT": TinyArchitecture(
        tf.ModernBertConfig,
        {
            **POSITIONED,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        "bytes",
        BERT,
        BERT_SPECIAL,
    ),
    "EuroBERT": TinyArchitecture(
        tf.EuroBertConfig, DECODER, "bytes", ("<s> $A </s>", "<s> $A </s> $B </s>"), ROBERTA_SPECIAL
    ),
    "Nomic-BERT": TinyArchitecture(tf.NomicBertConfig, POSITIONED, "wordpiece", BERT, BERT_SPECIAL),
    "Megatron-BERT": TinyArchitecture(
        tf.MegatronBertConfig, POSITIONED, "wordpiece", BERT, BERT_SPECIAL
    ),
    "XLNet": TinyArchitecture(
        tf.XLNetConfig,
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_layer": 2,
            "n_head": 2,
            "d_inner": 48,
            "initializer_range": 0.2,
            "pad_token_id": 0,
        },
        "unigram",
        ("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"),
        {"pad": "<pad>", "unk": "<unk>", "sep": "<sep>", "cls": "<cls>"},
        "left",
    ),
    "GPT-2": TinyArchitecture(tf.GPT2Config, GPT, "bytes", PLAIN, END),
    "GPT-Neo": TinyArchitecture(
        tf.GPTNeoConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.2,
        },
        "bytes",
        PLAIN,
        END,
    ),
    "GPT-J": TinyArchitecture(tf.GPTJConfig, {**GPT, "rotary_dim": 8}, "bytes", PLAIN, END),
    "GPT-NeoX": TinyArchitecture(tf.GPTNeoXConfig, POSITIONED, "bytes", PLAIN, END),
    "OPT": TinyArchitecture(tf.OPTConfig, OPT, "bytes", *OPT_WORDS),
    "OPT (projected)": TinyArchitecture(
        tf.OPTConfig,
        {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "bytes",
        *OPT_WORDS,
    ),
    "BLOOM": TinyArchitecture(
        tf.BloomConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 2,
            "initializer_range": 0.2,
        },
        "bytes",
        PLAIN,
        {"pad": "<pad>", "eos": "</s>"},
    ),
    "Falcon": TinyArchitecture(
        tf.FalconConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.2,
        },
        "bytes",
        PLAIN,
        END,
    ),
    "Llama": TinyArchitecture(tf.LlamaConfig, DECODER, "sentencepiece", *LLAMA),
    "Mistral": TinyArchitecture(
        tf.MistralConfig, {**DECODER, "sliding_window": 16}, "sentencepiece", *LLAMA
    ),
    "Gemma": TinyArchitecture(tf.GemmaConfig, {**DECODER, "head_dim": 16}, "sentencepiece", *GEMMA),
    "Gemma 2": TinyArchitecture(tf.Gemma2Config, WINDOW, "sentencepiece", *GEMMA),
    "Gemma 3": TinyArchitecture(tf.Gemma3TextConfig, WINDOW, "sentencepiece", *GEMMA),
    "Phi": TinyArchitecture(tf.PhiConfig, DECODER, "bytes", PLAIN, END),
    "Qwen 2": TinyArchitecture(tf.Qwen2Config, DECODER, "bytes", PLAIN, {"pad": "<|pad|>", **END}),
    "Qwen 3": TinyArchitecture(
        tf.Qwen3Config, {**DECODER, "head_dim": 16}, "bytes", PLAIN, {"pad": "<|pad|>", **END}
    ),
    "BART": TinyArchitecture(
        tf.BartConfig,
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": POSITIONS,
            "init_std": 0.2,
        },
        "bytes",
        ROBERTA,
        {**ROBERTA_SPECIAL, "eos": "</s>"},
    ),
    "T5": TinyArchitecture(
        tf.T5Config,
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        "unigram",
        ("$A </s>", "$A </s> $B </s>"),
        {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    ),
}


def build_tokenizer(
    architecture: TinyArchitecture, sentences: list[str]
) -> PreTrainedTokenizerFast:
    """A tokenizer of the architecture's type, trained on `sentences`."""
    special = list(dict.fromkeys(architecture.special.values()))
    unk = architecture.special.get("unk")
    common = {"vocab_size": VOCABULARY, "special_tokens": special, "show_progress": False}
    if architecture.algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**common)
    elif architecture.algorithm == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(**common, initial_alphabet=alphabet)
    elif architecture.algorithm == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**common, unk_token=unk)
    else:  # sentencepiece's BPE
        tokenizer = Tokenizer(models.BPE(unk_token=unk, fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(**common)
    tokenizer.train_from_iterator(sentences, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in special]
    if architecture.template != PLAIN:
        single, pair = architecture.template
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=ids
        )
    names = {f"{name}_token": token for name, token in architecture.special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=architecture.padding_side, **names
    )


def build_model(architecture: TinyArchitecture, tokenizer, seed: int = 0, **options):
    """The architecture's classifier with random weights, with two labels by default."""
    chosen = {**architecture.options, **options}
    for name in ("pad", "bos", "eos"):
        value = getattr(tokenizer, f"{name}_token_id")
        if name != "pad" or value is not None:
            chosen.setdefault(f"{name}_token_id", value)
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(architecture.config(**chosen)).eval()


def tokenizer_that_pads(
    architecture: TinyArchitecture, sentences: list[str]
) -> PreTrainedTokenizerFast:
    """The same; without a pad token, it pads with its end token, as ptune's own loading does."""
    tokenizer = build_tokenizer(architecture, sentences)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer
