"""Writes the tables of settings, in `reference/settings.md` and `guides/serve.md` (`make docs`)."""

from pathlib import Path

from ptune.serving.settings import ServeSettings
from ptune.training.declaration import Setting, settings_of
from ptune.training.settings import SECTIONS, ClassifierSettings, TrainSettings

DOCS = Path(__file__).parent
PAGE, SERVE_PAGE = DOCS / "reference" / "settings.md", DOCS / "guides" / "serve.md"
INTRODUCTION = """# Settings of a training run

Give a setting as an option of the command line, as an argument of `PromptClassifier` or as a field
of `TrainSettings`:

```bash
ptune train --train-file mail.csv --prompt-learning-rate 3e-2 --output-dir runs/mail
```

```python
import ptune

classifier = ptune.PromptClassifier(prompt_learning_rate=3e-2)
settings = ptune.TrainSettings(train_file="mail.csv", prompt_learning_rate=3e-2)
```

An option has the name of its field with hyphens: `prompt_learning_rate` is
`--prompt-learning-rate`. `PromptClassifier` takes the settings with a ✓. `ptune train` also takes
every field of 🤗 `TrainingArguments` as an option, such as `--weight-decay 0.1`.

## Repeat a run

`settings.json` in the run folder holds the value that each setting had in that run, defaults
included. Settings that did not apply are left out. This trains the same adapter again (the same
bytes, on the same machine with the same versions):

```bash
ptune train --config runs/mail/settings.json --output-dir runs/again
```

Options override the file: add `--seed 1` for another seed.
"""


def page() -> str:
    """The content of `settings.md`."""
    settings = settings_of(TrainSettings).values()
    shared = settings_of(ClassifierSettings)
    parts = [INTRODUCTION]
    for section in SECTIONS:
        lines = [
            "| setting | values | default | `PromptClassifier` | |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [row(s, s.name in shared) for s in settings if s.section == section]
        parts.append("\n".join([f"## {section}", "", *lines, ""]))
    return "\n".join(parts)


def row(setting: Setting, shared: bool) -> str:
    """A line of a table."""
    cells = [
        f"`{setting.name}`",
        setting.values,
        setting.shown_default,
        "✓" if shared else "",
        setting.help,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def serve_page() -> str:
    """The content of `serve.md`, with the table of the server's settings."""
    lines = ["| option | values | default | |", "| --- | --- | --- | --- |"]
    for setting in settings_of(ServeSettings).values():
        if setting.section:
            option = f"`--{setting.name.replace('_', '-')}`"
            if setting.envvar:
                option += f" or `{setting.envvar}`"
            cells = [option, setting.values, setting.shown_default, setting.help]
            lines.append("| " + " | ".join(cells) + " |")
    before, rest = SERVE_PAGE.read_text("utf-8").split("<!-- settings -->")
    _, after = rest.split("<!-- /settings -->")
    return "\n".join([f"{before}<!-- settings -->", *lines, f"<!-- /settings -->{after}"])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    SERVE_PAGE.write_text(serve_page(), "utf-8")
