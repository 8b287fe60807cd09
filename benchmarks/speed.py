"""Compare the speed and memory of ptune with those of PEFT, in turn, on the same texts.

    python benchmarks/speed.py --data-dir glue --output-dir runs/speed

This measures training, inference, memory and start-up, and prints ratios with their spread. It
writes `speed.json` and `speed.png` to the output folder. `--parts` and `--backbones` choose what to
measure. Seconds depend on the machine. Ratios are taken within a round, so other load affects both
sides. In training, each contender has its own process, because ptune changes how its process keeps
memory; the others wait meanwhile.

| contender | trains |
| --- | --- |
| PEFT, float32 | PEFT's p-tuning guide as written: float32, dropout, batches as they come |
| PEFT, autocast | the same under bfloat16 autocast: the like-for-like comparison |
| PEFT LoRA | LoRA with r = 8, float32 |
| ptune input, ptune deep | the defaults of `ptune train` |
| floor | only the matrix products of ptune's frozen layers, forward and for input gradients |
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
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

import torch
from common import peak_memory_mb
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


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; contenders run in turn: A B C A B C."""
    for work in contenders.values():
        work()  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            seconds[name].append(timed(work))
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
    "ptune input": (lambda name: ptune_step(name, "input"), True),
    "ptune deep": (lambda name: ptune_step(name, "deep"), True),
    "floor of input": (lambda name: Floor(name, "input"), True),
    "floor of deep": (lambda name: Floor(name, "deep"), True),
    "ptune input, not shared": (lambda name: ptune_step(name, "input", share=False), True),
}


class Contender:
    """A contender in training, in its own process."""

    def __init__(self, kind: str, name: str, examples: Any, steps: int, turns: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.kind = kind
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
            self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise SystemExit(
                f"{self.kind!r} ended with exit code {self.process.exitcode}; -9 usually means out "
                "of memory. Run fewer contenders at a time (--contenders)."
            ) from None

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
    for own in own_turns:
        pipe.recv()
        timed(lambda own=own: [step(batch) for batch in own])  # type: ignore[misc]  # also waits for a GPU
        pipe.send(None)
    pipe.recv()  # stay idle: an ending process would disturb the others


def training(
    name: str, examples: Any, steps: int, rounds: int, only: list[str] | None
) -> dict[str, Any]:
    """Time training steps of some or all contenders on one backbone."""
    kinds = [k for k in CONTENDERS if is_causal(name) or k != "ptune input, not shared"]
    made = {
        k: Contender(k, name, examples, steps, rounds + 1) for k in kinds if not only or k in only
    }
    try:
        seconds = in_turn({k: c.work for k, c in made.items()}, rounds)
    finally:
        for contender in made.values():
            contender.end()
    pairs = {
        "PEFT, float32 : ptune input": ("PEFT, float32", "ptune input"),
        "PEFT, autocast : ptune input": ("PEFT, autocast", "ptune input"),
        "PEFT, float32 : ptune deep": ("PEFT, float32", "ptune deep"),
        "PEFT LoRA : ptune deep": ("PEFT LoRA", "ptune deep"),
        "ptune input : ptune deep": ("ptune input", "ptune deep"),
        "floor : ptune input": ("floor of input", "ptune input"),
        "floor : ptune deep": ("floor of deep", "ptune deep"),
    }
    if is_causal(name):
        pairs["not shared : shared prompt"] = ("ptune input, not shared", "ptune input")
    return {
        "seconds_per_step": {k: statistics.median(v) / steps for k, v in seconds.items()},
        "seconds_of_rounds": seconds,
        "ratios": {
            label: ratio(seconds, *pair)
            for label, pair in pairs.items()
            if made.keys() >= set(pair)
        },
    }


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


def inference(texts: list[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Throughput on many texts and latency of one, including tokenisation."""
    import peft

    import ptune

    with adapters() as (theirs, shallow, deep):
        tokenizer = load_tokenizer("minilm")
        peft_model = peft.PeftModel.from_pretrained(
            load_backbone("minilm", dtype="float32").to(DEVICE), theirs
        ).eval()
        classifiers = {d: ptune.load(p) for d, p in (("input", shallow), ("deep", deep))}

        @torch.no_grad()
        def peft_answer(some: list[tuple[str, str]]) -> None:
            for start in range(0, len(some), BATCH):
                first, second = map(list, zip(*some[start : start + BATCH], strict=True))
                batch = tokenizer(
                    first, second, truncation=True, padding="longest", return_tensors="pt"
                )
                peft_model(**batch.to(DEVICE)).logits.softmax(dim=1).tolist()

        many = in_turn(
            {
                "PEFT, float32": lambda: peft_answer(texts),
                "ptune input": lambda: list(classifiers["input"].logits(texts)),
                "ptune deep": lambda: list(classifiers["deep"].logits(texts)),
            },
            rounds,
        )
        one = in_turn(
            {
                "PEFT, float32": lambda: peft_answer(texts[:1]),
                "ptune input": lambda: classifiers["input"](texts[0]),
                "ptune deep": lambda: classifiers["deep"](texts[0]),
            },
            20 * rounds,
        )
        sizes = {
            label: (folder / "adapter_model.safetensors").stat().st_size
            for label, folder in (("PEFT", theirs), ("input", shallow), ("deep", deep))
        }
        loading = timed(lambda: ptune.load(deep))
    return {
        "texts_per_second": {k: len(texts) / statistics.median(v) for k, v in many.items()},
        "latency_ms": {
            k: {
                "p50": 1000 * statistics.median(v),
                "p95": 1000 * statistics.quantiles(v, n=20)[-1],
            }
            for k, v in one.items()
        },
        "ratios": {
            f"{what}, PEFT, float32 : ptune {depth}": ratio(s, "PEFT, float32", f"ptune {depth}")
            for what, s in (("throughput", many), ("latency", one))
            for depth in ("input", "deep")
        },
        "adapter_bytes": sizes,
        "seconds_to_load": loading,
    }


# Memory, growth and start-up, each in its own process.


def _apart(what: str, **options: Any) -> Any:
    command = [sys.executable, __file__, "--apart", json.dumps({"what": what, **options})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_apart(what: str, name: str, data_dir: str | None, texts: int) -> None:
    """Measure one thing and print seconds and peak memory as JSON."""
    dataset = load_glue("mrpc", data_dir)
    assert dataset.train is not None
    if what == "growth":
        import ptune

        rows = [(r[data.TEXT], r[data.PAIR]) for r in dataset.train.select(range(1000))]
        with adapters() as (_, _, deep):
            classifier = ptune.load(deep)
            list(classifier.logits(rows[:64]))
            seconds = timed(
                lambda: [None for _ in classifier.logits(rows[i % 1000] for i in range(texts))]
            )
    else:
        step = {
            "PEFT, float32": lambda: peft_step(name),
            "ptune input": lambda: ptune_step(name, "input"),
            "ptune deep": lambda: ptune_step(name, "deep"),
        }[what]()
        (grouped,) = batches(dataset.train, name, 8, by_length=what.startswith("ptune"))
        seconds = timed(lambda: [step(b) for b in grouped])
    peak = peak_memory_mb() if DEVICE == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def memory(name: str, data_dir: str | None) -> dict[str, Any]:
    """Peak memory of a process that trains a few steps."""
    kinds = ("PEFT, float32", "ptune input", "ptune deep")
    peaks = {kind: _apart(kind, name=name, data_dir=data_dir, texts=0)["peak_mb"] for kind in kinds}
    return {
        "peak_mb": peaks,
        "ratios": {
            f"memory, {kind} : PEFT, float32": {"median": peaks[kind] / peaks["PEFT, float32"]}
            for kind in kinds[1:]
        },
    }


def growth(counts: list[int], data_dir: str | None) -> dict[str, Any]:
    """Time and peak memory for growing numbers of texts."""
    return {str(n): _apart("growth", name="minilm", data_dir=data_dir, texts=n) for n in counts}


def startup(rounds: int) -> dict[str, float]:
    """Median seconds of `import ptune` and `ptune --help`."""

    def seconds(*command: str) -> float:
        run = [timed(lambda: subprocess.run(command, capture_output=True)) for _ in range(rounds)]
        return statistics.median(run)

    nothing = seconds(sys.executable, "-c", "pass")
    return {
        "import ptune": seconds(sys.executable, "-c", "import ptune") - nothing,
        "ptune --help": seconds(str(Path(sys.executable).with_name("ptune")), "--help"),
    }


# Output.


def rows_of(results: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """Every ratio: part, label, numbers."""
    found = []
    for part, content in results["parts"].items():
        found += [(part, what, numbers) for what, numbers in content.get("ratios", {}).items()]
    return found


def show(results: dict[str, Any], folder: Path) -> None:
    """Print and plot the ratios."""
    rows = rows_of(results)
    print("| part | ratio | median | least … most |\n| --- | --- | --- | --- |")
    for part, what, n in rows:
        spread = f"{n['least']:.2f} … {n['most']:.2f}" if "least" in n else ""
        print(f"| {part} | {what} | {n['median']:.2f} | {spread} |")
    for part in ("start-up", "growth"):
        if content := results["parts"].get(part):
            print(f"\n{part}: {json.dumps(content)}")
    if not rows:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    bars = ax.barh(
        [f"{part}: {what}" for part, what, _ in rows],
        [n["median"] for _, _, n in rows],
        color="#0072B2",
    )
    ax.bar_label(bars, fmt=" %.2f")
    ax.axvline(1, color="#666666", lw=1, ls=":")
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("ratio, median over rounds")
    figure.savefig(folder / "speed.png", dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder of GLUE's TSV files; default: download")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES[:2]))
    parts = ("training", "inference", "memory", "start-up", "growth")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts[:-1]))
    parser.add_argument("--contenders", nargs="+", help="names as in the results; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="training steps per turn")
    parser.add_argument("--texts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/speed"))
    parser.add_argument("--apart", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.apart:
        run_apart(**json.loads(args.apart))
        return
    dataset = load_glue("mrpc", args.data_dir)
    assert dataset.train is not None
    found: dict[str, Any] = {}
    for name in args.backbones:
        if "training" in args.parts:
            found[f"training, {name}"] = training(
                name, dataset.train, args.steps, args.rounds, args.contenders
            )
        if "memory" in args.parts:
            found[f"memory, {name}"] = memory(name, args.data_dir)
    if "inference" in args.parts:
        texts = [(r[data.TEXT], r[data.PAIR]) for r in dataset.train.select(range(512))]
        found["inference, minilm"] = inference(texts, args.rounds)
    if "start-up" in args.parts:
        found["start-up"] = startup(args.rounds)
    if "growth" in args.parts:
        found["growth"] = growth(args.texts, args.data_dir)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {DEVICE}, {fast_dtype(DEVICE)}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rounds": args.rounds,
        "steps": args.steps,
        "parts": found,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "speed.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    show(results, args.output_dir)


if __name__ == "__main__":
    main()
