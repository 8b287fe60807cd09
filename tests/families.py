"""Every family of backbones that is tested: a tiny seeded model and a tokenizer of its kind."""

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

# Sizes under the names that most configurations give them.
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
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": POSITIONS,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Family:
    """One family: its configuration, and how its tokenizer works and frames a text.

    `template` is the frame of one text and of a pair; `$A` and `$B` are the texts.
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
LLAMA = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}

FAMILIES = {
    "BERT": Family(tf.BertConfig, POSITIONED, "wordpiece", BERT, BERT_SPECIAL),
    "RoBERTa": Family(tf.RobertaConfig, OFFSET, "bytes", ROBERTA, ROBERTA_SPECIAL),
    "XLM-R": Family(tf.XLMRobertaConfig, OFFSET, "unigram", ROBERTA, ROBERTA_SPECIAL),
    "CamemBERT": Family(tf.CamembertConfig, OFFSET, "unigram", ROBERTA, ROBERTA_SPECIAL),
    "ELECTRA": Family(
        tf.ElectraConfig, {**POSITIONED, "embedding_size": 24}, "wordpiece", BERT, BERT_SPECIAL
    ),
    "ALBERT": Family(
        tf.AlbertConfig, {**POSITIONED, "embedding_size": 24}, "unigram", BERT, BERT_SPECIAL
    ),
    "DistilBERT": Family(
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
    "MPNet": Family(tf.MPNetConfig, OFFSET, "wordpiece", ROBERTA, ROBERTA_SPECIAL),
    "DeBERTa": Family(
        tf.DebertaConfig,
        {**POSITIONED, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "bytes",
        BERT,
        BERT_SPECIAL,
    ),
    "DeBERTa-v2": Family(
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
    "ModernBERT": Family(
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
    "EuroBERT": Family(
        tf.EuroBertConfig, DECODER, "bytes", ("<s> $A </s>", "<s> $A </s> $B </s>"), ROBERTA_SPECIAL
    ),
    "Nomic-BERT": Family(tf.NomicBertConfig, POSITIONED, "wordpiece", BERT, BERT_SPECIAL),
    "Megatron-BERT": Family(tf.MegatronBertConfig, POSITIONED, "wordpiece", BERT, BERT_SPECIAL),
    "XLNet": Family(
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
    "GPT-2": Family(tf.GPT2Config, GPT, "bytes", PLAIN, END),
    "GPT-Neo": Family(
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
    "GPT-J": Family(tf.GPTJConfig, {**GPT, "rotary_dim": 8}, "bytes", PLAIN, END),
    "GPT-NeoX": Family(tf.GPTNeoXConfig, POSITIONED, "bytes", PLAIN, END),
    "OPT": Family(
        tf.OPTConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": POSITIONS,
            "init_std": 0.2,
        },
        "bytes",
        ("</s> $A", "</s> $A </s> $B"),
        {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    ),
    "OPT (projected)": Family(
        tf.OPTConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 48,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "max_position_embeddings": POSITIONS,
            "init_std": 0.2,
        },
        "bytes",
        ("</s> $A", "</s> $A </s> $B"),
        {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    ),
    "BLOOM": Family(
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
    "Falcon": Family(
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
    "Llama": Family(tf.LlamaConfig, DECODER, "sentencepiece", ("<s> $A", "<s> $A <s> $B"), LLAMA),
    "Mistral": Family(
        tf.MistralConfig,
        {**DECODER, "sliding_window": 16},
        "sentencepiece",
        ("<s> $A", "<s> $A <s> $B"),
        LLAMA,
    ),
    "Gemma": Family(
        tf.GemmaConfig,
        {**DECODER, "head_dim": 16},
        "sentencepiece",
        ("<bos> $A", "<bos> $A <bos> $B"),
        {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"},
    ),
    "Gemma 2": Family(
        tf.Gemma2Config,
        {**DECODER, "head_dim": 16, "sliding_window": 16},
        "sentencepiece",
        ("<bos> $A", "<bos> $A <bos> $B"),
        {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"},
    ),
    "Gemma 3": Family(
        tf.Gemma3TextConfig,
        {**DECODER, "head_dim": 16, "sliding_window": 16},
        "sentencepiece",
        ("<bos> $A", "<bos> $A <bos> $B"),
        {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"},
    ),
    "Phi": Family(tf.PhiConfig, DECODER, "bytes", PLAIN, END),
    "Qwen 2": Family(tf.Qwen2Config, DECODER, "bytes", PLAIN, {"pad": "<|pad|>", **END}),
    "Qwen 3": Family(
        tf.Qwen3Config, {**DECODER, "head_dim": 16}, "bytes", PLAIN, {"pad": "<|pad|>", **END}
    ),
    "BART": Family(
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
    "T5": Family(
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


def build_tokenizer(family: Family, sentences: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind, trained on `sentences`."""
    special = list(dict.fromkeys(family.special.values()))
    unk = family.special.get("unk")
    common = {"vocab_size": VOCABULARY, "special_tokens": special, "show_progress": False}
    if family.algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**common)
    elif family.algorithm == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(**common, initial_alphabet=alphabet)
    elif family.algorithm == "unigram":
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
    if family.template != PLAIN:
        single, pair = family.template
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=ids
        )
    names = {f"{name}_token": token for name, token in family.special.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side=family.padding_side, **names
    )


def build_model(family: Family, tokenizer, seed: int = 0, **options):
    """The family's classifier with random weights; two labels unless told otherwise."""
    chosen = {**family.options, **options}
    for name in ("pad", "bos", "eos"):
        value = getattr(tokenizer, f"{name}_token_id")
        if name != "pad" or value is not None:
            chosen.setdefault(f"{name}_token_id", value)
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(family.config(**chosen)).eval()
