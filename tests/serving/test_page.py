"""The page of `ptune serve`, in a real browser, on a real server with a token."""

import shutil
import subprocess
from dataclasses import replace

import httpx2 as httpx
import numpy as np
import pytest
import torch
from serve import Server

from ptune import PromptModel
from ptune.backbones.loading import load_backbone
from ptune.peft import PromptEncoderConfig
from ptune.postprocessing import Postprocessing
from ptune.texts import Reading

pytestmark = pytest.mark.browser

TOKEN = "open-sesame"
HOSTILE = ["<img src=x onerror=alert(1)>", 'it\'s "so" & $HOME', "plain"]
COLOURS = ["red", "green", "blue"]
# Every text has the first label of the task of several, and none the last.
THRESHOLDS = np.array([0.01, 0.5, 0.99])
# Name, labels, problem type, and whether it takes pairs.
TASKS = [
    ("colours", COLOURS, "single_label_classification", False),
    ("hostile", HOSTILE, "single_label_classification", False),
    ("old", COLOURS, "single_label_classification", None),
    ("same", ["no", "yes"], "single_label_classification", True),
    ("stars", ["stars"], "regression", False),
    ("topics", COLOURS, "multi_label_classification", False),
]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and its driver (apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(driver))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def server(bert_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "served"
    for seed, (name, labels, kind, pairs) in enumerate(TASKS):
        torch.manual_seed(seed)
        backbone = load_backbone(
            str(bert_folder), labels=labels, problem_type=kind, dtype="float32"
        )
        config = PromptEncoderConfig(num_virtual_tokens=4, encoder_reparameterization_type="NONE")
        model = PromptModel(backbone, config)
        model.state.reading = Reading(pairs=pairs)
        with torch.no_grad():
            for _, parameter in model.head_parameters():
                parameter.normal_(std=0.3)
        adapter = model.to_adapter()
        if name == "topics":
            adapter = replace(adapter, postprocessing=Postprocessing(thresholds=THRESHOLDS))
        adapter.save(folder / name)
    with Server(folder, "--token", TOKEN) as running:
        yield running


@pytest.fixture
def page(browser, server):
    found = Page(browser, server)
    assert "token" in found.error()
    found["token"].send_keys(TOKEN + "\n")
    found.wait.until(lambda _: found["task"].find_elements("tag name", "option"))
    browser.get_log("browser")  # the refusal before the token
    yield found
    assert browser.get_log("browser") == []  # nothing was blocked, missing or thrown


class Page:
    def __init__(self, browser, server):
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.server = browser, server
        self.wait = WebDriverWait(browser, 20)
        browser.get(server.url)

    def __getitem__(self, name):
        return self.browser.find_element("id", name)

    def choose(self, task, text="", pair=""):
        from selenium.webdriver.support.ui import Select

        Select(self["task"]).select_by_value(task)
        self["text"].clear()
        self["text"].send_keys(text)
        if pair:
            self["pair"].clear()
            self["pair"].send_keys(pair)

    def classify(self, *what):
        self.choose(*what)
        self["go"].click()
        self.wait.until(lambda _: self["answer"].is_displayed() or self["error"].is_displayed())

    def bars(self):
        """For each label: its name, the text next to it and the width of its bar."""
        return [
            (*item.text.split("\n"), item.find_element("class name", "bar").rect["width"])
            for item in self["bars"].find_elements("tag name", "li")
        ]

    def cells(self):
        rows = self["rows"].find_elements("tag name", "tr")
        return [[c.text for c in row.find_elements("tag name", "td")] for row in rows]

    def options(self):
        return [o.text for o in self["task"].find_elements("tag name", "option")]

    def error(self):
        self.wait.until(lambda _: self["error"].is_displayed())
        return self["error"].text

    def ask(self, task, inputs):
        """What the server itself answers."""
        answer = httpx.post(
            f"{self.server.url}/tasks/{task}/predict",
            json={"inputs": inputs},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        return answer.json()


def percent(score):
    return f"{100 * score:.1f}%"


def test_bars_show_the_server_s_scores(page):
    page.classify("colours", "a text")
    right = page.ask("colours", "a text")
    bars = page.bars()
    assert [(n, s) for n, s, _ in bars] == [(r["label"], percent(r["score"])) for r in right]
    assert page["answer-title"].text == right[0]["label"]
    ratio = right[1]["score"] / right[0]["score"]
    assert bars[1][2] / bars[0][2] == pytest.approx(ratio, abs=0.02)
    page.classify("stars", "a text")
    assert page["answer-title"].text == f"stars: {page.ask('stars', 'a text')[0]['score']:.3f}"
    assert page.bars() == []
    page.classify("topics", "a text")
    least = dict(zip(COLOURS, THRESHOLDS, strict=True))
    found = page.ask("topics", "a text")
    chosen = [r["label"] for r in found if r["score"] > least[r["label"]]]
    assert chosen != [r["label"] for r in found if r["score"] > 0.5]
    assert page["answer-title"].text == (", ".join(chosen) or "No label")


def test_the_second_text_shows_only_for_tasks_of_pairs(page):
    for task, _, _, pairs in TASKS:
        page.choose(task)
        assert page["pair"].is_displayed() == (pairs is True), task
        assert page["add-pair"].is_displayed() == (pairs is None), task
    page.classify("same", "one", "two")
    right = page.ask("same", ["one", "two"])
    assert [(n, s) for n, s, _ in page.bars()] == [(r["label"], percent(r["score"])) for r in right]
    page.choose("old", "one")
    page["add-pair"].click()
    assert page.browser.switch_to.active_element == page["pair"]
    page["pair"].send_keys(" more")
    page["go"].click()
    page.wait.until(lambda _: page["answer"].is_displayed())
    (right,) = page.ask("old", [["one", "two more"]])
    assert page.bars()[0][:2] == (right[0]["label"], percent(right[0]["score"]))


def test_names_of_labels_show_as_text(page):
    page.classify("hostile", "a text")
    assert {name for name, _, _ in page.bars()} == set(HOSTILE)
    assert all(name in page["about"].text for name in HOSTILE)
    assert page.browser.find_elements("css selector", "main img") == []


def test_many_texts_are_pasted_and_answered_in_a_table(page):
    texts = [f"text {i} <b>" for i in range(40)]  # more than one request
    page["many"].click()
    page.classify("hostile", "\n".join(texts[:2]) + "\n\n" + "\n".join(texts[2:]))
    right = [r for part in (texts[:32], texts[32:]) for r in page.ask("hostile", part)]
    assert page.cells() == [
        [text, answer[0]["label"], percent(answer[0]["score"])]
        for text, answer in zip(texts, right, strict=True)
    ]
    page.choose("same")
    page.browser.execute_script("document.getElementById('text').value = 'one\\ttwo\\na\\tb'")
    page["go"].click()
    page.wait.until(lambda _: page["answer-title"].text == "2 texts")
    answers = page.ask("same", [["one", "two"], ["a", "b"]])
    assert [row[1] for row in page.cells()] == [answer[0]["label"] for answer in answers]


def test_the_curl_command_gives_the_same_answer_and_keeps_the_token(page):
    text = 'it\'s "5 $HOME" \\ `date` & more'
    page.choose("hostile", text)
    page["curl"].click()
    command = page["command"].get_attribute("value")
    assert TOKEN not in command
    environment = {"PTUNE_TOKEN": TOKEN, "PATH": "/usr/bin:/bin"}
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=True)
    assert httpx.Response(200, content=done.stdout).json() == page.ask("hostile", [[text]])


def test_search_finds_tasks_among_a_thousand(page):
    page.browser.execute_script(
        "const [one] = tasks.values();"
        "for (let i = 0; i < 1000; i++) {"
        "  const name = `shop-${String(i).padStart(3, '0')}`;"
        "  const labels = [i % 2 ? 'refund' : 'delivery', `topic ${i}`];"
        "  tasks.set(name, { ...one, name, labels });"
        "}"
        "document.getElementById('search-row').hidden = false;"
        "filterTasks();"
    )
    assert len(page.options()) == 1000 + len(TASKS)
    page.browser.find_element("tag name", "h1").click()
    page.browser.switch_to.active_element.send_keys("/")  # the key that starts a search
    assert page.browser.switch_to.active_element == page["search"]
    page["search"].send_keys("SHOP-01 refund")
    assert page.options() == [f"shop-01{i}" for i in (1, 3, 5, 7, 9)]
    assert page["found"].text == "5 of 1,006 tasks"
    assert page["task"].get_attribute("value") == "shop-011"
    assert "topic 11" in page["about"].text
    page["search"].send_keys("\n")
    assert page.browser.switch_to.active_element == page["text"]
    page["search"].clear()
    page["search"].send_keys("nothing like it")
    assert page.options() == []
    assert page["found"].text == "0 of 1,006 tasks"


def test_everything_works_by_keyboard(page):
    page["task"].send_keys("colours")
    page["text"].send_keys("a text" + "\ue009" + "\n")  # Ctrl + Enter
    page.wait.until(lambda _: page["answer"].is_displayed())
    assert len(page.bars()) == 3


def test_errors_are_shown_and_disappear(page):
    page.classify("colours", "   ")
    assert page.error() == "Text 1 is empty."
    page["text"].send_keys("better")
    page["go"].click()
    page.wait.until(lambda _: page["answer"].is_displayed())
    assert not page["error"].is_displayed()
    assert "422" in page.browser.get_log("browser")[0]["message"]


def test_screen_readers_get_a_name_for_every_control(page):
    page["many"].click()
    page["curl"].click()
    for element in page.browser.find_elements("css selector", "select, textarea, input, button"):
        assert element.accessible_name or not element.is_displayed()
    assert page.browser.find_element("tag name", "html").get_attribute("lang") == "en"
    assert page["error"].get_attribute("role") == "alert"
    assert page["answer"].get_attribute("aria-live") == "polite"
    assert page["found"].get_attribute("role") == "status"


def test_the_page_follows_the_dark_mode_and_fits_a_phone(page):
    browser = page.browser
    seen = {}
    for mode in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": mode}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        body = browser.find_element("tag name", "body")
        seen[mode] = [body.value_of_css_property(p) for p in ("color", "background-color")]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen["light"] != seen["dark"]
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page["many"].click()
    page.classify("hostile", "x" * 500)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
