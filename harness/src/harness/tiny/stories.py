# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Stories of word problems: each writes sentences, and beside them the calculations that solve it.

A story takes dice and a sheet. What it draws depends on the dice alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

NAMES = (
    "Alma", "Boris", "Clara", "Dario", "Edith", "Fabio", "Greta", "Hugo", "Irene", "Jonas", "Karin", "Lukas",
    "Marta", "Nils", "Olga", "Pavel", "Rosa", "Stefan", "Tilda", "Viktor",
)  # fmt: skip
THINGS = (
    "plums",
    "stamps",
    "candles",
    "marbles",
    "buttons",
    "lemons",
    "pebbles",
    "badges",
    "tiles",
    "ribbons",
)
HOLDERS = ("jars", "crates", "sacks", "drawers", "trays")
GOODS = ("notebooks", "brushes", "scarves", "lamps", "kites", "mugs", "puzzles", "plants")
VEHICLES = ("bus", "ferry", "tram", "train")
TASKS = (
    ("reads", "pages", "The book has"),
    ("knits", "rows", "The blanket needs"),
    ("paints", "boards", "The fence has"),
    ("plants", "trees", "The orchard needs"),
    ("lays", "bricks", "The wall needs"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
TIMES = {2: "twice", 3: "three times", 4: "four times"}
# So many things can be halved, and something is still left to tell of.
LARGE = 8


class Dice:
    """Seeded draws that are the same in every version of Python.

    Only `Random.random` promises to stay as it is, so everything is made of it.
    """

    def __init__(self, seed: int) -> None:
        """Seed with an integer."""
        self._random = random.Random(seed)  # noqa: S311 - word problems are no secret

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[self.between(0, len(options) - 1)]

    def two(self, options: Sequence[T]) -> tuple[T, T]:
        """Return two different options."""
        first = self.between(0, len(options) - 1)
        second = self.between(0, len(options) - 2)
        return options[first], options[second + (second >= first)]


@dataclass
class Sheet:
    """A problem as it is written.

    Attributes:
        sentences: the question's sentences.
        lines: the calculations, one a line.
    """

    sentences: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def say(self, *sentences: str) -> None:
        """Add sentences to the question."""
        self.sentences += sentences

    def work(self, left: int, sign: str, right: int) -> int:
        """Add a calculation and return its result, which stories draw to be a whole number from 0 on."""
        if sign == "/":
            result, rest = divmod(left, right)
            assert rest == 0, f"{left} / {right} leaves {rest}"
        else:
            result = {"+": left + right, "-": left - right, "*": left * right}[sign]
        assert result >= 0, f"{left} {sign} {right} is negative"
        self.lines.append(f"{left} {sign} {right} = {result}")
        return result


def _stock_opening(dice: Dice, sheet: Sheet, name: str, things: str) -> int:
    match dice.between(0, 3):
        case 0:
            start = dice.between(12, 60)
            sheet.say(f"{name} starts with {start} {things}.")
            return start
        case 1:
            holders, each = dice.between(2, 9), dice.between(3, 9)
            sheet.say(f"{name} owns {holders} {dice.pick(HOLDERS)} holding {each} {things} each.")
            return sheet.work(holders, "*", each)
        case 2:
            (one, other), first, second = dice.two(DAYS), dice.between(6, 30), dice.between(5, 40)
            sheet.say(f"{name} collects {first} {things} on {one} and {second} on {other}.")
        case _:
            (one, other), first, times = dice.two(DAYS), dice.between(3, 20), dice.pick(sorted(TIMES))
            sheet.say(f"{name} collects {first} {things} on {one} and {TIMES[times]} as many on {other}.")
            second = sheet.work(first, "*", times)
    return sheet.work(first, "+", second)


def _stock_event(dice: Dice, sheet: Sheet, things: str, total: int) -> int:
    match dice.between(0, 4):
        case 0:
            more = dice.between(3, 40)
            sheet.say(f"A neighbour brings another {more}.")
            return sheet.work(total, "+", more)
        case 1 if total % 2 == 0 and total >= LARGE:
            sheet.say(f"Half of the {things} get sold.")
            return sheet.work(total, "/", 2)
        case 2:
            holders, each = dice.between(2, 9), dice.between(2, 9)
            sheet.say(f"Another {holders} {dice.pick(HOLDERS)} of {each} arrive.")
            return sheet.work(total, "+", sheet.work(holders, "*", each))
    fewer = dice.between(1, max(1, total - LARGE // 2))
    sheet.say(dice.pick((f"Sadly {fewer} get lost.", f"Then {fewer} go to a cousin.")))
    return sheet.work(total, "-", fewer)


def _stock_ending(dice: Dice, sheet: Sheet, name: str, things: str, total: int) -> int:
    match dice.between(0, 4):
        case 0:
            price = dice.between(2, 5)
            sheet.say(f"The rest sell at ${price} apiece.", f"How many dollars does {name} earn?")
            return sheet.work(total, "*", price)
        case 1:
            wanted = total + dice.between(4, 50)
            sheet.say(f"{name} wants {wanted} {things}.", "How many are still missing?")
            return sheet.work(wanted, "-", total)
        case 2:
            friend = dice.pick([other for other in NAMES if other != name])
            fewer = dice.between(1, total - 1)
            sheet.say(f"{friend} owns {fewer} fewer {things} than {name}.", "How many do both own together?")
            return sheet.work(total, "+", sheet.work(total, "-", fewer))
        case 3 if shares := [share for share in range(2, 10) if total % share == 0]:
            share = dice.pick(shares)
            sheet.say(f"Now {share} children share all {things} equally.", "How many does each child get?")
            return sheet.work(total, "/", share)
    sheet.say(f"How many {things} does {name} have in the end?")
    return total


def stock(dice: Dice, sheet: Sheet) -> int:
    """Someone's things become more and fewer."""
    name, things = dice.pick(NAMES), dice.pick(THINGS)
    total = _stock_opening(dice, sheet, name, things)
    for _ in range(dice.between(1, 2)):
        total = _stock_event(dice, sheet, things, total)
    return _stock_ending(dice, sheet, name, things, total)


def shopping(dice: Dice, sheet: Sheet) -> int:
    """Two kinds of goods, and what is paid for them."""
    name, (first, second) = dice.pick(NAMES), dice.two(GOODS)
    counts, prices = (dice.between(2, 9), dice.between(2, 9)), (dice.between(2, 9), dice.between(2, 9))
    sheet.say(
        f"{name} buys {counts[0]} {first} at ${prices[0]} each and {counts[1]} {second} at ${prices[1]} each."
    )
    one, other = (sheet.work(count, "*", price) for count, price in zip(counts, prices, strict=True))
    ending = dice.between(0, 3)
    if not ending:
        sheet.say("How many dollars lie between the two amounts?")
        return sheet.work(max(one, other), "-", min(one, other))
    paid = sheet.work(one, "+", other)
    match ending:
        case 1:
            note = dice.pick([note for note in (50, 100, 200) if note >= paid])
            sheet.say(f"{name} pays with ${note}.", "How many dollars come back?")
            return sheet.work(note, "-", paid)
        case 2:
            off = dice.between(2, min(9, paid))
            sheet.say(f"A coupon takes ${off} off.", f"How many dollars does {name} pay?")
            return sheet.work(paid, "-", off)
    sheet.say(f"How many dollars does {name} pay?")
    return paid


def ride(dice: Dice, sheet: Sheet) -> int:
    """People get on and off."""
    vehicle, aboard = dice.pick(VEHICLES), dice.between(15, 60)
    sheet.say(f"A {vehicle} leaves with {aboard} people on board.")
    for stop in ("first", "second")[: dice.between(1, 2)]:
        off, on = dice.between(2, aboard - 3), dice.between(2, 30)
        sheet.say(f"At the {stop} stop {off} get off and {on} get on.")
        aboard = sheet.work(sheet.work(aboard, "-", off), "+", on)
    match dice.between(0, 2):
        case 0:
            seats = aboard + dice.between(1, 40)
            sheet.say(f"The {vehicle} has {seats} seats.", "How many seats stay empty?")
            return sheet.work(seats, "-", aboard)
        case 1:
            fare = dice.between(2, 5)
            sheet.say(f"Everyone still on board pays ${fare}.", "How many dollars are paid?")
            return sheet.work(aboard, "*", fare)
    sheet.say(f"How many people ride the {vehicle} now?")
    return aboard


def task(dice: Dice, sheet: Sheet) -> int:
    """Work done at a pace, and what remains of it."""
    name, (verb, units, whole) = dice.pick(NAMES), dice.pick(TASKS)
    pace, days = dice.between(3, 12), dice.between(2, 9)
    sheet.say(f"{name} {verb} {pace} {units} a day for {days} days.")
    done = sheet.work(pace, "*", days)
    if dice.between(0, 1):
        extra = dice.between(2, 30)
        sheet.say(f"On the last evening {name} adds {extra} more.")
        done = sheet.work(done, "+", extra)
    if dice.between(0, 1):
        left = dice.between(3, 60)
        sheet.say(f"{whole} {done + left} {units}.", f"How many {units} remain?")
        return sheet.work(done + left, "-", done)
    later, rate = dice.between(2, 9), dice.between(2, 9)
    need = done + later * rate
    sheet.say(f"{whole} {need} {units}.", f"How many more days does it take at {rate} {units} a day?")
    return sheet.work(sheet.work(need, "-", done), "/", rate)


def ages(dice: Dice, sheet: Sheet) -> int:
    """Three people's ages, each told by another's."""
    first, second = dice.two(NAMES)
    third = dice.pick([name for name in NAMES if name not in {first, second}])
    years, gap = dice.between(6, 24), dice.between(2, 12)
    sheet.say(f"{first} is {years} years old.")
    if dice.between(0, 1) and gap < years:
        sheet.say(f"{second} is {gap} years younger than {first}.")
        other = sheet.work(years, "-", gap)
    else:
        sheet.say(f"{second} is {gap} years older than {first}.")
        other = sheet.work(years, "+", gap)
    times = dice.between(2, 3)
    sheet.say(f"{third} is {TIMES[times]} as old as {second}.")
    oldest = sheet.work(other, "*", times)
    if dice.between(0, 1):
        later = dice.between(2, 9)
        sheet.say(f"How old is {third} in {later} years?")
        return sheet.work(oldest, "+", later)
    sheet.say(f"How old are {first} and {third} together?")
    return sheet.work(oldest, "+", years)


# The stock story varies most, so it comes more often.
STORIES: tuple[Callable[[Dice, Sheet], int], ...] = (stock, stock, stock, shopping, ride, task, ages)
