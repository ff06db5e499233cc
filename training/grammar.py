"""A story grammar: plots in plain text, characters and places from the lexicon.

A plot file holds frames (values that belong together, one frame per story) and beats (what
happens, in order, several wordings each; a "para" begins a paragraph, a "maybe" may be left out).
`{key}` is filled from the story's cast, `{^key}` the
same with a capital, `<name>` from a macro, `[a|b]` is one of both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import lexicon as lx

PLOT_DIR = Path(__file__).parent / "plots"
KEY = re.compile(r"\{(\^?)(\w+)\}")
CHOICE = re.compile(r"\[([^\[\]]*)\]")
MACRO = re.compile(r"<(\w+)>")
ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")
WORD = re.compile(r"[a-z]+")
FIRST_DAYS = ("The next morning", "The next day")
ONCE_SHARE, STANDING_SHARE, SKIP_SHARE, HABIT_SHARE = 0.5, 0.35, 0.65, 0.35

Cast = dict[str, str]


@dataclass
class Plot:
    """One kind of story: frames to choose from and beats to tell."""

    name: str
    frames: list[Cast] = field(default_factory=list)
    beats: list[tuple[str, list[str]]] = field(default_factory=list)


def fields_of(text: str) -> Cast:
    """Read `key=value; key=value`."""
    pairs = (part.split("=", 1) for part in text.split(";"))
    return {key.strip(): value.strip() for key, value in pairs}


@cache
def plots() -> tuple[Plot, ...]:
    """All plots, in the order of their file names."""
    found = []
    for path in sorted(PLOT_DIR.glob("*.txt")):
        plot = Plot(path.stem)
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("frame:"):
                plot.frames.append(fields_of(line.removeprefix("frame:")))
            elif line in ("beat:", "para:", "maybe:"):
                plot.beats.append((line[:-1], []))
            elif line.startswith("- "):
                plot.beats[-1][1].append(line[2:])
            elif line.strip():
                raise ValueError(f"{path}: a line must be a frame, a beat or a wording: {line!r}")
        found.append(plot)
    return tuple(found)


class Teller:
    """Tells one story: casts it from the seed, then words it beat by beat."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.plot = self.rng.choice(plots())
        self.cast: Cast = {}
        self.friend_met = False

    def tell(self) -> str:
        """The whole story; paragraphs are parted by an empty line."""
        frame = self.rng.choice(self.plot.frames)
        self._cast_hero(frame)
        self._cast_friend(frame)
        self._cast_place()
        self._derive(frame)
        parts = [self._say(self._opening())]
        for role, wordings in self.plot.beats:
            if role == "maybe" and self.rng.random() < SKIP_SHARE:
                continue
            parts += ["\n\n" if role == "para" else " ", self._say(self.rng.choice(wordings))]
        return "".join(parts)

    def cast_of_story(self) -> Cast:
        """Tell the story and return who and what was in it."""
        self.tell()
        return dict(self.cast)

    def _character(self, child: bool, not_in: str) -> tuple[str, str, str]:
        pronoun = self.rng.choice(("she", "he"))
        girl = pronoun == "she"
        if child:
            return (
                self.rng.choice(lx.GIRLS if girl else lx.BOYS),
                "girl" if girl else "boy",
                pronoun,
            )
        kinds = [kind for kind in lx.ANIMALS if kind not in not_in]
        names = lx.PET_GIRLS if girl else lx.PET_BOYS
        return self.rng.choice(names), self.rng.choice(kinds), pronoun

    def _cast_hero(self, frame: Cast) -> None:
        self.child = self.rng.random() < 0.6
        name, kind, pronoun = self._character(self.child, " ".join(frame.values()))
        self.cast |= {"H": name, "kind": kind, "hadj": self.rng.choice(lx.TRAITS)}
        self.cast |= lx.PRONOUNS[pronoun]
        self.cast |= {"hand": "hand", "hands": "hands"} if self.child else {
            "hand": "paw", "hands": "paws"}  # fmt: skip

    def _cast_friend(self, frame: Cast) -> None:
        child = self.child and self.rng.random() < 0.75
        taken = " ".join(frame.values()) + " " + self.cast["kind"]
        name = self.cast["H"]
        while name == self.cast["H"]:
            name, kind, pronoun = self._character(child, taken)
        self.cast |= {"F": name, "fkind": kind, "fadj": self.rng.choice(lx.FRIEND_TRAITS)}
        self.cast |= {"f" + key: value for key, value in lx.PRONOUNS[pronoun].items()}
        tail = "" if child else f" the {kind}"
        self.friend = f"{self.rng.choice(lx.FRIENDS)} {name}{tail}"

    def _cast_place(self) -> None:
        homes, elders = (
            (lx.CHILD_HOMES, lx.CHILD_ELDERS) if self.child else (lx.ANIMAL_HOMES, lx.ANIMAL_ELDERS)
        )
        self.cast |= fields_of(self.rng.choice(homes))
        elder, pronoun = self.rng.choice(elders)
        self.cast["E"] = elder
        self.cast |= {"e" + key: value for key, value in lx.PRONOUNS[pronoun].items()}
        self.cast["sky"], self.cast["skyline"] = self.rng.choice(lx.SKIES)

    def _derive(self, frame: Cast) -> None:
        self.cast |= frame
        for key, value in frame.items():
            self.cast[key] = self._fill(value)
        for key in frame:
            self.cast[key + "2"] = self.cast.get(
                key + "2", re.sub(r"^(a|an|some) ", "the ", self.cast[key])
            )

    def _opening(self) -> str:
        draw = self.rng.random()
        kind = "once" if draw < ONCE_SHARE else "standing"
        if draw >= ONCE_SHARE + STANDING_SHARE:
            kind = "day"
        day = self.rng.choice(FIRST_DAYS if kind == "day" else lx.DAYS)
        self.cast["Day"] = self._fill(day)
        self.cast["day"] = self.cast["Day"][0].lower() + self.cast["Day"][1:]
        opening = self.rng.choice(lx.OPENINGS[kind])
        if kind != "day" and self.rng.random() < HABIT_SHARE:
            opening += " " + self.rng.choice(lx.HABITS)
        return opening

    def _value(self, key: str) -> str:
        if key != "Fold":
            return self.cast[key]
        first, self.friend_met = not self.friend_met, True
        return self._fill(self.friend) if first else self.cast["F"]

    def _fill(self, text: str) -> str:
        def put(match: re.Match[str]) -> str:
            value = self._value(match[2])
            return value[:1].upper() + value[1:] if match[1] else value

        while KEY.search(text):
            text = KEY.sub(put, text)
        return text

    def _say(self, text: str) -> str:
        text = CHOICE.sub(lambda m: self.rng.choice(m[1].split("|")), text)
        text = MACRO.sub(lambda m: self.rng.choice(lx.MACROS[m[1]]), text)
        return ARTICLE.sub(r"\1n ", self._fill(text))


def story(seed: int) -> str:
    """The story of this seed; equal seeds tell equal stories."""
    return Teller(seed).tell()


def _sources() -> Iterator[str]:
    for plot in plots():
        for frame in plot.frames:
            yield from frame.values()
        for _, wordings in plot.beats:
            yield from wordings
    for words in (lx.GIRLS, lx.BOYS, lx.PET_GIRLS, lx.PET_BOYS, lx.ANIMALS, lx.TRAITS):
        yield from words
    yield from (*lx.FRIEND_TRAITS, *FIRST_DAYS, *lx.DAYS, *lx.FRIENDS, *lx.HABITS)
    for home in (*lx.CHILD_HOMES, *lx.ANIMAL_HOMES):
        yield from fields_of(home).values()
    for pair in (*lx.CHILD_ELDERS, *lx.ANIMAL_ELDERS, *lx.SKIES):
        yield from pair
    for choices in (*lx.OPENINGS.values(), *lx.MACROS.values()):
        yield from choices
    for forms in lx.PRONOUNS.values():
        yield from forms.values()
    yield "an the girl boy hand hands paw paws"


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return WORD.findall(text.lower())


@cache
def lexicon() -> frozenset[str]:
    """Every word that a story can hold, in small letters."""
    return frozenset(word for text in _sources() for word in words_of(KEY.sub(" ", text)))
