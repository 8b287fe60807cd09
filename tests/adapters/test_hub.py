"""Publish adapters and load them by id: the real client, and a Hub on this machine."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from conftest import build, call, edit_json, refused
from hub_server import File, HubServer
from huggingface_hub import ModelCard, constants, hf_api
from safetensors.torch import load_file
from transformers.utils import hub as transformers_hub

import ptune
import ptune.peft
from ptune import PromptModel, PtuneError
from ptune.adapters import adapter
from ptune.adapters import push as hub
from ptune.adapters.adapter import Adapter
from ptune.adapters.card import CardText, model_card
from ptune.adapters.download import AdapterFiles
from ptune.adapters.public import PublicBackbone
from ptune.backbones.loading import load_backbone
from ptune.peft import PromptEncoderConfig
from ptune.training.settings import TrainSettings

TEXTS = ["please send my money back today", "the lamp blinks red"]
NOT_AN_ADAPTER = (
    "has no adapter_config.json, so it is not an adapter. Name the folder that `ptune train` wrote "
    "(--output-dir), or one of its checkpoints."
)
MAY_NOT_WRITE = (
    "was not pushed, because you may not write to it (…). Use a token with write permission, push "
    "under your own name, or open a pull request (--pull-request, or create_pr=True in Python)."
)
CANNOT_READ = (
    "is neither a folder here nor a repository on the Hub that you can read (…). Check the name. "
    "If the repository is private or gated, log in (`hf auth login`) or pass a token that may "
    "read it."
)
NAME_YOUR_OWN = "If you have that backbone, name it yourself (`--model`, or model= in Python)."
SETTINGS = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def read_settings_again():
    """The client reads its environment only once, on import."""
    importlib.reload(constants)
    # Each of two libraries has its own client.
    hf_api.api.endpoint = constants.ENDPOINT
    transformers_hub._hf_api = None
    huggingface_hub.close_session()


@pytest.fixture
def environment():
    """Changes environment variables until the test ends."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    read_settings_again()


def use(environment, **variables):
    for name, value in variables.items():
        environment.setenv(name, value)
    read_settings_again()


@pytest.fixture
def server(tmp_path, environment):
    """A Hub of our own at `HF_ENDPOINT`, with an empty cache. Alice is logged in."""
    with HubServer() as running:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
            environment.delenv(name, raising=False)
        home = str(tmp_path / "hf-home")
        nearby = {"NO_PROXY": "127.0.0.1,localhost", "HF_TOKEN": "hf_alice"}
        use(environment, HF_ENDPOINT=running.url, HF_HOME=home, **nearby, **SETTINGS)
        yield running


@pytest.fixture
def log_in(environment):
    """Log in as somebody else; `None`: log out."""

    def become(token):
        if token is None:
            environment.delenv("HF_TOKEN", raising=False)
        else:
            environment.setenv("HF_TOKEN", token)

    return become


@pytest.fixture
def patience(monkeypatch):
    """The client retries without waiting."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, bert_folder):
    """A run folder with checkpoints, as `ptune train` leaves it, without the training."""
    folder = tmp_path_factory.mktemp("secret-client") / "mail"
    torch.manual_seed(3)
    backbone = load_backbone(str(bert_folder), labels=["where|is it?", "refund"], dtype="float32")
    config = PromptEncoderConfig(
        num_virtual_tokens=4,
        encoder_reparameterization_type="NONE",
        placement="after_first",
        prompt_init="vocab",
    )
    PromptModel(backbone, config).save_pretrained(folder)
    settings = TrainSettings(
        model=str(bert_folder),
        train_file=str(folder / "mail.csv"),
        training_arguments={"logging_dir": str(folder / "logs"), "weight_decay": 0.1},
    )
    (folder / "settings.json").write_text(json.dumps(vars(settings)))
    metrics = {
        "task": "mail",
        "model": str(bert_folder),
        "eval": {"loss": 0.5, "accuracy": 0.75, "f1_macro": 0.6},
        "best": {"epoch": 1.0, "accuracy": 0.9, "f1_macro": 0.8},
        "adapter": "last",
        "majority": {"accuracy": 0.5, "f1_macro": 0.33},
        "epochs": [{"epoch": 1.0}, {"epoch": 2.0}],
        "train_examples": 1200,
        "eval_examples": {"eval": 300},
        "versions": {"ptune": "0.1.0"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "training_curve.png").write_bytes(b"\x89PNG curve")
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "optimizer.pt").write_bytes(b"heavy")
    return folder


@pytest.fixture
def on_the_hub(server, bert_folder):
    """The backbone's id on the Hub."""
    server.add_folder("lab/tiny-bert", bert_folder)
    return "lab/tiny-bert"


@pytest.fixture
def model(on_the_hub):
    """A model whose backbone is from the Hub."""
    torch.manual_seed(5)
    backbone = load_backbone(on_the_hub, labels=["no", "yes"], dtype="float32")
    config = PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16)
    return PromptModel(backbone, config).eval()


@torch.no_grad()
def logits(model):
    return model(torch.arange(10, 22).view(2, 6)).logits


def push(folder, repo_id="alice/mail", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the backbone is a folder
        return hub.push(folder, repo_id, **options)


def cached_files():
    return [f for f in Path(constants.HF_HUB_CACHE).rglob("*") if f.is_file() or f.is_symlink()]


# Publishing


def test_a_pushed_model_loads_by_its_id_and_predicts_the_same(server, model):
    url = model.push_to_hub("alice/yes-no")
    assert url == f"{server.url}/alice/yes-no"
    loaded = ptune.load("alice/yes-no", dtype="float32", device="cpu")
    assert torch.equal(logits(loaded.prompt_model_), logits(model))
    assert loaded.labels == ["no", "yes"]
    assert loaded.predict(TEXTS).shape == (2,)


def test_the_commit_of_the_backbone_is_recorded_and_named_when_it_changed(
    server, model, on_the_hub, tmp_path
):
    model.save_pretrained(tmp_path / "a")
    commit = model.backbone.config._commit_hash
    assert adapter.Adapter.read(tmp_path / "a").backbone["commit"] == commit
    assert adapter.describe(tmp_path / "a")["backbone check"] == (
        f"sizes and 48 weights, commit {commit}"
    )
    build("bert", seed=1).bert.save_pretrained(tmp_path / "new")
    server.add_folder(on_the_hub, tmp_path / "new")
    then = f"{on_the_hub} at the commit {commit}"
    with refused(
        f"The adapter {tmp_path / 'a'} was trained on {then}; the backbone {on_the_hub} has the "
        f"same sizes, but other weights (bert.…). Load {then}. To use this backbone nevertheless, "
        "set allow_other_backbone=True (--allow-other-backbone)."
    ):
        ptune.load(tmp_path / "a", dtype="float32")


def test_a_classifier_pushes_itself(server, run_folder, bert_folder):
    classifier = ptune.load(run_folder, dtype="float32", device="cpu")
    with pytest.warns(UserWarning, match="is a folder on this machine"):
        classifier.push_to_hub("alice/mail", private=True)
    loaded = ptune.load("alice/mail", model=str(bert_folder), dtype="float32", device="cpu")
    np.testing.assert_array_equal(loaded.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


def test_a_run_folder_is_pushed_without_checkpoints_and_stays_unchanged(server, run_folder):
    before = {f: f.read_bytes() for f in run_folder.rglob("*") if f.is_file()}
    push(run_folder)
    assert server.files("alice/mail") == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "ptune.json",
        "metrics.json",
        "training_curve.png",
        "README.md",
    }
    assert {f: f.read_bytes() for f in run_folder.rglob("*") if f.is_file()} == before
    assert server.repos["alice/mail"].titles[1:] == ["Upload a p-tuned classifier"]


def test_a_push_removes_what_an_earlier_one_left(server, run_folder):
    """Scores of the classifier before would be taken for those of the new one."""
    push(run_folder)
    server.repos["alice/mail"].commit("main", {"notes.md": File(b"by hand")}, "notes")
    push(Adapter.read(run_folder, own_backbone=True))
    found = server.files("alice/mail")
    assert not found & {"metrics.json", "training_curve.png"}
    assert found >= {"adapter_config.json", "ptune.json", "README.md", "notes.md"}
    assert "scores" not in adapter.describe("alice/mail")
    push(run_folder, revision="next")
    assert server.files("alice/mail", "next") >= {"metrics.json", "training_curve.png"}
    push(Adapter.read(run_folder, own_backbone=True), revision="next")
    assert "metrics.json" not in server.files("alice/mail", "next")


def test_small_files_are_part_of_the_commit_and_large_ones_go_to_storage(server, run_folder):
    push(run_folder)
    tree = server.repos["alice/mail"].at("main")[1]
    assert tree["adapter_model.safetensors"].large
    assert not tree["adapter_config.json"].large
    weights = (run_folder / "adapter_model.safetensors").read_bytes()
    assert server.file("alice/mail", "adapter_model.safetensors") == weights
    assert server.tokens_seen_by_storage == []


def test_no_path_of_this_machine_is_pushed(server, run_folder):
    push(run_folder)
    for name in server.files("alice/mail"):
        content = server.file("alice/mail", name)
        for secret in (b"secret-client", str(run_folder.parent.parent).encode(), b"/tmp"):
            assert secret not in content, name
    config = json.loads(server.file("alice/mail", "adapter_config.json"))
    assert config["base_model_name_or_path"] == "./tiny-bert"


def test_a_backbone_in_the_hub_s_cache_is_published_by_its_id(server, on_the_hub, run_folder):
    cached = huggingface_hub.snapshot_download(on_the_hub)
    public = PublicBackbone.of(cached, None)
    assert (public.name, public.revision, public.is_local) == (on_the_hub, Path(cached).name, False)


def test_pushing_the_same_files_again_creates_no_commit(server, run_folder):
    push(run_folder)
    push(run_folder)
    assert len(server.repos["alice/mail"].titles) == 2


def test_a_name_without_an_owner_is_under_the_user_s_account(server, run_folder):
    assert push(run_folder, "mail") == f"{server.url}/alice/mail"


def test_a_branch_is_created_and_main_stays_unchanged(server, run_folder):
    url = push(run_folder, revision="try-2", commit_message="Second try")
    assert url == f"{server.url}/alice/mail/tree/try-2"
    assert "adapter_config.json" in server.files("alice/mail", "try-2")
    assert server.files("alice/mail") == set()
    assert server.repos["alice/mail"].titles[-1] == "Second try"
    push(run_folder, revision="try-2")  # an existing branch is used


def test_a_pull_request_needs_no_write_permission(server, run_folder, log_in):
    server.add_repo("alice/mail")
    log_in("hf_bob")
    url = push(run_folder, create_pr=True, commit_message="A better one")
    assert url == f"{server.url}/alice/mail/discussions/1"
    assert server.files("alice/mail") == set()
    assert "adapter_config.json" in server.files("alice/mail", "refs/pr/1")
    with refused(f"alice/mail {MAY_NOT_WRITE}"):
        push(run_folder)


def test_a_pull_request_against_a_branch_is_refused(server, run_folder):
    with refused("A pull request goes to main, not to the branch 'x'. Leave out one of the two."):
        push(run_folder, revision="x", create_pr=True)


def test_others_cannot_read_a_private_repository(server, run_folder, bert_folder, log_in):
    push(run_folder, private=True)
    assert server.repos["alice/mail"].private
    ptune.load("alice/mail", model=str(bert_folder))
    shutil.rmtree(constants.HF_HUB_CACHE)
    for nobody in ("hf_bob", None):
        log_in(nobody)
        with refused(f"'alice/mail' {CANNOT_READ}"):
            ptune.load("alice/mail", model=str(bert_folder))
    ptune.load("alice/mail", model=str(bert_folder), token="hf_alice")


def test_nothing_private_is_pushed_into_a_public_repository(server, run_folder):
    server.add_repo("alice/mail")
    with refused(
        "alice/mail already exists and is public, so nothing was pushed. Make it private in its "
        "settings on the Hub, or choose another name."
    ):
        push(run_folder, private=True)
    assert server.files("alice/mail") == set()


def test_a_pickled_adapter_is_published_as_safetensors(server, run_folder, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(run_folder, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    push(folder)
    assert "adapter_model.bin" not in server.files("alice/mail")
    (tmp_path / "back").write_bytes(server.file("alice/mail", "adapter_model.safetensors"))
    back = load_file(tmp_path / "back")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_folder_without_an_adapter_creates_no_repository(server, tmp_path):
    with refused(f"{tmp_path} {NOT_AN_ADAPTER}"):
        hub.push(tmp_path, "alice/nothing")
    with refused(
        f"There is no folder {tmp_path / 'nowhere'}. Name the folder that has adapter_config.json."
    ):
        hub.push(tmp_path / "nowhere", "alice/nothing")
    assert server.repos == {}


@pytest.mark.parametrize("name", ["a/b/c", "alice/my model", "../mail", "alice/mail.git"])
def test_a_name_that_cannot_be_a_repository_is_refused(server, run_folder, name):
    with refused(
        f"{name!r} cannot be a repository: … Expected owner/name, or a name under your own account."
    ):
        push(run_folder, name)


def test_an_address_or_a_folder_in_place_of_a_name_is_called_so(server, run_folder):
    address = "https://huggingface.co/alice/mail/tree/main"
    name_it = "Name the repository as owner/name: alice/mail."
    with refused(f"{address!r} cannot be a repository: it is an address. {name_it}"):
        push(run_folder, address)
    with refused(f"{address!r} is an address. {name_it}"):
        AdapterFiles(address)
    with refused("'https://x.org' is an address. Name the repository as owner/name."):
        AdapterFiles("https://x.org")
    folder = str(run_folder)
    with refused(f"{folder!r} cannot be a repository: it is a classifier here. Name it first."):
        hub.push("alice/mail", folder)


# The card


def check_metadata(server, card):
    """Let the Hub check a card as `card.validate` does, which before 2.0 asks the public Hub."""
    body = {"repoType": "model", "content": str(card)}
    answer = httpx.post(f"{server.url}/api/validate-yaml", json=body)
    assert (answer.status_code, answer.json()["errors"]) == (200, [])


def test_the_hub_can_read_the_card_s_metadata(server, run_folder):
    push(run_folder, license="apache-2.0")
    card = ModelCard.load("alice/mail")
    check_metadata(server, card)
    data = card.data
    assert data.library_name == "ptune"
    assert data.pipeline_tag == "text-classification"
    assert data.license == "apache-2.0"
    assert data.tags == ["p-tuning"]  # in PEFT, the prompt is elsewhere
    assert "base_model" not in data.to_dict()  # a folder is not an id
    assert "datasets" not in data.to_dict()
    scores = {(r.metric_type, str(r.metric_args)): r.metric_value for r in data.eval_results}
    assert scores == {("accuracy", "None"): 0.75, ("f1", "{'average': 'macro'}"): 0.6}
    assert {r.dataset_name for r in data.eval_results} == {"mail"}
    again = ModelCard(str(card))
    assert again.data.eval_results == data.eval_results


def test_the_card_describes_the_classifier_and_its_use(server, run_folder):
    push(run_folder)
    text = server.file("alice/mail", "README.md").decode().split("---\n", 2)[2]
    assert "This classifier assigns one of 2 labels to a text. It was trained on mail." in text
    assert "a prompt of 4 learned virtual tokens and a head, 194 parameters in total, for" in text
    assert "`where\\|is it?`, `refund`" in text
    assert 'classifier = ptune.load("alice/mail", model="path/to/tiny-bert")' in text
    assert "| Accuracy | 0.7500 | 0.5000 |" in text
    assert "300 examples that were not used for training, after the last epoch" in text
    assert "![Training curve](training_curve.png)" in text
    assert "| train file | `mail.csv` |" in text
    assert '"weight_decay": 0.1' in text
    assert "| training examples | `1,200` |" in text


HOSTILE = [
    "---",
    "a: b\n---\nlicense: mit",
    "'quoted\" | `tick` ``two``",
    "😀 <script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %}",
    "- [x](http://example.org) ![y](z.png)",
]


def test_hostile_names_stay_text_in_the_card(server, run_folder, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(run_folder, folder)
    edit_json(folder / "ptune.json", labels=HOSTILE[:2])
    rows = [
        {"label": n, "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "examples": 4, "predicted": 2}
        for n in HOSTILE
    ]
    task = HOSTILE[1] + HOSTILE[3] + HOSTILE[5]
    edit_json(folder / "metrics.json", task=task, label_scores={"eval": rows})
    text = CardText("From *our* shop.", "Routing mail.", "Not for law.", "It's: --- 😀\n---", "en")
    push(folder, license="mit", card=text)
    card = ModelCard.load("alice/mail")
    check_metadata(server, card)
    data = card.data
    assert (data.license, data.language, data.library_name) == ("mit", "en", "ptune")
    assert data.to_dict()["widget"] == [{"text": text.example}]
    assert {r.dataset_name for r in data.eval_results} == {task}
    rest = re.sub(r"`[^`]*`|\[p-tuning\]\S+", "", card.text)
    assert not re.search(r"(?<!\\)(<script|\]\(http)", rest)
    lines = card.text.splitlines()
    for name in HOSTILE:
        shown = " ".join(name.split()).replace("|", "\\|")
        row = rf"\| `+ ?{re.escape(shown)} ?`+ \| 0\.500 \| 0\.250 \| 0\.333 \| 4 \|"
        assert [line for line in lines if re.fullmatch(row, line)]
    for own_text in (text.data_description, text.intended_use, text.limits):
        assert own_text in lines


def test_the_card_states_learning_rates_versions_and_limits(run_folder, tmp_path):
    folder = tmp_path / "stated"
    shutil.copytree(run_folder, folder)
    edit_json(folder / "settings.json", learning_rate=0.001, prompt_learning_rate=0.12)
    text = str(model_card(folder, "alice/mail"))
    assert "| learning rate | `0.001` |" in text
    assert "| prompt learning rate | `0.12` |" in text
    assert "- ptune 0.1.0" in text
    assert "one of these labels, also a text about something else" in text
    assert "co2" not in text.lower()
    assert ModelCard(text).data.to_dict()["widget"] == [{"text": "Write a text to classify."}]


def test_the_card_of_a_glue_run_names_dataset_configuration_and_revision(run_folder, tmp_path):
    folder = tmp_path / "mnli"
    shutil.copytree(run_folder, folder)
    settings = {"task": "mnli", "model": "lab/tiny-bert", "data_dir": "/secret/glue"}
    (folder / "settings.json").write_text(json.dumps(settings))
    scores = {"loss": 1.0, "matched_accuracy": 0.6, "mismatched_accuracy": 0.61}
    metrics = {"task": "GLUE MNLI", "eval": scores, "dataset_revision": "b" * 40}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "text_pairs": True}))
    card = model_card(folder, "alice/mnli")
    assert card.data.datasets == ["nyu-mll/glue"]
    first, second = card.data.to_dict()["model-index"][0]["results"]
    assert first["dataset"] == {
        "name": "GLUE MNLI",
        "type": "nyu-mll/glue",
        "config": "mnli",
        "split": "validation_matched",
        "revision": "b" * 40,
    }
    assert second["dataset"]["split"] == "validation_mismatched"
    assert second["metrics"][0]["value"] == 0.61
    assert '("The first text.", "The second text.")' in card.text
    assert "/secret" not in str(card)


def test_the_card_follows_labels_that_changed_after_training(run_folder, tmp_path):
    """Scores stay with a renamed label. Those of merged labels are not known."""
    folder = tmp_path / "changed"
    shutil.copytree(run_folder, folder)
    row = {"precision": 0.75, "recall": 1.0, "f1": 0.857, "examples": 3}
    scores = {"eval": [{"label": name, **row} for name in ("where|is it?", "refund")]}
    edit_json(folder / "metrics.json", labels=["where|is it?", "refund"], label_scores=scores)
    for name in ("confusion_matrix.png", "training_curve.png"):
        (folder / name).write_bytes(b"\x89PNG matrix")
    assert "confusion_matrix.png" in model_card(folder, "alice/mail").text
    assert call("rename-label", folder, "refund", "money back") == 0
    card = model_card(folder, "alice/mail")
    assert "| `money back` | 0.750 | 1.000 | 0.857 | 3 |" in card.text
    assert "refund" not in card.text
    # The picture has the old names.
    assert "confusion_matrix.png" not in card.text
    assert "training_curve.png" in card.text
    public = hub._public_files(folder)
    assert not public.keys() & {"confusion_matrix.png", "label_scores.png"}
    published = json.loads(public["metrics.json"])
    assert published["labels"] == ["where|is it?", "money back"]
    assert published["label_scores"]["eval"][1] == {"label": "money back", **row}
    edit_json(folder / "ptune.json", labels=["any"], label_outputs=[0, 0], label_aliases={})
    card = model_card(folder, "alice/mail")
    assert "Labels were merged or dropped after training, so its scores are left out." in card.text
    assert not any(word in card.text for word in ("0.750", "Accuracy", "confusion_matrix.png"))
    assert card.data.eval_results is None
    published = json.loads(hub._public_files(folder)["metrics.json"])
    assert published["eval"] == {}
    assert published["epochs"] == [{"epoch": 1.0}, {"epoch": 2.0}]
    assert not published.keys() & {"best", "majority", "labels", "label_scores"}


def test_an_adapter_that_peft_can_load_is_tagged_and_predicts_the_same_there(server, model):
    model.push_to_hub("alice/yes-no")
    data = ModelCard.load("alice/yes-no").data
    assert data.tags == ["p-tuning", "peft"]
    assert data.base_model == "lab/tiny-bert"
    assert data.base_model_relation == "adapter"
    config = peft.PeftConfig.from_pretrained("alice/yes-no")
    assert config.base_model_name_or_path == "lab/tiny-bert"
    backbone = load_backbone("lab/tiny-bert", labels=["no", "yes"], dtype="float32")
    theirs = peft.PeftModel.from_pretrained(backbone, "alice/yes-no").eval()
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=0)


def test_a_readme_in_the_folder_replaces_the_card(server, run_folder, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(run_folder, folder)
    own = "---\nlicense: mit\n---\n# Mine\n"
    (folder / "README.md").write_text(own)
    push(folder)
    assert server.file("alice/mail", "README.md").decode() == own


def test_what_peft_s_names_save_is_published_without_paths(server, bert_folder, tmp_path):
    backbone = load_backbone(str(bert_folder), dtype="float32")
    config = ptune.peft.PromptTuningConfig(
        num_virtual_tokens=4,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="where is it",
        tokenizer_name_or_path=str(bert_folder),
        tokenizer_kwargs={"cache_dir": str(tmp_path)},
    )
    ptune.peft.get_peft_model(backbone, config).save_pretrained(tmp_path / "mine")
    push(tmp_path / "mine")
    published = json.loads(server.file("alice/mail", "adapter_config.json"))
    assert published["tokenizer_name_or_path"] == f"./{bert_folder.name}"
    for file in ("adapter_config.json", "README.md"):
        assert str(bert_folder.parent).encode() not in server.file("alice/mail", file)
        assert str(tmp_path).encode() not in server.file("alice/mail", file)


def test_metadata_that_the_hub_refuses_is_reported_and_nothing_is_committed(
    server, run_folder, tmp_path
):
    folder = tmp_path / "own"
    shutil.copytree(run_folder, folder)
    (folder / "README.md").write_text("---\nmodel-index:\n- results: [{}]\n---\n")
    with pytest.raises(PtuneError, match=r"alice/mail was not pushed: Invalid metadata in README"):
        push(folder)
    assert server.files("alice/mail") == set()


# Failed uploads


@pytest.mark.parametrize("token", [None, "hf_made_up"])
def test_a_push_without_a_login_says_how_to_log_in(server, run_folder, log_in, token):
    log_in(token)
    with refused(
        "alice/mail was not pushed, because you are not logged in to the Hub (…). Log in with `hf "
        "auth login`, or pass a token that may write (--token, or token= in Python)."
    ):
        push(run_folder)
    assert server.repos == {}


def test_a_push_under_another_user_s_name_is_refused(server, run_folder):
    with refused(f"bob/mail {MAY_NOT_WRITE.replace('…', '…rights…')}"):
        push(run_folder, "bob/mail")


@pytest.mark.parametrize("where", ["preupload", "objects/batch", "/commit/", "/storage/"])
def test_a_refusal_halfway_leaves_nothing_in_the_repository(server, run_folder, where):
    server.go_wrong("PUT" if where == "/storage/" else "POST", where, status=403)
    with refused(f"alice/mail {MAY_NOT_WRITE}"):
        push(run_folder)
    assert server.files("alice/mail") == set()


def test_a_link_to_a_file_elsewhere_is_not_published(server, run_folder, tmp_path):
    folder, secret = tmp_path / "run", tmp_path / "id_rsa"
    shutil.copytree(run_folder, folder)
    secret.write_text("secret")
    (folder / "README.md").symlink_to(secret)
    with refused(
        f"{folder / 'README.md'} links to {secret}, outside the adapter's folder. If you trust the "
        "adapter, replace the link by a copy of the file."
    ):
        push(folder)
    assert not server.repos


def test_a_repository_that_is_deleted_meanwhile_is_reported(server, run_folder):
    server.go_wrong("POST", "/commit/", status=404, code="RepoNotFound")
    with refused("There is no repository alice/mail that you can see (…). Check the name."):
        push(run_folder)


def test_an_error_of_the_hub_is_reported(server, run_folder, patience):
    server.go_wrong("POST", "/commit/", status=409)
    with refused("The Hub refused alice/mail with error 409 (…). Try again later."):
        push(run_folder)


def test_a_full_disk_during_a_download_is_reported(server, run_folder, tmp_path):
    server.add_folder("bob/mail", run_folder)
    (tmp_path / "file").write_text("")
    with refused(
        "adapter_config.json of 'bob/mail' could not be saved (…). Free some space or try again."
    ):
        ptune.load("bob/mail", cache_dir=tmp_path / "file")


def test_an_interrupted_upload_is_repeated(server, run_folder, patience):
    server.go_wrong("PUT", "/storage/", cut=100, times=1)
    push(run_folder)
    weights = (run_folder / "adapter_model.safetensors").read_bytes()
    assert server.file("alice/mail", "adapter_model.safetensors") == weights


def test_an_upload_that_keeps_failing_leaves_nothing(server, run_folder, patience):
    server.go_wrong("PUT", "/storage/", cut=100)
    with refused(
        f"The connection to the Hub at {server.url} failed (…), so nothing was committed. Check "
        "the network and push again."
    ):
        push(run_folder)
    assert server.files("alice/mail") == set()


def test_a_push_without_a_network_is_refused(server, run_folder, environment):
    with HubServer() as gone:
        url = gone.url
    use(environment, HF_ENDPOINT=url)
    with refused(
        f"The connection to the Hub at {url} failed (…), so nothing was committed. Check "
        "the network and push again."
    ):
        push(run_folder)
    use(environment, HF_HUB_OFFLINE="1")
    with refused(
        "alice/mail was not pushed: offline mode is on. Unset HF_HUB_OFFLINE and try again."
    ):
        push(run_folder)


# Loading by id


@pytest.fixture
def two_versions(server, run_folder, bert_folder, tmp_path):
    """`alice/mail` with another prompt on its branch `old` and in its folder `inner`."""
    other = tmp_path / "other"
    shutil.copytree(run_folder, other, ignore=shutil.ignore_patterns("checkpoints"))
    backbone = load_backbone(str(bert_folder), labels=["where|is it?", "refund"], dtype="float32")
    changed = PromptModel.from_pretrained(backbone, other)
    with torch.no_grad():
        changed.prompt_encoder.embedding.weight.normal_()
    changed.to_adapter().save(other)
    push(run_folder)
    push(other, revision="old")
    server.add_folder("alice/mail", other, under="inner/")

    def load(source, **where):
        return ptune.load(source, model=str(bert_folder), dtype="float32", device="cpu", **where)

    this, that = logits(load(run_folder).prompt_model_), logits(load(other).prompt_model_)
    assert not torch.allclose(this, that)
    return SimpleNamespace(load=load, this=this, that=that, folder=run_folder)


def test_revision_and_subfolder_choose_the_adapter(server, two_versions):
    commit = server.repos["alice/mail"].refs["old"]
    assert torch.equal(logits(two_versions.load("alice/mail").prompt_model_), two_versions.this)
    for where in ({"revision": "old"}, {"revision": commit}, {"subfolder": "inner"}):
        loaded = two_versions.load("alice/mail", **where)
        assert torch.equal(logits(loaded.prompt_model_), two_versions.that), where


def test_files_of_two_commits_never_mix(server, two_versions, tmp_path):
    files = AdapterFiles("alice/mail")
    push(tmp_path / "other")  # while the first version is being read
    found = adapter.Adapter.read(files, own_backbone=True)
    first = load_file(two_versions.folder / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(found.prompt_embeddings, first)
    now = adapter.Adapter.read("alice/mail", own_backbone=True)
    assert not torch.equal(now.prompt_embeddings, first)


def test_offline_a_file_that_was_never_downloaded_is_not_taken_for_missing(server, run_folder):
    """Without `ptune.json`, labels would be numbered."""
    push(run_folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # as PEFT does
        huggingface_hub.hf_hub_download("alice/mail", name)
    with refused(
        "There is no folder 'alice/mail', and the Hub could not be asked for ptune.json of a "
        "repository with that name (no network, or offline mode). Check the path or the network."
    ):
        adapter.Adapter.read("alice/mail", own_backbone=True, local_files_only=True)


def test_a_pull_request_can_be_tried_before_it_is_merged(server, run_folder, bert_folder):
    server.add_repo("alice/mail")
    push(run_folder, create_pr=True)
    ptune.load("alice/mail", model=str(bert_folder), revision="refs/pr/1")
    with refused(f"alice/mail {NOT_AN_ADAPTER}"):
        ptune.load("alice/mail", model=str(bert_folder))


@pytest.mark.parametrize("how", ["local_files_only", "HF_HUB_OFFLINE", "server is gone"])
def test_an_adapter_that_was_loaded_once_loads_offline(
    server, model, environment, monkeypatch, how
):
    model.push_to_hub("alice/yes-no")
    ptune.load("alice/yes-no", dtype="float32", device="cpu")
    options = {}
    if how == "local_files_only":
        options = {"local_files_only": True}
    elif how == "HF_HUB_OFFLINE":
        use(environment, HF_HUB_OFFLINE="1")
    else:
        with HubServer() as gone:
            url = gone.url
        use(environment, HF_ENDPOINT=url)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
    asked = len(server.requests)
    loaded = ptune.load("alice/yes-no", dtype="float32", device="cpu", **options)
    assert torch.equal(logits(loaded.prompt_model_), logits(model))
    assert len(server.requests) == asked


def test_offline_with_an_empty_cache_names_the_missing_file(server, run_folder):
    push(run_folder)
    with refused(
        "There is no folder 'alice/mail', and the Hub could not be asked for adapter_config.json "
        "of a repository with that name (no network, or offline mode). Check the path or the "
        "network."
    ):
        ptune.load("alice/mail", local_files_only=True)


def test_cache_dir_holds_adapter_and_backbone(server, model, tmp_path):
    model.push_to_hub("alice/yes-no")
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    ptune.load("alice/yes-no", cache_dir=tmp_path / "mine", dtype="float32")
    assert (tmp_path / "mine" / "models--alice--yes-no").is_dir()
    assert (tmp_path / "mine" / "models--lab--tiny-bert").is_dir()
    assert [f for f in cached_files() if f.suffix == ".safetensors"] == []


def test_a_repository_that_does_not_exist_is_refused(server):
    with refused(f"'alice/nowhere' {CANNOT_READ}"):
        ptune.load("alice/nowhere")


def test_a_revision_that_does_not_exist_is_refused(server, run_folder):
    push(run_folder)
    with refused(
        "The repository 'alice/mail' has no revision 'v9'. Name one of its branches, tags or "
        "commits."
    ):
        ptune.load("alice/mail", revision="v9")


def test_a_repository_without_an_adapter_is_refused(server, on_the_hub):
    with refused(f"{on_the_hub} {NOT_AN_ADAPTER}"):
        ptune.load(on_the_hub)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, f"'alice/mail' {CANNOT_READ}"),
        (403, f"'alice/mail' {CANNOT_READ.replace('…', '…403 Forbidden…')}"),
        (500, "The Hub did not provide adapter_config.json of 'alice/mail' (…). Try again later."),
    ],
)
def test_a_refused_download_is_reported(server, run_folder, patience, status, message):
    push(run_folder)
    server.go_wrong("HEAD", "adapter_config.json", status=status)
    with refused(message):
        ptune.load("alice/mail")


def test_a_name_that_is_neither_here_nor_can_be_asked_for_is_called_so(server, patience):
    server.go_wrong("HEAD", "adapter_config.json", cut=0)
    with refused(
        "There is no folder 'runs/mial', and the Hub could not be asked for a repository with that "
        "name (…). Check the path or the network."
    ):
        ptune.load("runs/mial")


def test_an_interrupted_download_continues(server, run_folder, bert_folder, patience):
    push(run_folder)
    server.go_wrong("GET", "/storage/", cut=1000, times=1)
    ptune.load("alice/mail", model=str(bert_folder))
    (weights,) = [f for f in cached_files() if f.name == "adapter_model.safetensors"]
    assert weights.read_bytes() == (run_folder / "adapter_model.safetensors").read_bytes()


def test_a_download_that_keeps_failing_leaves_no_partial_file(
    server, run_folder, bert_folder, patience
):
    push(run_folder)
    server.go_wrong("GET", "/storage/", cut=1000, times=1)
    server.go_wrong("GET", "/storage/", cut=0)
    with refused(
        "The connection to the Hub failed during the download of adapter_model.safetensors of "
        "'alice/mail' (…). Nothing of it was kept. Check the network and try again."
    ):
        ptune.load("alice/mail", model=str(bert_folder))
    assert [f.name for f in cached_files() if "incomplete" in f.name] == []
    assert "adapter_model.safetensors" not in [f.name for f in cached_files()]
    server.faults.clear()
    ptune.load("alice/mail", model=str(bert_folder))  # the next attempt succeeds


# What an adapter's files must not do


def tampered(run_folder, folder, **fields):
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("checkpoints"))
    edit_json(folder / "adapter_config.json", **fields)
    return folder


NOT_A_REVISION = (
    "…: adapter_config.json has the revision '{}'. Expected a branch, a tag or a commit of the "
    "backbone."
)
NOT_FOLLOWED = (
    "…: adapter_config.json: base_model_name_or_path is '{}'; expected …an id on the Hub. "
    f"{NAME_YOUR_OWN}"
)
CODE = {"base_model_class": "Popen", "parent_library": "subprocess"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"auto_mapping": CODE},
            "…: adapter_config.json names code to import (auto_mapping). ptune does not run code "
            "from adapters; if you trust it, remove the field from the file.",
        ),
        ({"revision": "../../../escape"}, NOT_A_REVISION.format("../../../escape")),
        ({"revision": "/etc"}, NOT_A_REVISION.format("/etc")),
        ({"revision": 3}, "…/adapter_config.json: revision is 3; expected a string."),
        ({"base_model_name_or_path": "../../victim"}, NOT_FOLLOWED.format("../../victim")),
        ({"base_model_name_or_path": r"a\..\..\victim"}, NOT_FOLLOWED.format(r"a\\..\\..\\victim")),
        ({"base_model_name_or_path": "."}, NOT_FOLLOWED.format(".")),
        ({"base_model_name_or_path": ""}, NOT_FOLLOWED.format("")),
        ({"base_model_name_or_path": "a/b/c"}, NOT_FOLLOWED.format("a/b/c")),
        ({"base_model_name_or_path": "/a/../b"}, NOT_FOLLOWED.format("/a/../b")),
        ({"base_model_name_or_path": "a" * 100_000}, NOT_FOLLOWED.format("a…a")),
        ({"base_model_name_or_path": "~/victim"}, NOT_FOLLOWED.format("~/victim")),
        (
            {"base_model_name_or_path": ["a"]},
            "…/adapter_config.json: base_model_name_or_path is ['a']; expected a string.",
        ),
    ],
)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_an_adapter_that_names_code_or_reaches_outside_is_refused(
    server, run_folder, tmp_path, fields, message, place
):
    source = tampered(run_folder, tmp_path / "evil", **fields)
    if place == "hub":
        server.add_folder("bob/evil", source)
        source = "bob/evil"
    for load in (ptune.load, ptune.peft.PeftConfig.from_pretrained):
        with refused(message):
            load(source)


def test_an_absolute_folder_is_followed_from_a_folder_and_not_from_the_hub(
    server, run_folder, bert_folder
):
    assert ptune.load(run_folder, dtype="float32").model == str(bert_folder)
    server.add_folder("bob/mail", run_folder)  # as PEFT would push it
    with refused(NOT_FOLLOWED.format(bert_folder)):
        ptune.load("bob/mail")
    ptune.load("bob/mail", model=str(bert_folder))
    PromptModel.from_pretrained(
        load_backbone(str(bert_folder), labels=["a", "b"], dtype="float32"), "bob/mail"
    )


def test_code_of_a_backbone_is_not_run(server, run_folder, bert_folder, tmp_path):
    folder = tmp_path / "code"
    shutil.copytree(bert_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    server.add_folder("bob/code", folder)
    server.add_folder(
        "bob/mail", tampered(run_folder, tmp_path / "a", base_model_name_or_path="bob/code")
    )
    with pytest.raises(PtuneError, match="could not be loaded"):
        ptune.load("bob/mail")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_from_the_hub_is_not_run(server, run_folder, bert_folder, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    folder = tampered(run_folder, tmp_path / "evil")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"prompt_embeddings": Evil()}))
    server.add_folder("bob/evil", folder)
    with refused("…/adapter_model.bin is damaged or cut short (…). Save or download it again."):
        ptune.load("bob/evil", model=str(bert_folder))
    assert not (tmp_path / "ran").exists()


# The command, and new processes


def test_the_command_pushes_privately_to_a_branch(server, run_folder, capsys):
    words = ["--private", "--branch", "v2", "--message", "Hello", "--token", "hf_bob"]
    assert call("push", run_folder, "bob/mail", *words, "--license", "mit") == 0
    assert f"Pushed to {server.url}/bob/mail/tree/v2" in capsys.readouterr().out
    repo = server.repos["bob/mail"]
    assert repo.private
    assert repo.titles[-1] == "Hello"
    assert b"license: mit" in server.file("bob/mail", "README.md", "v2")


def test_the_command_opens_a_pull_request(server, run_folder, capsys):
    server.add_repo("bob/mail")
    assert call("push", run_folder, "bob/mail", "--pull-request") == 0
    assert "/bob/mail/discussions/1" in capsys.readouterr().out


def test_the_command_reports_a_refusal_with_exit_code_2(server, run_folder, capsys, log_in):
    assert call("push", run_folder, "bob/mail") == 2
    assert "bob/mail was not pushed, because you may not write to it" in capsys.readouterr().err
    log_in(None)
    assert call("push", run_folder, "alice/mail") == 2
    message = capsys.readouterr().err
    assert "Error: alice/mail was not pushed, because you are not logged in" in message
    assert "Traceback" not in message


def test_one_process_pushes_by_environment_and_another_loads_offline(server, run_folder):
    command = str(Path(sys.executable).with_name("ptune"))
    done = subprocess.run(
        [command, "push", run_folder, "alice/mail"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"Pushed to {server.url}/alice/mail"
    assert "is a folder on this machine" in done.stderr
    assert adapter.describe("alice/mail")["labels"] == "where|is it?, refund"
    done = subprocess.run(
        [command, "info", "alice/mail"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "refund" in done.stdout
