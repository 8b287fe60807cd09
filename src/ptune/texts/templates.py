"""Templates: the words around each text, and the places of a prompt among them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptune.errors import PtuneError

_PLACES = re.compile(r"\{(text|text_pair|mask|prompt(?::[1-9]\d*)?|soft:[^{}]*)\}")
# A place of a prompt, and the space before it; and one with a number of virtual tokens.
_PROMPT_PLACE = re.compile(r"( ?)\{(?:prompt(?::([1-9]\d*))?|soft:([^{}]*))\}")
_NUMBERED = re.compile(r" ?\{prompt:([1-9]\d*)\}")
_PROMPT = "{prompt}"
_CHAT = "chat:"
# The id of a virtual token among those of a text, which no word has.
VIRTUAL = -1


class Placed(NamedTuple):
    """A template in which every place of a prompt has a number of virtual tokens.

    Attributes:
        template: The template.
        words: For each virtual token the token that it starts as; ``None``: any.
    """

    template: Template
    words: list[int | None]


@dataclass(frozen=True)
class Template:
    """The words around a text, such as ``{soft:Review:} {text} Sentiment:``.

    | place | becomes |
    | --- | --- |
    | `{text}` | the text |
    | `{text_pair}` | the second text of a pair |
    | `{mask}` | the gap that a masked language model fills; the head reads there |
    | `{soft:words}` | these words; a trained prompt starts as them and replaces them |
    | `{prompt:5}` | five virtual tokens of an input prompt |
    | `{prompt}` | an equal share of an input prompt's other virtual tokens |

    An input prompt may have any number of places (arXiv 2103.10385). A deep prompt has one, at the
    start: soft words; or `{prompt}`, in place of the special tokens before a text. A reader has
    one, at the end: soft words.

    After ``chat:``, the rest is what a user says, in the format that the model was tuned on.

    Args:
        pattern: Words and places.

    Raises:
        PtuneError: `{text}` is missing, or a place is unknown or occurs twice.

    Example:
        >>> Template("Review: {text} Sentiment:").fill([["fine"]])
        ['Review: fine Sentiment:']
    """

    pattern: str

    def __post_init__(self) -> None:
        body = self.pattern.removeprefix(_CHAT)
        places = _PLACES.findall(body)
        if rest := re.search(r"\{[^{}]*\}?", _PLACES.sub("", body)):
            raise PtuneError(
                f"The template has the place {rest[0]!r}; expected {{text}}, {{text_pair}}, "
                "{mask}, {prompt}, {prompt:5} or {soft:words}."
            )
        for name in ("text", "text_pair", "mask"):
            if (found := places.count(name)) != 1 and (name == "text" or found):
                raise PtuneError(
                    f"The template {self.pattern!r} has {{{name}}} {found} times; expected once."
                )

    @property
    def chats(self) -> bool:
        """Whether the model is asked in its chat format."""
        return self.pattern.startswith(_CHAT)

    @property
    def takes_pairs(self) -> bool:
        """Whether it has a place for a second text."""
        return "{text_pair}" in self.pattern

    @property
    def has_mask(self) -> bool:
        """Whether the head reads at the mask token."""
        return "{mask}" in self.pattern

    @property
    def is_spaced(self) -> bool:
        """Whether a space comes before the word that it asks for."""
        if self.has_mask:
            return self.pattern.partition("{mask}")[0].endswith(" ")
        end = self.soft_words if self.soft_at_end else self.pattern
        return not (self.chats or end.endswith((" ", "\n")))

    @property
    def soft_words(self) -> str:
        """The words that a trained prompt replaces; empty: there are none."""
        return self._soft[1]

    @property
    def soft_at_end(self) -> bool:
        """Whether these words come after the text, where a reader is."""
        return self._soft[0]

    @property
    def _soft(self) -> tuple[bool, str]:
        at_start = re.match(r"\{soft:([^{}]*)\}", self.pattern)
        at_end = re.search(r"\{soft:([^{}]*)\}$", self.pattern)
        if found := at_start or (None if self.chats else at_end):
            return not at_start, found[1]
        return False, ""

    @property
    def replaces_special(self) -> bool:
        """Whether a prompt replaces the special tokens before a text, such as Llama's BOS."""
        return self.pattern.startswith(_PROMPT)

    def without_soft_words(self, *, replaces_special: bool = False) -> Template:
        """The template that remains where a prompt replaces the soft words.

        Args:
            replaces_special: Whether it also replaces the special tokens before them.
        """
        if not (words := self.soft_words):
            return self
        place = f"{{soft:{words}}}"
        rest = self.pattern.removesuffix(place) if self.soft_at_end else self.pattern[len(place) :]
        return Template(_PROMPT + rest if replaces_special else rest)

    @property
    def prompt_places(self) -> list[str]:
        """The places of a prompt, as they are written."""
        return [found[0].lstrip() for found in _PROMPT_PLACE.finditer(self.pattern)]

    def without_prompt(self) -> Template:
        """The template without places for virtual tokens; soft words stay as words."""
        return Template(re.sub(r"^\{prompt(:\d+)?\} ?| ?\{prompt(:\d+)?\}", "", self.pattern))

    def placed(self, tokenizer: Any, k: int | None) -> Placed:
        """Divide a prompt among its places.

        Args:
            tokenizer: The backbone's.
            k: Number of virtual tokens. Places without a number or words share what the others
                leave. ``None``: the sum of the numbers and words of all places.

        Raises:
            PtuneError: There are too few for these places, or others than the places name.
        """
        found = list(_PROMPT_PLACE.finditer(self.pattern))
        own: list[list[int | None] | None] = []
        for space, number, words in (place.groups() for place in found):
            if words is None:
                own.append([None] * int(number) if number else None)
            else:
                said = words if not own and found[0].start() == 0 else space + words
                ids = tokenizer(said, add_special_tokens=False)["input_ids"]
                if not ids:
                    raise PtuneError(
                        f"The template {self.pattern!r} has {{soft:{words}}}, which has no tokens. "
                        "Name words there, or use {prompt}."
                    )
                own.append(ids)
        shared, named = own.count(None), sum(map(len, filter(None, own)))
        k = named if k is None else k
        rest = k - named
        if rest < shared or (rest and not shared):
            raise PtuneError(
                f"The template {self.pattern!r} has places for {named} virtual tokens"
                + (f" and {shared} more of any size" if shared else "")
                + f", and the prompt has {k}. Set num_virtual_tokens (--num-virtual-tokens) to "
                + (f"at least {named + shared}." if shared else f"{named}, or leave it out.")
            )
        sizes = iter(rest // shared + (i < rest % shared) for i in range(shared))
        each = [[None] * next(sizes) if place is None else place for place in own]
        numbers = iter(map(len, each))
        pattern = _PROMPT_PLACE.sub(lambda m: f"{m[1]}{{prompt:{next(numbers)}}}", self.pattern)
        return Placed(Template(pattern), [word for place in each for word in place])

    def fill(
        self, columns: Sequence[Sequence[str]], mask: str = "[MASK]", mark: str = ""
    ) -> list[str]:
        """The template with each text, or pair of texts, in its places.

        Args:
            columns: One column of texts; or two, the first texts and the second texts.
            mask: The tokenizer's mask token. A template with a mask removes it from the texts.
            mark: What is written where a place has a number of virtual tokens.

        Raises:
            PtuneError: The template is for pairs and the texts are not, or the other way round.
        """
        if (len(columns) == 2) != self.takes_pairs:
            places, found = ("{text} and {text_pair}", "single texts")
            if not self.takes_pairs:
                places, found = ("{text} alone", "pairs")
            raise PtuneError(f"The template {self.pattern!r} has {places}, but these are {found}.")
        named = dict(zip(("text", "text_pair"), columns, strict=False))

        def one(i: int) -> str:
            def place(found: re.Match[str]) -> str:
                name = found[1]
                if name in ("prompt", "mask"):
                    return mask if name == "mask" else ""
                if name.startswith("prompt:"):
                    return mark
                if name.startswith("soft:"):
                    return name[len("soft:") :]
                return named[name][i].replace(mask, " ") if self.has_mask else named[name][i]

            return _PLACES.sub(place, body)

        body = _NUMBERED.sub(r"{prompt:\1}", self.pattern.removeprefix(_CHAT))
        return [one(i) for i in range(len(columns[0]))]

    def encode(
        self, tokenizer: Any, columns: Sequence[Sequence[str]], limit: int | None
    ) -> tuple[dict[str, list[list[int]]], list[int]]:
        """Token ids of the filled template. Too long texts are cut, never the template.

        Args:
            tokenizer: The backbone's; the caller holds its lock.
            columns: As for `fill`.
            limit: The largest number of tokens of a text with the template.

        Returns:
            `input_ids` and so on, and the positions of the texts that were cut.

        Raises:
            PtuneError: The template alone has too many tokens.
        """
        encoded = self._tokens(tokenizer, columns)
        ids, cut = encoded["input_ids"], []
        for i in range(len(ids)):
            if limit is None or len(ids[i]) <= limit:
                continue
            parts = [column[i] for column in columns]
            cut.append(i)
            while True:
                short = self._tokens(tokenizer, [[part] for part in parts])
                if (excess := len(short["input_ids"][0]) - limit) <= 0:
                    break
                longest = max(range(len(parts)), key=lambda j: len(parts[j]))
                if not parts[longest]:
                    raise PtuneError(
                        f"The template {self.pattern!r} alone has {limit + excess} tokens, and "
                        f"only {limit} fit. Shorten it, or raise max_length."
                    )
                parts[longest] = _shortened(tokenizer, parts[longest], excess)
            for key, values in short.items():
                encoded[key][i] = values[0]
        return encoded, cut

    def _tokens(self, tokenizer: Any, columns: Sequence[Sequence[str]]) -> dict[str, Any]:
        numbers = [int(number) for number in _NUMBERED.findall(self.pattern)]
        mark = _unused(columns) if numbers else ""
        filled = self.fill(columns, tokenizer.mask_token if self.has_mask else "", mark)
        if self.chats:
            if not getattr(tokenizer, "chat_template", None):
                raise PtuneError(
                    f"The template {self.pattern!r} needs a chat format, and this tokenizer has "
                    "none. Leave out 'chat:'."
                )
            filled = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                )
                for text in filled
            ]
        how = {"add_special_tokens": not self.chats, "verbose": False}
        if numbers:
            return _with_virtual_tokens(tokenizer, [f.split(mark) for f in filled], numbers, how)
        encoded = dict(tokenizer(filled, **how))
        if self.replaces_special and (n := len(special_before(tokenizer))):
            return {key: [row[n:] for row in rows] for key, rows in encoded.items()}
        return encoded


def _unused(columns: Sequence[Sequence[str]]) -> str:
    """A character for private use that no text has."""
    used = set().union(*(text for column in columns for text in column))
    return next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)


def _with_virtual_tokens(
    tokenizer: Any, parts: list[list[str]], numbers: list[int], how: dict[str, Any]
) -> dict[str, Any]:
    """Tokens of texts in parts, with a number of virtual tokens between each two parts."""
    texts = ["".join(own) for own in parts]
    encoded = with_places(tokenizer, texts, "a template without {prompt}", **how)
    ends = [[end for _, end in row] for row in encoded.pop("offset_mapping")]
    for i, own in enumerate(parts):
        last = max((n for n, end in enumerate(ends[i]) if end), default=0) + 1
        lengths = itertools.accumulate(map(len, own[:-1]))
        # From the end, so that places keep their numbers.
        for place, number in reversed(list(zip(lengths, numbers, strict=True))):
            at = next((n for n, end in enumerate(ends[i]) if end > place), last)
            for name, values in encoded.items():
                new = {"input_ids": VIRTUAL, "attention_mask": 1}.get(name, 0)
                values[i][at:at] = [new] * number
    return encoded


def with_places(tokenizer: Any, texts: Sequence[str], otherwise: str, **how: Any) -> dict[str, Any]:
    """What a tokenizer returns, with where each token is in its text as `offset_mapping`.

    Args:
        tokenizer: The backbone's; the caller holds its lock.
        texts: The texts.
        otherwise: What to use with a tokenizer that cannot tell, for the message.
        **how: For the tokenizer.

    Raises:
        PtuneError: The tokenizer is a slow one.
    """
    if not tokenizer.is_fast:
        raise PtuneError(
            f"The backbone's tokenizer, {type(tokenizer).__name__}, is written in Python and does "
            "not tell where its tokens are in a text. Use a backbone that comes with a "
            f"tokenizer.json, or {otherwise}."
        )
    return dict(tokenizer(list(texts), return_offsets_mapping=True, **how))


def special_before(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before a text, such as BOS."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(bare)] == bare), [])


def _shortened(tokenizer: Any, text: str, excess: int) -> str:
    """A text without its last tokens, on the side on which the tokenizer cuts."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    # In characters: a token's own characters are not known to every tokenizer.
    keep = min(len(text) - 1, len(text) * max(0, len(ids) - excess) // max(1, len(ids)))
    return text[len(text) - keep :] if tokenizer.truncation_side == "left" else text[:keep]
