"""Two databases for `sql`, made by script: their contents, the questions about them, and what a
colleague says about each name that cannot be guessed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """One thing that a query must get right; `needs` are the SQL words that show it."""

    says: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Filter:
    """A condition in words and in SQL, with the values that {0} can take in both."""

    words: str
    sql: str
    values: tuple[tuple[Any, Any], ...]
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Thing:
    """What questions are about: the rows of a table that satisfy the condition `where`."""

    noun: str
    table: str
    name: str
    where: str
    facts: tuple[str, ...]
    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class Database:
    """Tables (CREATE statement and rows), facts by name, and what is asked about."""

    tables: tuple[tuple[str, list[tuple[Any, ...]]], ...]
    facts: dict[str, Fact]
    things: tuple[Thing, ...]

    def manual(self) -> list[str]:
        """Return a paragraph about each thing: everything that a colleague would say about it."""
        found = []
        for thing in self.things:
            names = dict.fromkeys((*thing.facts, *(n for f in thing.filters for n in f.facts)))
            said = " ".join(self.facts[name].says for name in names)
            found.append(f"{thing.noun.capitalize()}. {said}")
        return found


def _same(*values: Any) -> tuple[tuple[Any, Any], ...]:
    return tuple((value, value) for value in values)


def _months(*months: int) -> tuple[tuple[str, str], ...]:
    names = ("January", "February", "March", "April", "May", "June")
    return tuple((names[m - 1], f"20260{m}01 and 20260{m}31") for m in months)


def _day(draw: random.Random) -> int:
    return 20260000 + draw.randint(1, 6) * 100 + draw.randint(1, 28)


# why: a database is data, read from top to bottom
def shop() -> Database:
    """A shop with German names, prices in cents, dates as numbers, letters for a status."""
    draw = random.Random("shop")
    pick, roll = draw.choice, draw.randint
    groups, towns = ("tea", "tools", "toys", "lamps"), ("Bonn", "Kiel", "Ulm", "Jena")
    wares = [
        (
            *(i, f"{pick('ABCDEFGH')}-{i}", roll(3, 90) * 100 + 99),
            *(pick(groups), roll(0, 60), int(draw.random() < 0.25)),
        )
        for i in range(1, 61)
    ]
    buyers = [
        (i, f"Customer {i}", pick(towns), (2018 + roll(0, 7)) * 10000 + 615) for i in range(1, 41)
    ]
    orders = [
        (i, roll(1, 40), roll(1, 60), roll(1, 9), _day(draw), pick("OVVS")) for i in range(1, 201)
    ]
    facts = {
        "ware": Fact("Products are in table ware, their names in column bez.", ("ware",)),
        "weg": Fact("Products that are gone have weg = 1: count only weg = 0.", ("weg",)),
        "preis": Fact("Prices are in cents, in column preis_ct of table ware.", ("preis_ct",)),
        "gruppe": Fact("A product's category is in column gruppe.", ("gruppe",)),
        "bestand": Fact("The stock of a product is in column bestand.", ("bestand",)),
        "kunde": Fact("Customers are in table kunde, their names in column name.", ("kunde",)),
        "ort": Fact("A customer's town is in column ort of table kunde.", ("ort",)),
        "seit": Fact("Customers joined on seit, a number such as 20210615.", ("seit",)),
        "auftrag": Fact("Orders are in table auftrag, their numbers in auf_nr.", ("auftrag",)),
        "st": Fact("An order's status is in st: O is open, V shipped, S cancelled.", ("st",)),
        "tag": Fact(
            "An order's day is in tag: January is BETWEEN 20260101 AND 20260131.", ("tag",)
        ),
        "menge": Fact("The quantity of an order is in column menge.", ("menge",)),
        "kd": Fact("Column kd of auftrag is the kd_nr of the customer in kunde.", ("kd_nr",)),
    }
    of_town = "kd IN (SELECT kd_nr FROM kunde WHERE ort = '{0}')"
    things = (
        Thing("products", "ware", "bez", "weg = 0", ("ware", "weg"), (
            Filter("cost more than {0} euros", "preis_ct > {0} * 100", _same(20, 50), ("preis",)),
            Filter("are in category {0}", "gruppe = '{0}'", _same(*groups), ("gruppe",)),
            Filter("have a stock below {0}", "bestand < {0}", _same(10, 30), ("bestand",)),
        )),
        Thing("customers", "kunde", "name", "1", ("kunde",), (
            Filter("live in {0}", "ort = '{0}'", _same(*towns), ("ort",)),
            Filter("joined before {0}", "seit < {0}0000", _same(2020, 2023), ("seit",)),
        )),
        Thing("orders", "auftrag", "auf_nr", "1", ("auftrag",), (
            Filter("are {0}", "st = '{0}'",
                   (("open", "O"), ("shipped", "V"), ("cancelled", "S")), ("st",)),
            Filter("are from {0} 2026", "tag BETWEEN {0}", _months(2, 5), ("tag",)),
            Filter("have a quantity above {0}", "menge > {0}", _same(3, 6), ("menge",)),
            Filter("are of customers in {0}", of_town, _same(*towns[:2]), ("kd", "kunde", "ort")),
        )),
    )  # fmt: skip
    return Database(
        (
            ("ware (ware_id, bez, preis_ct, gruppe, bestand, weg)", wares),
            ("kunde (kd_nr, name, ort, seit)", buyers),
            ("auftrag (auf_nr, kd, ware, menge, tag, st)", orders),
        ),
        facts,
        things,
    )


# why: as above
def clinic() -> Database:
    """A clinic with Dutch names: another database, which shares no name with the shop."""
    draw = random.Random("clinic")
    pick, roll = draw.choice, draw.randint
    fields, places = ("eyes", "skin", "heart"), ("Delft", "Gouda", "Breda")
    doctors = [
        (i, f"Doctor {i}", pick(fields), roll(40, 160) * 100, int(draw.random() < 0.25))
        for i in range(1, 31)
    ]
    patients = [
        (i, f"Patient {i}", pick(places), (1940 + roll(0, 70)) * 10000 + 101) for i in range(1, 61)
    ]
    visits = [
        (i, roll(1, 60), roll(1, 30), _day(draw), roll(1, 9) * 10, pick("GKKN"))
        for i in range(1, 201)
    ]
    facts = {
        "arts": Fact("Doctors are in table arts, their names in column anm.", ("arts",)),
        "uit": Fact("Doctors who have left have uit = 1: count only uit = 0.", ("uit",)),
        "vak": Fact("A doctor's field is in column vak.", ("vak",)),
        "tarief": Fact("A doctor's fee is in cents, in column tarief_c.", ("tarief_c",)),
        "pat": Fact("Patients are in table pat, their names in column pnm.", ("pat",)),
        "wpl": Fact("A patient's town is in column wpl of table pat.", ("wpl",)),
        "geb": Fact("A patient's birthday is in geb, a number such as 19700101.", ("geb",)),
        "afsp": Fact("Visits are in table afsp, their numbers in column vnr.", ("afsp",)),
        "fase": Fact("A visit's state is in fase: G is planned, K done, N missed.", ("fase",)),
        "dat": Fact("A visit's day is in dat: June is BETWEEN 20260601 AND 20260631.", ("dat",)),
        "duur": Fact("The minutes of a visit are in column duur.", ("duur",)),
        "p": Fact("Column p of afsp is the pnr of the patient in pat.", ("pnr",)),
    }
    of_town = "p IN (SELECT pnr FROM pat WHERE wpl = '{0}')"
    things = (
        Thing("doctors", "arts", "anm", "uit = 0", ("arts", "uit"), (
            Filter("work in the field {0}", "vak = '{0}'", _same(*fields), ("vak",)),
            Filter("charge more than {0} euros", "tarief_c > {0} * 100", _same(70, 90, 120),
                   ("tarief",)),
        )),
        Thing("patients", "pat", "pnm", "1", ("pat",), (
            Filter("live in {0}", "wpl = '{0}'", _same(*places), ("wpl",)),
            Filter("were born before {0}", "geb < {0}0000", _same(1960, 1980), ("geb",)),
        )),
        Thing("visits", "afsp", "vnr", "1", ("afsp",), (
            Filter("are {0}", "fase = '{0}'",
                   (("planned", "G"), ("done", "K"), ("missed", "N")), ("fase",)),
            Filter("are from {0} 2026", "dat BETWEEN {0}", _months(1, 4), ("dat",)),
            Filter("take longer than {0} minutes", "duur > {0}", _same(30, 60), ("duur",)),
            Filter("are of patients in {0}", of_town, _same(*places[:2]), ("p", "pat", "wpl")),
        )),
    )  # fmt: skip
    return Database(
        (
            ("arts (anr, anm, vak, tarief_c, uit)", doctors),
            ("pat (pnr, pnm, wpl, geb)", patients),
            ("afsp (vnr, p, a, dat, duur, fase)", visits),
        ),
        facts,
        things,
    )
