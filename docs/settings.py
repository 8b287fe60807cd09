"""Writes `settings.md` from the declarations in `ptune.training.settings` (`make docs`)."""

from pathlib import Path

from ptune.training.declaration import Setting, settings_of
from ptune.training.settings import SECTIONS, ClassifierSettings, TrainSettings

PAGE = Path(__file__).with_suffix(".md")
INTRODUCTION = """# Settings of a training run

Give a setting as an option of the command line, as an argument of `PromptClassifier` or as a field
of `TrainSettings`:

```bash
ptune train --train-file mail.csv --prompt-learning-rate 3e-2 --output-dir runs/mail
```

```python
ptune.PromptClassifier(prompt_learning_rate=3e-2).fit(texts, labels)
ptune.train_run(ptune.TrainSettings(train_file="mail.csv", prompt_learning_rate=3e-2), "runs/mail")
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


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
