"""PEFT's guide "P-tuning for sequence classification", step by step, with ptune.

Only the import line differs from the guide. Offline, with a small encoder:

    python examples/p_tuning_guide.py --model minilm --data-dir path/to/glue --epochs 2

Online, with the guide's backbone:

    python examples/p_tuning_guide.py --model roberta-large --epochs 20 --push-to your-name/mrpc
"""

import argparse
import tempfile

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from ptune import labels as metrics
from ptune.backbones.loading import location
from ptune.data.dataset import LABEL, PAIR, TEXT
from ptune.data.glue import load_glue
from ptune.peft import (
    PeftConfig,
    PeftModel,
    PeftType,
    PromptEncoderConfig,
    get_peft_config,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("--model", default="roberta-large", help="Hub id, folder, or minilm")
parser.add_argument("--data-dir", help="folder with GLUE's TSV files; default: download")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--output-dir", default=None, help="default: a temporary folder")
parser.add_argument("--push-to", default=None, help="Hub repository to push the adapter to")
options = parser.parse_args()

# Set-up: model, data, hyperparameters.
model_name_or_path = location(options.model)
task = "mrpc"
lr = 1e-3
batch_size = 32
classes = ["not equivalent", "equivalent"]
output_dir = options.output_dir or tempfile.mkdtemp(prefix="p-tuning-guide-")

# Load the dataset and its metric.
dataset = load_glue(task, options.data_dir)
print(dataset.train[0])


def compute_metrics(eval_pred):
    predictions, labels = eval_pred
    return metrics.compute(["accuracy", "f1"], labels, np.argmax(predictions, axis=1))


# Preprocess. The guide pads decoders on the left; ptune predicts the same with either side.
padding_side = "left" if any(k in model_name_or_path for k in ("gpt", "opt", "bloom")) else "right"
tokenizer = AutoTokenizer.from_pretrained(model_name_or_path, padding_side=padding_side)
if tokenizer.pad_token_id is None:
    tokenizer.pad_token_id = tokenizer.eos_token_id


def tokenize_function(examples):
    # The only change to the guide: with its max_length=None, a long text takes all positions of
    # the model and leaves none for the prompt.
    longest = model.max_text_tokens()
    return tokenizer(examples[TEXT], examples[PAIR], truncation=True, max_length=longest)


def tokenized(split):
    split = split.map(tokenize_function, batched=True, remove_columns=[TEXT, PAIR])
    return split.rename_column(LABEL, "labels")


data_collator = DataCollatorWithPadding(tokenizer=tokenizer, padding="longest")

# Train: configure the prompt and wrap the model.
peft_config = PromptEncoderConfig(
    task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128
)
assert peft_config.peft_type == PeftType.P_TUNING
assert get_peft_config(peft_config.to_dict()) == peft_config

model = AutoModelForSequenceClassification.from_pretrained(model_name_or_path)
model = get_peft_model(model, peft_config)
model.print_trainable_parameters()

training_args = TrainingArguments(
    output_dir=output_dir,
    learning_rate=lr,
    per_device_train_batch_size=batch_size,
    per_device_eval_batch_size=batch_size,
    num_train_epochs=options.epochs,
    weight_decay=0.01,
    eval_strategy="epoch",
    save_strategy="epoch",
    load_best_model_at_end=True,
    report_to="none",
)
trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=tokenized(dataset.train),
    eval_dataset=tokenized(dataset.evaluation[""]),
    processing_class=tokenizer,
    data_collator=data_collator,
    compute_metrics=compute_metrics,
)
trainer.train()
print(trainer.evaluate())

# Share the adapter, or save it locally.
if options.push_to:
    peft_model_id = options.push_to
    model.push_to_hub(peft_model_id)
else:
    peft_model_id = f"{output_dir}/adapter"
    model.save_pretrained(peft_model_id)
state = get_peft_model_state_dict(model)

# Inference: load the configuration, the backbone and the adapter.
config = PeftConfig.from_pretrained(peft_model_id)
inference_model = AutoModelForSequenceClassification.from_pretrained(config.base_model_name_or_path)
tokenizer = AutoTokenizer.from_pretrained(config.base_model_name_or_path)
model = PeftModel.from_pretrained(inference_model, peft_model_id)
set_peft_model_state_dict(model, state)  # the same values again, from memory

sentence1 = (
    "Coast redwood trees are the tallest trees on the planet and can grow over 300 feet tall."
)
sentence2 = (
    "The coast redwood trees, which can attain a height of over 300 feet, are the tallest trees "
    "on earth."
)
inputs = tokenizer(
    sentence1,
    sentence2,
    truncation=True,
    max_length=model.max_text_tokens(),
    padding="longest",
    return_tensors="pt",
)

with torch.no_grad():
    outputs = model(**inputs).logits
    print(outputs)

paraphrased_text = torch.softmax(outputs, dim=1).tolist()[0]
for i in range(len(classes)):
    print(f"{classes[i]}: {round(paraphrased_text[i] * 100)}%")
