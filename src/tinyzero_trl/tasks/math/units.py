"""Units of an answer: removes them, and compares them if both sides have a known one."""

from __future__ import annotations

import re

_UNITS = """
mm millimeter millimeters millimetre millimetres; cm centimeter centimeters centimetre centimetres; m meter meters metre metres
km kilometer kilometers kilometre kilometres; dm decimeter decimeters; nm nanometer nanometers; micron microns micrometer micrometers
in inch inches; ft foot feet; yd yard yards; mi mile miles; furlong furlongs; league leagues; fathom fathoms; hand hands; au
parsec parsecs pc; lightyear lightyears ly; angstrom angstroms
s sec second seconds; min minute minutes; h hr hrs hour hours; day days; week weeks; fortnight fortnights; month months; year years yr yrs
ms millisecond milliseconds; microsecond microseconds; nanosecond nanoseconds; decade decades; century centuries; a.m. am a.m; p.m. pm p.m
g gram grams; kg kilogram kilograms kilo kilos; mg milligram milligrams; microgram micrograms; t tonne tonnes; ton tons; lb lbs pound pounds
oz ounce ounces; stone stones; carat carats; mol mole moles
l liter liters litre litres; ml milliliter milliliters millilitre millilitres; cl centiliter centiliters; dl deciliter deciliters
gal gallon gallons; quart quarts qt; pint pints pt; cup cups; teaspoon teaspoons tsp; tablespoon tablespoons tbsp; barrel barrels; bushel bushels
acre acres; hectare hectares ha; mph; knot knots; kph kmh; rpm
n newton newtons; kn kilonewton kilonewtons; dyne dynes; j joule joules; kj kilojoule kilojoules; cal calorie calories; kcal kilocalorie kilocalories
ev electronvolt electronvolts; kwh; btu; w watt watts; kw kilowatt kilowatts; mw megawatt megawatts; hp horsepower
v volt volts; mv millivolt millivolts; kv kilovolt kilovolts; amp amps ampere amperes; ma milliamp milliamps; ohm ohms; farad farads; henry henrys henries
tesla teslas; weber webers; coulomb coulombs; hz hertz; khz kilohertz; mhz megahertz; ghz gigahertz
pa pascal pascals; kpa kilopascal kilopascals; bar bars; atm atmosphere atmospheres; psi; torr; mmhg; nauticalmile nauticalmiles; fluidounce fluidounces
lumen lumens; lux; candela candelas; becquerel becquerels; sievert sieverts; decibel decibels db
bit bits; byte bytes; kb kilobyte kilobytes; mb megabyte megabytes; gb gigabyte gigabytes; tb terabyte terabytes; kbit kilobit kilobits; mbit megabit megabits
deg degree degrees; rad radian radians; grad gradian gradians; arcminute arcminutes; arcsecond arcseconds; revolution revolutions
degc celsius; degf fahrenheit; degk kelvin kelvins k
dollar dollars usd; cent cents; euro euros eur; yen jpy; rupee rupees inr; yuan; peso pesos; franc francs; ruble rubles
penny pennies; nickel nickels; dime dimes; quarter quarters
"""
"""The spellings of each unit; the first is its name."""
UNITS = {unit: names.split()[0] for names in re.split("[;\n]", _UNITS.strip()) for unit in names.split()}
"""Name of a unit by spelling. Two different names are never the same answer; other words are ignored."""

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
"""Words after a number that multiply it."""

_UNIT = re.compile(r"(?<=[0-9a-zA-Z})])\s*\\text\s*\{([^{}]*)\}((?:\s*\^\s*\{?[0-9]\}?)?)\s*\.?\s*$")
_PLAIN_UNIT = re.compile(
    r"^(\$?-?[0-9][0-9.,/:]*)\s+([a-zA-Z][a-zA-Z]+(?:[ /][a-zA-Z]+){0,4}|[a-zA-Z]{1,3}/[a-zA-Z]{1,4}|[ap]\.m)((?:\^\{?[0-9]\}?)?)\s*\.?$"
)
_CLOSE_UNIT = re.compile(r"^(-?[0-9][0-9.]*)([a-zA-Z]{2,12}|[a-zA-Z]{1,3}/[a-zA-Z]{1,4})((?:\^\{?[0-9]\}?)?)$")
_CHANGES = re.compile(
    r"\b(?:is|are|was|were|be|not|no|or|and|nor|more|less|fewer|greater|least|most|impossible|wrong|incorrect|approximately|about|minus|plus|times|"
    r"squared|cubed|over|under|divided|half|halves|thirds?|fourths?|fifths?|quarters? of|times|twice|if|but|except|mod|modulo|base|factorial|to|through|than|"
    r"remainder|off|too|million|billion|thousand|hundred|dozen|trillion|percent|root|power|maybe|perhaps|possibly|negative|short|choose|unless|when|where|for|"
    r"below|above|tenths?|hundredths?|thousandths?|sixths?|sevenths?|eighths?|ninths?|millionths?|billionths?|elevenths?|twelfths?|[a-z]+teenths?|twentieths?|fails?|works?|does|do|did|has|have|had|can|could|should|would|will|"
    r"may|might|beyond|excluded|modulus|quarters?|degrees? off|to the)\b|n['’]t\b",
    re.IGNORECASE,
)
"""Words after a number that are not units: they change the number or take it back."""
_CLOSE = frozenset(
    [
        "mm",
        "cm",
        "km",
        "m/s",
        "km/h",
        "in",
        "ft",
        "yd",
        "mi",
        "kg",
        "lb",
        "lbs",
        "oz",
        "mg",
        "ml",
        "gal",
        "mph",
        "kph",
        "hz",
        "kw",
        "min",
        "hr",
        "hrs",
        "sec",
        "am",
        "pm",
        "nm",
        "ha",
        "rad",
        "deg",
        "cal",
        "amp",
        "pa",
        "ms",
    ]
)
"""Units that may follow a number without a blank; `5pt` would be a product."""
_TWO_WORDS = re.compile(r"\b(light|nautical|fluid)[ -](?=years?\b|miles?\b|ounces?\b)", re.IGNORECASE)
_MONEY = frozenset(("dollar", "cent", "euro", "yen", "rupee", "lb"))
_SCALED = re.compile(
    r"^(-?\$?[0-9][0-9.,]*)\s*(?:\\text\s*\{)?\s*(hundred|thousand|million|billion|trillion|dozen)s?(?![a-zA-Z])\s*([^{}]*?)\}?\s*$",
    re.IGNORECASE,
)
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def scaled(text: str) -> str:
    r"""`text` with a word such as "million" multiplied out if it begins with a number and that word.

    >>> scaled(r"31\text{ million}"), scaled("2.5 thousand dollars"), scaled("31 knots")
    ('31*10^{6}', '2.5*10^{3}\\text{ dollars}', '31 knots')
    """
    if not (found := _SCALED.match(text)):
        return text
    factor = SCALES[found[2].lower()]
    number = found[1].replace("$", "")
    rest = rf"\text{{ {found[3]}}}" if found[3] else ""
    if factor == 12:
        return f"{int(number) * 12}{rest}" if number.lstrip("-").isdigit() and len(number) < 20 else text
    return f"{number.replace(',', '')}*10^{{{len(str(factor)) - 1}}}{rest}"


def without_unit(text: str) -> tuple[str, str]:
    r"""(`text` without the unit at its end, the name of the unit if all its words are in `UNITS`, else "").

    `\text{...}` and words after a blank are units unless a word among them changes the number ("or more"); directly after a number,
    only those of `UNITS` with two letters or more are.

    >>> without_unit(r"5 \text{ centimeters}"), without_unit("60 apples"), without_unit("5cm"), without_unit("5m")
    (('5', 'cm'), ('60', ''), ('5', 'cm'), ('5m', ''))
    >>> without_unit(r"8 \text{ square feet}"), without_unit("12 m/s^2"), without_unit(r"31\text{ is impossible}")
    (('8', 'ft^2'), ('12', 'm/s^2'), ('31\\text{ is impossible}', ''))
    """
    if found := _UNIT.search(text):
        rest, unit, power = text[: found.start()], found[1], found[2]
    elif (found := _PLAIN_UNIT.match(text)) or ((found := _CLOSE_UNIT.match(text)) and found[2].lower() in _CLOSE):
        rest, unit, power = found[1], found[2], found[3]
    else:
        return text, ""
    if _CHANGES.search(unit):
        return text, ""
    return rest, _known(unit, power)


def _known(unit: str, power: str) -> str:
    """The name of a unit, the same for all its spellings; "" if a word of it is not known."""
    words = re.sub(r"\bper\b", "/", _TWO_WORDS.sub(r"\1", unit.strip().rstrip(".")), flags=re.IGNORECASE)
    spelled, ahead = [], ""
    for word in re.findall(r"/|\^\s*\{?[0-9]|[a-zA-Z.]+", words):
        lower = word.lower()
        if word == "/":
            spelled.append("/")
        elif word[0] == "^":
            spelled.append("^" + word[-1])
        elif lower in _POWERS:
            ahead = "^" + _POWERS[lower]
        elif lower == "squared":
            spelled.append("^2")
        elif (known := UNITS.get(lower) or UNITS.get(lower.rstrip("."))) is not None:
            spelled.append(known + ahead)
            ahead = ""
        else:
            return ""
    digit = re.search(r"[0-9]", power)
    if spelled[:1] == ["/"]:
        return ""  # a rate without its unit, as in "per hour"
    joined = "".join(spelled).replace("km/h", "kph").replace("mi/h", "mph")
    return joined + (f"^{digit[0]}" if digit and joined else "")


def agree(one: str, other: str) -> bool:
    """True unless two units, by the names of `without_unit`, are known to differ; "" agrees with all.

    >>> agree("cm", ""), agree("cm", "m"), agree("deg", "degc"), agree("dollar", "dollar/h")
    (True, False, True, True)
    """
    if not one or not other or one == other:
        return True
    if "deg" in (one, other):
        return one[:3] == other[:3]
    of, among = one.split("/")[0], other.split("/")[0]
    return of == among and of in _MONEY
