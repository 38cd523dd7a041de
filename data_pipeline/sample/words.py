"""The word lists of the generated corpus: a few hundred common words, each one piece for a small tokenizer."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Adam Alice Amir Anna Bella Boris Carla Cyrus Daniel Diana Edgar Elena Emma Felix Fiona Frank Gina Grace Hannah "
    "Henry Hugo Ida Igor Irene Jack Julia Kamal Karen Klara Laura Leon Lucy Marco Maria Martin Maya Nadia Nils Nora "
    "Olga Oscar Otto Paul Petra Quinn Rachel Robert Rosa Samir Sara Simon Tara Thomas Tina Ursula Vera Victor Wanda "
    "William Yara Yusuf Zara Zeno Zoe"
)
TOWNS = _words(
    "Athens Bergen Berlin Bern Boston Cairo Cork Dallas Delhi Dublin Florence Geneva Hanoi Havana Jaipur Kyoto "
    "Lagos Lima Lisbon London Madrid Malmo Milan Nairobi Naples Oslo Paris Perth Porto Prague Quito Riga Rome Seoul "
    "Sydney Tokyo Tunis Turin Vienna Warsaw"
)
COLOURS = _words("black blue brown gold green grey pink purple red silver white yellow")
THINGS = _words(
    "basket bell bike book bottle bowl box brush bucket camera candle carpet chair clock coat cup drum flute glove "
    "guitar hammer hat jacket kettle key kite ladder lamp map mirror pan pen pillow plate radio ring rope scarf "
    "shirt spoon suitcase table tent towel vase violin wallet wheel"
)
COUNTED = _words("apples books cards coins eggs keys pears pens plums shells stamps stones tickets toys")
JOBS = _words(
    "baker barber butcher carpenter chemist cook dancer dentist doctor driver farmer gardener guard judge lawyer "
    "nurse painter pilot plumber sailor singer tailor teacher waiter writer"
)
PETS = _words("bird camel cat cow dog donkey duck fish fox goat goose hamster horse lizard mouse parrot pig rabbit")
PLACES = _words(
    "attic barn bedroom cabin cellar church garage garden hall hotel kitchen library market museum office school "
    "shed shop station stable theatre tower"
)
SIDES = _words("big cold dark east large little narrow new north old quiet small south warm west wide")
EVENTS = _words("ceremony concert dinner exam fair lecture lesson lunch meeting party picnic play race show trial walk")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ORDINALS = _words("first second third fourth fifth")
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen"
)
