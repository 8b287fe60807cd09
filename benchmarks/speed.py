"""How fast is it? Rival and ptune in turn, on the same texts, in one process tree.

    python benchmarks/speed.py --data-dir glue --output-dir runs/speed

times training, inference, memory and start-up and prints ratios with their spread; `speed.json` and
`speed.png` are left in the folder. Parts and backbones can be chosen (`--parts`, `--backbones`).
Seconds depend on the machine; ratios are taken within a round, so that whatever else the machine
does meets both sides. In training each contender lives in a process of its own, as it does in use
(ptune changes how its process keeps memory), and works while the others wait.

Rivals: the guide "P-tuning for sequence classification" on PEFT as it is written (float32, dropout,
batches padded as they come), the same under bfloat16 autocast, and PEFT's LoRA. The floor is the
time of the matrix products alone: those that ptune's frozen layers do in a step, forwards and for
the gradient of what goes in, on as many tokens and in the same number format.
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

from ptune import PromptEncoderConfig, PromptModel
from ptune.backbones.cpu import forget_shapes
from ptune.backbones.loading import cpu_options, fast_dtype, load_backbone, load_tokenizer
from ptune.data import dataset as data

ROWS, BATCH = 20, 32  # virtual tokens; texts a step
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], None]


# Backbones: MiniLM is real, the others have random weights; speed does not depend on them.


def configuration(name: str) -> Any:
    """The configuration of a backbone that is made from random weights."""
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
    return tf.LlamaConfig(  # of about 0.5 B parameters
        vocab_size=32000, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, pad_token_id=0,
    )  # fmt: skip


BACKBONES = ("minilm", "roberta-base", "roberta-large", "gpt2", "llama-0.5b")


def is_causal(name: str) -> bool:
    """Whether a text's tokens see only what stands before them, so that a prompt can be shared."""
    return name.startswith(("gpt", "llama"))


def backbone(name: str, dtype: torch.dtype) -> Any:
    """A fresh classifier, loaded as `load_backbone` does for its dtype."""
    if name == "minilm":
        return load_backbone(name, dtype=dtype)
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(
        configuration(name), **cpu_options(dtype)
    ).to(dtype)  # fmt: skip


def batches(
    examples: Any, name: str, steps: int, turns: int = 1, *, by_length: bool
) -> list[list[Batch]]:
    """So many training batches for each turn, of the same texts for all.

    They are a sample of an epoch's, short and long: of the batches of like length that ptune's
    default makes, every n-th; or the texts of these mixed again, as they come without it.

    Other backbones get MiniLM's token ids: only how many there are matters.
    """
    tokenizer = load_tokenizer("minilm")
    columns = [list(examples[c]) for c in (data.TEXT, data.PAIR) if c in examples.column_names]
    encoded = dict(tokenizer(*columns))
    if name != "minilm":
        del encoded["token_type_ids"]
    lengths = [len(ids) for ids in encoded["input_ids"]]
    generator = torch.Generator().manual_seed(0)
    order = list(LengthGroupedSampler(BATCH, lengths=lengths, generator=generator))
    groups = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
    groups.sort(key=lambda group: sum(lengths[i] for i in group))
    every = len(groups) // steps
    labels = torch.tensor(examples[data.LABEL])

    def batch(chosen: list[int]) -> Batch:
        rows = {k: [v[i] for i in chosen] for k, v in encoded.items()}
        made = {**tokenizer.pad(rows, return_tensors="pt"), "labels": labels[chosen]}
        return {k: v.to(DEVICE) for k, v in made.items()}

    made = []
    for turn in range(turns):
        # The longest first, as the sampler does; other lengths in every turn, as in an epoch.
        some = groups[(every // 2 + turn) % every :: every][:steps][::-1]
        if not by_length:
            mixed = [i for group in some for i in group]
            random.Random(turn).shuffle(mixed)
            some = [mixed[i : i + BATCH] for i in range(0, len(mixed), BATCH)]
        made.append([batch(chosen) for chosen in some])
    return made


# Contenders in training.


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
            task_type="SEQ_CLS", num_virtual_tokens=ROWS, encoder_hidden_size=128
        )
    )
    return peft.get_peft_model(backbone(name, torch.float32), config)


def rival(name: str, kind: str = "p-tuning", *, autocast: bool = False) -> Step:
    """PEFT, as its guides train."""
    model = _peft(name, kind)
    groups = [p for p in model.parameters() if p.requires_grad]
    if autocast:
        return _step(model, groups, lambda: torch.autocast(DEVICE, torch.bfloat16))
    return _step(model, groups)


def pooling(name: str, depth: str) -> Any:
    """What `ptune train` has the head read of pairs by default."""
    return "architecture" if name != "minilm" else "prompt" if depth == "input" else "mean"


def classifier(name: str, depth: str) -> PromptModel:
    """What `ptune train` trains by default."""
    config = PromptEncoderConfig(
        depth=depth,  # type: ignore[arg-type]
        num_virtual_tokens=ROWS,
        encoder_reparameterization_type="NONE",
        placement="prefix" if is_causal(name) else "after_first",
        prompt_init="vocab",
        pooling=pooling(name, depth),
    )
    return PromptModel(backbone(name, fast_dtype(DEVICE)).to(DEVICE), config)


def ours(name: str, depth: str, *, share: bool = True) -> Step:
    """What `ptune train` does by default."""
    forget_shapes()
    model = classifier(name, depth)
    model.share_prompt = share
    return _step(model, model.parameter_groups(1e-3))


class Floor:
    """The matrix products of the frozen layers that ptune's step has, and nothing else."""

    def __init__(self, name: str, depth: str) -> None:
        from transformers.pytorch_utils import Conv1D

        self.model = classifier(name, depth).eval()
        self.met: list[tuple[torch.Tensor, int]] = []
        self.products: dict[torch.Size, list[tuple[torch.Tensor, int]]] = {}
        for layer in self.model.backbone.base_model.modules():
            if isinstance(layer, nn.Linear | Conv1D):
                weight = layer.weight.detach()  # [out, in]
                weight = weight if isinstance(layer, nn.Linear) else weight.T.contiguous()
                layer.register_forward_hook(partial(self._meet, weight))

    def _meet(self, weight: torch.Tensor, layer: nn.Module, args: Any, output: Any) -> None:
        self.met.append((weight, args[0].numel() // weight.shape[1]))

    @torch.no_grad()
    def see(self, batch: Batch) -> None:
        """Find out which weights meet how many tokens of such a batch."""
        self.met = self.products[batch["input_ids"].shape] = []
        self.model(**batch)

    def __call__(self, batch: Batch) -> None:
        """Compute the products, forwards and for the gradient of what goes in."""
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
    """Seconds of `work`."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turn(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, in turn: A B C A B C."""
    for work in contenders.values():
        work()  # what is done once is not counted
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            seconds[name].append(timed(work))
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as long `slow` took: the median over the rounds, the least and the most."""
    each = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {"median": statistics.median(each), "least": min(each), "most": max(each)}


# What makes a contender, and whether it takes batches by length.
CONTENDERS: dict[str, tuple[Callable[[str], Step], bool]] = {
    "guide on PEFT": (lambda name: rival(name), False),
    "guide, autocast": (lambda name: rival(name, autocast=True), False),
    "PEFT LoRA": (lambda name: rival(name, "lora"), False),
    "ptune input": (lambda name: ours(name, "input"), True),
    "ptune deep": (lambda name: ours(name, "deep"), True),
    "floor of input": (lambda name: Floor(name, "input"), True),
    "floor of deep": (lambda name: Floor(name, "deep"), True),
    "ptune input, not shared": (lambda name: ours(name, "input", share=False), True),
}


class Contender:
    """A contender in training, in a process of its own."""

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
        """Train for its steps, and wait for the end."""
        try:
            self.pipe.send(None)
            self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise SystemExit(
                f"{self.kind!r} ended with exit code {self.process.exitcode}; -9 mostly means that "
                "memory ran out. Take fewer contenders at a time (--contenders)."
            ) from None

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def contend(pipe: Any, kind: str, name: str, examples: Any, steps: int, turns: int) -> None:
    """Train for some steps whenever asked to: the process of a `Contender`."""
    make, by_length = CONTENDERS[kind]
    step = make(name)
    own_turns = batches(examples, name, steps, turns, by_length=by_length)
    if isinstance(step, Floor):
        for batch in chain(*own_turns):
            step.see(batch)
    for own in own_turns:
        pipe.recv()
        timed(lambda own=own: [step(batch) for batch in own])  # type: ignore[misc]  # waits for a GPU, too
        pipe.send(None)
    pipe.recv()  # a process that ends works while the others are timed


def training(
    name: str, examples: Any, steps: int, rounds: int, only: list[str] | None
) -> dict[str, Any]:
    """Training steps on one backbone, of all contenders or of some."""
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
        "guide on PEFT : ptune input": ("guide on PEFT", "ptune input"),
        "guide, autocast : ptune input": ("guide, autocast", "ptune input"),
        "guide on PEFT : ptune deep": ("guide on PEFT", "ptune deep"),
        "PEFT LoRA : ptune deep": ("PEFT LoRA", "ptune deep"),
        "ptune input : ptune deep": ("ptune input", "ptune deep"),
        "floor : ptune input": ("floor of input", "ptune input"),
        "floor : ptune deep": ("floor of deep", "ptune deep"),
    }
    if is_causal(name):
        pairs["not shared : shared prompt"] = ("ptune input, not shared", "ptune input")
    return {
        "seconds_a_step": {k: statistics.median(v) / steps for k, v in seconds.items()},
        "seconds_of_rounds": seconds,
        "ratios": {
            label: ratio(seconds, *pair)
            for label, pair in pairs.items()
            if made.keys() >= set(pair)
        },
    }


# Inference, with MiniLM.


@contextlib.contextmanager
def adapters() -> Iterator[tuple[Path, Path, Path]]:
    """Untrained adapters on MiniLM: PEFT's, ptune's input prompt, ptune's deep prompt."""
    with tempfile.TemporaryDirectory() as folder:
        theirs, shallow, deep = (Path(folder) / n for n in ("peft", "input", "deep"))
        _peft("minilm", "p-tuning").save_pretrained(theirs)
        for depth, where in (("input", shallow), ("deep", deep)):
            model = PromptModel(
                load_backbone("minilm"),
                PromptEncoderConfig(
                    depth=depth,
                    encoder_reparameterization_type="NONE",
                    pooling=pooling("minilm", depth),
                ),
            )
            model.save_pretrained(where)
        yield theirs, shallow, deep


def inference(texts: list[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Throughput on many texts and latency of one, tokenisation included."""
    import peft

    import ptune

    with adapters() as (theirs, shallow, deep):
        tokenizer = load_tokenizer("minilm")
        rival = peft.PeftModel.from_pretrained(
            load_backbone("minilm", dtype="float32").to(DEVICE), theirs
        ).eval()
        classifiers = {d: ptune.load(p) for d, p in (("input", shallow), ("deep", deep))}

        @torch.no_grad()
        def guide(some: list[tuple[str, str]]) -> None:
            for start in range(0, len(some), BATCH):
                first, second = map(list, zip(*some[start : start + BATCH], strict=True))
                batch = tokenizer(
                    first, second, truncation=True, padding="longest", return_tensors="pt"
                )
                rival(**batch.to(DEVICE)).logits.softmax(dim=1).tolist()

        many = in_turn(
            {
                "guide on PEFT": lambda: guide(texts),
                "ptune input": lambda: list(classifiers["input"].logits(texts)),
                "ptune deep": lambda: list(classifiers["deep"].logits(texts)),
            },
            rounds,
        )
        one = in_turn(
            {
                "guide on PEFT": lambda: guide(texts[:1]),
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
        "texts_a_second": {k: len(texts) / statistics.median(v) for k, v in many.items()},
        "latency_ms": {
            k: {
                "p50": 1000 * statistics.median(v),
                "p95": 1000 * statistics.quantiles(v, n=20)[-1],
            }
            for k, v in one.items()
        },
        "ratios": {
            f"{what}, guide on PEFT : ptune {depth}": ratio(s, "guide on PEFT", f"ptune {depth}")
            for what, s in (("throughput", many), ("latency", one))
            for depth in ("input", "deep")
        },
        "adapter_bytes": sizes,
        "seconds_to_load": loading,
    }


# Memory, growth and start-up: in processes of their own.


def _apart(what: str, **options: Any) -> Any:
    command = [sys.executable, __file__, "--apart", json.dumps({"what": what, **options})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_apart(what: str, name: str, data_dir: str | None, texts: int) -> None:
    """Do one thing and print what it took, as JSON."""
    corpus = data.load_glue("mrpc", data_dir)
    assert corpus.train is not None
    if what == "growth":
        import ptune

        rows = [(r[data.TEXT], r[data.PAIR]) for r in corpus.train.select(range(1000))]
        with adapters() as (_, _, deep):
            classifier = ptune.load(deep)
            list(classifier.logits(rows[:64]))
            seconds = timed(
                lambda: [None for _ in classifier.logits(rows[i % 1000] for i in range(texts))]
            )
    else:
        step = {
            "guide on PEFT": lambda: rival(name),
            "ptune input": lambda: ours(name, "input"),
            "ptune deep": lambda: ours(name, "deep"),
        }[what]()
        (grouped,) = batches(corpus.train, name, 8, by_length=what.startswith("ptune"))
        seconds = timed(lambda: [step(b) for b in grouped])
    peak = peak_memory_mb() if DEVICE == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def memory(name: str, data_dir: str | None) -> dict[str, Any]:
    """Peak memory of a process that trains for some steps."""
    kinds = ("guide on PEFT", "ptune input", "ptune deep")
    peaks = {kind: _apart(kind, name=name, data_dir=data_dir, texts=0)["peak_mb"] for kind in kinds}
    return {
        "peak_mb": peaks,
        "ratios": {
            f"memory, {kind} : guide on PEFT": {"median": peaks[kind] / peaks["guide on PEFT"]}
            for kind in kinds[1:]
        },
    }


def growth(counts: list[int], data_dir: str | None) -> dict[str, Any]:
    """Time and peak memory of classifying more and more texts."""
    return {str(n): _apart("growth", name="minilm", data_dir=data_dir, texts=n) for n in counts}


def startup(rounds: int) -> dict[str, float]:
    """Seconds that importing and `ptune --help` take, median."""

    def seconds(*command: str) -> float:
        run = [timed(lambda: subprocess.run(command, capture_output=True)) for _ in range(rounds)]
        return statistics.median(run)

    nothing = seconds(sys.executable, "-c", "pass")
    return {
        "import ptune": seconds(sys.executable, "-c", "import ptune") - nothing,
        "ptune --help": seconds(str(Path(sys.executable).with_name("ptune")), "--help"),
    }


# What is shown.


def rows_of(results: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """Every ratio: part, what, numbers."""
    found = []
    for part, content in results["parts"].items():
        found += [(part, what, numbers) for what, numbers in content.get("ratios", {}).items()]
    return found


def show(results: dict[str, Any], folder: Path) -> None:
    """Print the ratios and draw them."""
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
    ax.set_xlabel("ratio, median over the rounds")
    figure.savefig(folder / "speed.png", dpi=120)


def main() -> None:
    """Run what was asked for and show it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="GLUE's folder, for MRPC; without it, from the Hub")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES[:2]))
    parts = ("training", "inference", "memory", "start-up", "growth")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts[:-1]))
    parser.add_argument("--contenders", nargs="+", help="of training, as the results name them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of training, in each turn")
    parser.add_argument("--texts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/speed"))
    parser.add_argument("--apart", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.apart:
        run_apart(**json.loads(args.apart))
        return
    corpus = data.load_glue("mrpc", args.data_dir)
    assert corpus.train is not None
    found: dict[str, Any] = {}
    for name in args.backbones:
        if "training" in args.parts:
            found[f"training, {name}"] = training(
                name, corpus.train, args.steps, args.rounds, args.contenders
            )
        if "memory" in args.parts:
            found[f"memory, {name}"] = memory(name, args.data_dir)
    if "inference" in args.parts:
        texts = [(r[data.TEXT], r[data.PAIR]) for r in corpus.train.select(range(512))]
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
