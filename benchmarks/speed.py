"""Compare the speed and memory of ptune with those of PEFT, in turn, on the same texts.

    python benchmarks/speed.py --data-dir glue --output-dir runs/speed
    python benchmarks/speed.py --compare runs/before/speed.jsonl runs/speed/speed.jsonl

This measures training, inference, memory and start-up, and prints ratios with their spread.
`--parts` and `--backbones` choose what to measure. Every round adds a line to `speed.jsonl` in the
output folder at once: if the benchmark is killed, start it again to do what is missing. Seconds
depend on the machine. Ratios are taken within a round, so other load affects both sides. In
training, each contender has its own process, because ptune changes how its process keeps memory;
the others wait meanwhile. A contender that would not fit into the free memory is left out, and the
table says so.

| contender | trains |
| --- | --- |
| PEFT, float32 | PEFT's p-tuning guide as written: float32, dropout, batches as they come |
| PEFT, autocast | the same under bfloat16 autocast: the like-for-like comparison |
| PEFT LoRA | LoRA with r = 8, float32 |
| PEFT LoRA, autocast | the same under bfloat16 autocast |
| ptune input, ptune deep | the defaults of `ptune train` |
| floor | only the matrix products of ptune's frozen layers, forward and for input gradients |
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Row,
    append_row,
    device_peak_memory_mb,
    free_memory_mb,
    hardware,
    machine,
    peak_memory_mb,
    read_rows,
    silence,
    versions,
    write_result,
)

silence()  # before the libraries that print while they are imported

from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from ptune import PromptModel
from ptune.backbones.cpu import forget_shapes
from ptune.backbones.loading import cpu_options, fast_dtype, load_backbone, load_tokenizer
from ptune.data import dataset as data
from ptune.data.glue import load_glue
from ptune.peft import PromptEncoderConfig

VIRTUAL_TOKENS, BATCH = 20, 32  # BATCH: texts per step
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], None]


# Backbones: some are pretrained, the others have random weights, which do not affect speed.


def configuration(name: str) -> Any:
    """The configuration of a backbone with random weights."""
    import transformers as tf

    if name == "roberta-base":
        return tf.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    if name == "roberta-large":
        return tf.RobertaConfig(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, hidden_size=1024,
            num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        )  # fmt: skip
    if name == "gpt2":
        return tf.GPT2Config(pad_token_id=0)
    return tf.LlamaConfig(  # about 0.5 B parameters
        vocab_size=32000, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, pad_token_id=0,
    )  # fmt: skip


PRETRAINED = ("minilm", "smollm2")
BACKBONES = (*PRETRAINED, "roberta-base", "roberta-large", "gpt2", "llama-0.5b")


def is_causal(name: str) -> bool:
    """True if tokens attend only to earlier tokens, so a batch can share the prompt."""
    return name.startswith(("gpt", "llama", "smollm"))


def backbone(name: str, dtype: torch.dtype) -> Any:
    """A new classifier, loaded as `load_backbone` does for its dtype."""
    if name in PRETRAINED:
        return load_backbone(name, dtype=dtype)
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForSequenceClassification.from_config(
            configuration(name), **cpu_options(dtype)
        ).to(dtype)  # fmt: skip


def batches(
    examples: Any, name: str, steps: int, turns: int = 1, *, by_length: bool, size: int = BATCH
) -> list[list[Batch]]:
    """Training batches for each turn, a sample of an epoch's short and long ones.

    All backbones get MiniLM's token ids, because only their number matters.

    Args:
        examples: The dataset.
        name: The backbone.
        steps: Batches per turn.
        turns: Number of turns, each with other batches.
        by_length: True: every n-th of the batches of similar length that `ptune train` makes.
            False: the same texts in random order.
        size: Texts per batch.
    """
    tokenizer = load_tokenizer("minilm")
    columns = [list(examples[c]) for c in (data.TEXT, data.PAIR) if c in examples.column_names]
    encoded = dict(tokenizer(*columns))
    if name != "minilm":
        encoded.pop("token_type_ids", None)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    generator = torch.Generator().manual_seed(0)
    order = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
    groups = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    groups.sort(key=lambda group: sum(lengths[i] for i in group))
    if len(groups) < steps:
        raise SystemExit(f"{len(lengths)} texts are too few for {steps} batches of {size}.")
    every = len(groups) // steps
    labels = torch.tensor(examples[data.LABEL])

    def batch(chosen: list[int]) -> Batch:
        rows = {k: [v[i] for i in chosen] for k, v in encoded.items()}
        made = {**tokenizer.pad(rows, return_tensors="pt"), "labels": labels[chosen]}
        return {k: v.to(DEVICE) for k, v in made.items()}

    made = []
    for turn in range(turns):
        # The longest first, as in the sampler, and other lengths in every turn, as in an epoch.
        some = groups[(every // 2 + turn) % every :: every][:steps][::-1]
        if not by_length:
            mixed = [i for group in some for i in group]
            random.Random(turn).shuffle(mixed)
            some = [mixed[i : i + size] for i in range(0, len(mixed), size)]
        made.append([batch(chosen) for chosen in some])
    return made


# Training.


def _step(model: Any, groups: Any, precision: Any = contextlib.nullcontext) -> Step:
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    model.to(DEVICE).train()

    def step(batch: Batch) -> None:
        with precision():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _peft(name: str, kind: str) -> Any:
    import peft

    config = (
        peft.LoraConfig(task_type="SEQ_CLS", r=8)
        if kind == "lora"
        else peft.PromptEncoderConfig(
            task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS, encoder_hidden_size=128
        )
    )
    return peft.get_peft_model(backbone(name, torch.float32), config)


def peft_step(name: str, kind: str = "p-tuning", *, autocast: bool = False) -> Step:
    """PEFT, trained as in its guides."""
    model = _peft(name, kind)
    groups = [p for p in model.parameters() if p.requires_grad]
    if autocast:
        return _step(model, groups, lambda: torch.autocast(DEVICE, torch.bfloat16))
    return _step(model, groups)


def pooling(name: str, depth: str) -> Any:
    """What the head reads of pairs by default in `ptune train`."""
    return "architecture" if name != "minilm" else "prompt" if depth == "input" else "mean"


def classifier(name: str, depth: str) -> PromptModel:
    """The model that `ptune train` trains by default."""
    config = PromptEncoderConfig(
        depth=depth,  # type: ignore[arg-type]
        num_virtual_tokens=VIRTUAL_TOKENS,
        encoder_reparameterization_type="NONE",
        placement="prefix" if is_causal(name) else "after_first",
        prompt_init="vocab",
        pooling=pooling(name, depth),
    )
    return PromptModel(backbone(name, fast_dtype(DEVICE)).to(DEVICE), config)


def ptune_step(name: str, depth: str, *, share: bool = True) -> Step:
    """The training step of `ptune train` by default."""
    forget_shapes()
    model = classifier(name, depth)
    model.share_prompt = share
    return _step(model, model.parameter_groups(1e-3))


class Floor:
    """Only the matrix products of the frozen layers in ptune's training step."""

    def __init__(self, name: str, depth: str) -> None:
        from transformers.pytorch_utils import Conv1D

        self.model = classifier(name, depth).eval()
        self.seen: list[tuple[torch.Tensor, int]] = []
        self.products: dict[torch.Size, list[tuple[torch.Tensor, int]]] = {}
        for layer in self.model.backbone.base_model.modules():
            if isinstance(layer, nn.Linear | Conv1D):
                weight = layer.weight.detach()  # [out, in]
                weight = weight if isinstance(layer, nn.Linear) else weight.T.contiguous()
                layer.register_forward_hook(partial(self._note, weight))

    def _note(self, weight: torch.Tensor, layer: nn.Module, args: Any, output: Any) -> None:
        self.seen.append((weight, args[0].numel() // weight.shape[1]))

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Record which weights are multiplied with how many tokens for a batch of this shape."""
        self.seen = self.products[batch["input_ids"].shape] = []
        self.model(**batch)

    def __call__(self, batch: Batch) -> None:
        """Compute the products, forward and for the gradients of the inputs."""
        made: dict[tuple[int, int], torch.Tensor] = {}

        def ones(tokens: int, width: int) -> torch.Tensor:
            if (tokens, width) not in made:
                dtype = fast_dtype(DEVICE)
                made[tokens, width] = torch.ones(tokens, width, dtype=dtype, device=DEVICE)
            return made[tokens, width]

        products = self.products[batch["input_ids"].shape]
        for weight, tokens in products:
            nn.functional.linear(ones(tokens, weight.shape[1]), weight)
        for weight, tokens in products:
            ones(tokens, weight.shape[0]) @ weight


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    record: Callable[[dict[str, float]], None] = lambda seconds: None,
) -> dict[str, list[float]]:
    """Seconds of each contender in each round; contenders run in turn: A B C A B C.

    Args:
        contenders: Their work, by name.
        rounds: Number of rounds.
        record: Gets the seconds of each round when it ends.
    """
    for work in contenders.values():
        work()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        found = {name: timed(work) for name, work in contenders.items()}
        record(found)
        for name, value in found.items():
            seconds[name].append(value)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long `slow` takes: median, least and most over the rounds."""
    each = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


# How to build a contender, and whether its batches are grouped by length.
CONTENDERS: dict[str, tuple[Callable[[str], Step], bool]] = {
    "PEFT, float32": (lambda name: peft_step(name), False),
    "PEFT, autocast": (lambda name: peft_step(name, autocast=True), False),
    "PEFT LoRA": (lambda name: peft_step(name, "lora"), False),
    "PEFT LoRA, autocast": (lambda name: peft_step(name, "lora", autocast=True), False),
    "ptune input": (lambda name: ptune_step(name, "input"), True),
    "ptune deep": (lambda name: ptune_step(name, "deep"), True),
    "floor of input": (lambda name: Floor(name, "input"), True),
    "floor of deep": (lambda name: Floor(name, "deep"), True),
    "ptune input, not shared": (lambda name: ptune_step(name, "input", share=False), True),
}


class Ended(Exception):
    """The process of a contender has ended."""


class Contender:
    """A contender in training, in its own process.

    Attributes:
        peak_mb: Peak memory of its process so far.
    """

    def __init__(self, kind: str, name: str, examples: Any, steps: int, turns: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.peak_mb = 0.0
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=contend, args=(theirs, kind, name, examples, steps, turns), daemon=True
        )
        self.process.start()
        theirs.close()

    def work(self) -> None:
        """Train one turn and wait for its end."""
        try:
            self.pipe.send(None)
            self.peak_mb = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            memory = " (probably out of memory)" if code == -9 else ""
            raise Ended(f"its process ended with exit code {code}{memory}") from None

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()


def contend(pipe: Any, kind: str, name: str, examples: Any, steps: int, turns: int) -> None:
    """Train one turn per message: the process of a `Contender`."""
    make, by_length = CONTENDERS[kind]
    step = make(name)
    own_turns = batches(examples, name, steps, turns, by_length=by_length)
    if isinstance(step, Floor):
        for batch in chain(*own_turns):
            step.prepare(batch)
    with contextlib.suppress(EOFError):
        for own in own_turns:
            pipe.recv()
            timed(lambda own=own: [step(batch) for batch in own])  # type: ignore[misc]  # also waits for a GPU
            pipe.send(peak_memory_mb())
        pipe.recv()  # stay idle: an ending process would disturb the others


def training(log: Log, name: str, examples: Any, steps: int, rounds: int, only: list[str]) -> None:
    """Time training steps of some or all contenders on one backbone."""
    part = f"training, {name}"
    wanted = [k for k in CONTENDERS if is_causal(name) or k != "ptune input, not shared"]
    wanted = [k for k in wanted if not only or k in only]
    done = len([r for r in log.of(part) if "seconds" in r and r["wanted"] == wanted])
    if done >= rounds:
        return
    made: dict[str, Contender] = {}
    try:
        for kind in wanted:
            needed = max([least_memory_mb(name), *(c.peak_mb for c in made.values())])
            if (free := free_memory_mb()) < 1.2 * needed:
                reason = f"{free:,.0f} MB are free, and it may need {1.2 * needed:,.0f} MB"
                log.add(part=part, left_out=kind, reason=reason)
                continue
            made[kind] = Contender(kind, name, examples, steps, rounds - done + 1)
            turn(log, part, made, kind)  # warm up
        for _ in range(rounds - done):
            seconds = {kind: turn(log, part, made, kind) for kind in list(made)}
            found = {kind: value for kind, value in seconds.items() if value is not None}
            log.round(part, found, steps=steps, wanted=wanted)
    finally:
        for contender in made.values():
            contender.end()


def turn(log: Log, part: str, made: dict[str, Contender], kind: str) -> float | None:
    """Seconds of a contender's turn. If its process has ended, it is left out from now on."""
    try:
        return timed(made[kind].work)
    except Ended as reason:
        log.add(part=part, left_out=kind, reason=str(reason))
        del made[kind]
        return None


def least_memory_mb(name: str) -> float:
    """Memory that training certainly needs: libraries, weights in float32 and packed copies."""
    if name in PRETRAINED:
        return 1500.0
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(configuration(name))
    return 1000.0 + 2 * 4 * sum(p.numel() for p in model.parameters()) / 2**20


# Inference, with MiniLM.


@contextlib.contextmanager
def adapters(name: str = "minilm") -> Iterator[tuple[Path, Path, Path]]:
    """Untrained adapters on a backbone: from PEFT, with an input prompt, with a deep prompt."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, shallow, deep = (Path(folder) / n for n in ("peft", "input", "deep"))
        _peft(name, "p-tuning").save_pretrained(theirs)
        for depth, where in (("input", shallow), ("deep", deep)):
            model = PromptModel(
                load_backbone(name),
                PromptEncoderConfig(
                    depth=depth,
                    encoder_reparameterization_type="NONE",
                    pooling=pooling(name, depth),
                ),
            )
            model.save_pretrained(where)
        yield theirs, shallow, deep


def peft_predictor(model: Any, name: str, **options: Any) -> Callable[..., None]:
    """Predicts pairs as PEFT's guide does, batch by batch in their order.

    Args:
        model: Its model, or a backbone alone.
        name: The backbone.
        options: For the tokenizer.
    """
    tokenizer = load_tokenizer(name)

    @torch.no_grad()
    def answer(pairs: list[tuple[str, str]], size: int = BATCH) -> None:
        for start in range(0, len(pairs), size):
            first, second = map(list, zip(*pairs[start : start + size], strict=True))
            batch = tokenizer(
                first, second, truncation=True, padding=True, return_tensors="pt", **options
            )
            model(**batch.to(DEVICE)).logits.softmax(dim=1).tolist()

    return answer


def inference(log: Log, texts: list[tuple[str, str]], rounds: int) -> None:
    """Throughput on many texts and latency of one, including tokenisation."""
    import peft

    import ptune

    parts = {"throughput, minilm": rounds, "latency, minilm": 20 * rounds}
    left = {part: count - len(log.of(part)) for part, count in parts.items()}
    if max(left.values()) <= 0:
        return
    with adapters() as (theirs, shallow, deep):
        plain = load_backbone("minilm", dtype="float32").to(DEVICE)
        peft_model = peft.PeftModel.from_pretrained(plain, theirs).eval()
        peft_answer = peft_predictor(peft_model, "minilm")
        classifiers = {d: ptune.load(p) for d, p in (("input", shallow), ("deep", deep))}

        work: dict[str, dict[str, Callable[[], Any]]] = {
            "throughput, minilm": {
                "PEFT, float32": lambda: peft_answer(texts),
                "ptune input": lambda: list(classifiers["input"].logits(texts)),
                "ptune deep": lambda: list(classifiers["deep"].logits(texts)),
            },
            "latency, minilm": {
                "PEFT, float32": lambda: peft_answer(texts[:1]),
                "ptune input": lambda: classifiers["input"](texts[0]),
                "ptune deep": lambda: classifiers["deep"](texts[0]),
            },
        }
        for part, contenders in work.items():
            in_turn(contenders, left[part], partial(log.round, part))
        sizes = {
            label: (folder / "adapter_model.safetensors").stat().st_size
            for label, folder in (("PEFT", theirs), ("input", shallow), ("deep", deep))
        }
        if not log.of("adapters"):
            log.add(part="adapters", bytes=sizes, seconds_to_load=timed(lambda: ptune.load(deep)))


# Memory, growth and start-up, each in its own process.


def _apart(what: str, **options: Any) -> Any:
    command = [sys.executable, __file__, "--apart", json.dumps({"what": what, **options})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_apart(what: str, name: str, data_dir: str | None, texts: int) -> None:
    """Measure one thing and print seconds and peak memory as JSON."""
    examples = load_glue("mrpc", data_dir).train
    if what == "growth":
        import ptune

        rows = [(r[data.TEXT], r[data.PAIR]) for r in examples.select(range(1000))]
        with adapters() as (_, _, deep):
            classifier = ptune.load(deep)
            list(classifier.logits(rows[:64]))
            seconds = timed(
                lambda: [None for _ in classifier.logits(rows[i % 1000] for i in range(texts))]
            )
    else:
        make, by_length = CONTENDERS[what]
        step = make(name)
        (grouped,) = batches(examples, name, 8, by_length=by_length)
        seconds = timed(lambda: [step(b) for b in grouped])
    print(json.dumps({"seconds": seconds, "peak_mb": device_peak_memory_mb()}))


def memory(log: Log, name: str, data_dir: str | None) -> None:
    """Peak memory of a process that trains a few steps."""
    done = {kind for row in log.of(f"memory, {name}") for kind in row["peak_mb"]}
    for kind in ("PEFT, float32", "ptune input", "ptune deep"):
        if kind not in done:
            peak = _apart(kind, name=name, data_dir=data_dir, texts=0)["peak_mb"]
            log.add(part=f"memory, {name}", peak_mb={kind: peak})


def growth(log: Log, counts: list[int], data_dir: str | None) -> None:
    """Time and peak memory for growing numbers of texts."""
    for count in counts:
        if count not in [row["texts"] for row in log.of("growth")]:
            found = _apart("growth", name="minilm", data_dir=data_dir, texts=count)
            log.add(part="growth", texts=count, **found)


def startup(log: Log, rounds: int) -> None:
    """Seconds of `import ptune` and `ptune --help`, after those of starting Python."""

    def seconds(*command: str) -> float:
        run = [timed(lambda: subprocess.run(command, capture_output=True)) for _ in range(rounds)]
        return statistics.median(run)

    if log.of("start-up"):
        return
    nothing = seconds(sys.executable, "-c", "pass")
    imported = seconds(sys.executable, "-c", "import ptune") - nothing
    shown = seconds(str(Path(sys.executable).with_name("ptune")), "--help")
    log.add(part="start-up", **{"import ptune": imported, "ptune --help": shown})


# Output.


class Log:
    """The rows of the output file.

    Args:
        file: Earlier rows are read from it, new ones are added to it at once.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.rows = file, read_rows([file])

    def of(self, part: str) -> list[Row]:
        """The rows of a part."""
        return [row for row in self.rows if row["part"] == part]

    def round(self, part: str, seconds: dict[str, float], **row: Any) -> None:
        """Add a round: seconds by contender."""
        self.add(part=part, seconds=seconds, **row)

    def add(self, **row: Any) -> None:
        """Add a row."""
        self.rows.append(row)
        append_row(self.file, row)


# Ratios within a round: the left side's seconds over the right side's.
PAIRS = {
    "PEFT, float32 : ptune input": ("PEFT, float32", "ptune input"),
    "PEFT, autocast : ptune input": ("PEFT, autocast", "ptune input"),
    "PEFT, float32 : ptune deep": ("PEFT, float32", "ptune deep"),
    "PEFT, autocast : ptune deep": ("PEFT, autocast", "ptune deep"),
    "PEFT LoRA : ptune deep": ("PEFT LoRA", "ptune deep"),
    "PEFT LoRA, autocast : ptune deep": ("PEFT LoRA, autocast", "ptune deep"),
    "ptune input : ptune deep": ("ptune input", "ptune deep"),
    "floor : ptune input": ("floor of input", "ptune input"),
    "floor : ptune deep": ("floor of deep", "ptune deep"),
    "not shared : shared prompt": ("ptune input, not shared", "ptune input"),
}


def ratios_of(rows: list[Row]) -> dict[tuple[str, str], list[float]]:
    """The ratios of every round, by part and pair."""
    found: dict[tuple[str, str], list[float]] = {}
    peaks: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["part"].startswith("memory"):
            peaks.setdefault(row["part"], {}).update(row["peak_mb"])
        elif isinstance(seconds := row.get("seconds"), dict):
            for label, (slow, fast) in PAIRS.items():
                if slow in seconds and fast in seconds:
                    value = seconds[slow] / seconds[fast]
                    found.setdefault((row["part"], label), []).append(value)
    for part, own in peaks.items():
        for kind in own.keys() - {"PEFT, float32"}:
            if "PEFT, float32" in own:
                found[part, f"{kind} : PEFT, float32"] = [own[kind] / own["PEFT, float32"]]
    return found


def show(rows: list[Row]) -> None:
    """Print the ratios, and everything else below."""
    print("| part | ratio | median | least … most | rounds |\n| --- | --- | --- | --- | --- |")
    for (part, label), values in ratios_of(rows).items():
        spread = f"{min(values):.2f} … {max(values):.2f}" if len(values) > 1 else ""
        middle = statistics.median(values)
        print(f"| {part} | {label} | {middle:.2f} | {spread} | {len(values)} |")
    for row in rows:
        if "left_out" in row:
            print(f"\nleft out of {row['part']}: {row['left_out']}, because {row['reason']}")
        elif row["part"] in ("machine", "adapters", "start-up", "growth"):
            print(f"\n{row['part']}: {json.dumps({k: v for k, v in row.items() if k != 'part'})}")


def save(rows: list[Row], file: Path, command: str, note: str) -> None:
    """Write the ratios for the pages."""
    found = {
        f"{part}, {label}": {
            "median": f"{statistics.median(values):.2f}",
            "least … most": f"{min(values):.2f} … {max(values):.2f}",
            "rounds": str(len(values)),
        }
        for (part, label), values in ratios_of(rows).items()
    }
    about = "How many times as long the left side takes as the right side"
    write_result(file, about, command, "ratio", found, note=note)


def compare(before: list[Row], after: list[Row]) -> None:
    """Print how the ratios of two files differ, with 95% bootstrap intervals over the rounds."""
    first, second = ratios_of(before), ratios_of(after)
    rng = np.random.default_rng(0)

    def medians(values: list[float]) -> np.ndarray:
        drawn = rng.integers(0, len(values), (5000, len(values)))
        return np.median(np.array(values)[drawn], axis=1)

    for which, rows in (("before", before), ("after", after)):
        for row in rows:
            if row["part"] == "machine":
                print(f"{which}: {row['name']}")
    print("\n| part | ratio | before | after | after : before | 95% interval |")
    print("| --- | --- | --- | --- | --- | --- |")
    for key in [key for key in first if key in second]:
        a, b = first[key], second[key]
        low, high = np.percentile(medians(b) / medians(a), [2.5, 97.5])
        middle = statistics.median(b) / statistics.median(a)
        print(
            f"| {key[0]} | {key[1]} | {statistics.median(a):.2f} | {statistics.median(b):.2f} | "
            f"{middle:.3f} | {low:.3f} … {high:.3f} |"
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder of GLUE's TSV files; default: download")
    parser.add_argument(
        "--backbones", nargs="+", choices=BACKBONES, default=["minilm", "roberta-base"]
    )
    parts = ("training", "inference", "memory", "start-up", "growth")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts[:-1]))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps per turn")
    parser.add_argument("--texts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/speed"))
    parser.add_argument("--command", default="python benchmarks/speed.py", help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the table as JSON, too")
    parser.add_argument("--note", default="", help="added to the machine, such as 'loaded'")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--apart", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.apart:
        run_apart(**json.loads(args.apart))
        return
    if args.compare:
        compare(*(read_rows([file]) for file in args.compare))
        return
    log = Log(args.output_dir / "speed.jsonl")
    measure(log, args)
    show(log.rows)
    if args.save:
        save(log.rows, args.save, args.command, args.note)


def measure(log: Log, args: argparse.Namespace) -> None:
    """Measure what the file does not have yet."""
    if not log.of("machine"):
        libraries = versions("ptune", "torch", "transformers", "peft")
        log.add(part="machine", name=machine(), **hardware(), versions=libraries)
    dataset = load_glue("mrpc", args.data_dir)
    for name in args.backbones:
        if "training" in args.parts:
            training(log, name, dataset.train, args.steps, args.rounds, args.contenders)
        if "memory" in args.parts:
            memory(log, name, args.data_dir)
    if "inference" in args.parts:
        rows = dataset.train.select(range(min(512, len(dataset.train))))
        inference(log, [(r[data.TEXT], r[data.PAIR]) for r in rows], args.rounds)
    if "start-up" in args.parts:
        startup(log, args.rounds)
    if "growth" in args.parts:
        growth(log, args.texts, args.data_dir)


if __name__ == "__main__":
    main()
