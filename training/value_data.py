"""Values that training tells and asks for, beyond those of the recall cases.

A value that is one of a few words, or a number of any digits, can be half guessed; then copying is
not learnt, and what was never told (one value in ten is kept for evaluation) is not believed. So
names are many, of several tokens and like each other, and digits come again within a number.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from edgetok.evaluation import recall
from edgetok.evaluation.recall_patterns import NAMES, word_list

GIVEN = word_list(
    "Aaron Abel Ada Adam Adele Agnes Aida Alan Albert Alex Alfred Alice Alma Alvin Amanda Amber "
    "Andre Andrea Angela Anita Anne Anton Ariel Arnold Arthur Astrid August Aurora Axel Barbara "
    "Barry Basil Beatrice Becky Benno Bernard Bert Bertha Betty Bianca Bill Blanche Boris Brenda "
    "Brian Bridget Bruno Camilla Carla Carlos Carmen Carol Caroline Caspar Cecilia Celia Charles "
    "Charlotte Chester Chris Christa Claire Claude Claudia Conrad Cora Cornelia Craig Cynthia "
    "Dagmar Damian Dana Daniel Daphne Daria Dean Debora Denise Dennis Derek Diana Dieter Dolly "
    "Dominic Donald Donna Dora Doris Dorothy Douglas Duncan Dylan Edgar Edith Edmund Edna Edward "
    "Elaine Eleanor Elena Elias Elisa Elliot Elmer Elsa Emil Emily Enid Erica Ernest Erwin Esther "
    "Ethan Eugene Eva Evelyn Fabian Faith Fanny Ferdinand Fiona Florence Frances Frank Fred Frieda "
    "Fritz Gabriel Gareth Gary Gemma Gerald Gerda Gilbert Gisela Gloria Gordon Greta Guido Gustav "
    "Gwen Harold Harriet Harry Hazel Hector Heidi Helen Helga Herbert Herman Hilda Holger Holly "
    "Horace Howard Hubert Ian Ignaz Igor Ilse Imogen Ines Inga Ingrid Irene Irma Isaac Isabel "
    "Jakob Jacob James Janet Janina Jason Jasper Jean Jeff Jenny Jeremy Jerome Jessica Jill Jim "
    "Joan Joe Joel Johann John Jonathan Jordan Josef Joseph Josephine Joyce Juan Judith Julian "
    "Juliet June Justin Karl Katrin Kenneth Kira Klara Klaus Konrad Kurt Lars Lauren Lea Leila "
    "Leon Leonard Leonora Leslie Lewis Liam Linda Linus Lisa Liz Logan Lorenz Lotte Louis Louise "
    "Luca Lucas Lucia Luis Luke Lydia Mabel Maggie Malcolm Marcel Marco Margaret Maria Marianne "
    "Marie Marina Mario Marlene Martha Mary Mathilda Matthew Maud Maurice Megan Melanie Melissa "
    "Michael Michel Mina Miranda Miriam Mirko Molly Monica Morris Moses Muriel Nadia Nancy Naomi "
    "Natalie Nathan Neil Nicholas Nico Nicole Nigel Nils Noel Norbert Norma Norman Octavia Odile "
    "Olaf Olga Oliver Olivia Ophelia Orlando Oswald Pamela Pascal Patricia Patrick Paula Pauline "
    "Pedro Penelope Percy Philip Phoebe Pierre Polly Priska Quentin Rachel Ralph Ramona Raphael "
    "Raymond Rebecca Regina Reiner Rene Richard Rita Robert Robin Roger Roland Roman Ronald Rose "
    "Roxana Roy Rudolf Rupert Russell Ruth Sabine Sally Samuel Sandra Sebastian Selma Sheila Sibyl "
    "Sidney Silas Silvia Simon Sofia Sonja Stefan Stephen Steven Susan Sven Sylvester Sybille "
    "Tamara Tanja Tania Teresa Terry Thea Theresa Thomas Tilda Timothy Tobias Tony Tracy Trevor "
    "Trudy Ulla Ulrich Ursula Valentin Valerie Vanessa Veronica Vincent Viola Violet Virginia "
    "Vivian Vladimir Waldo Wanda Warren Werner Wilbur Wilhelm William Wilma Winston Xaver Yannick "
    "Yvonne Zacharias Zelda"
)
PETS = word_list(
    "Ace Apollo Apricot Arrow Bandit Barkley Bear Benji Berry Blaze Blossom Boots Bruno Bruce "
    "Button Candy Caramel Casper Champ Chip Chuckles Cinnamon Cloud Clover Comet Cookie Copper "
    "Cosmo Cotton Cracker Cricket Cupcake Dash Diesel Domino Dusty Echo Ember Felix Fern Flash "
    "Fudge Gizmo Goldie Gus Hazel Hobbit Hunter Iggy Indigo Jasper Jelly Jester Joker Juno Kiwi "
    "Lemon Lightning Loki Mango Maple Marble Merlin Midnight Minty Misty Mocha Muffin Mustard "
    "Nacho Noodle Nugget Nutmeg Oreo Otis Panda Patches Peanut Pebbles Penny Pickle Pip Pixie "
    "Pluto Pogo Popcorn Prince Pudding Pumpkin Puzzle Quincy Raisin Rascal Ribbon Rufus Rusty "
    "Saffron Sage Salty Sandy Sasha Scout Sesame Skipper Smokey Sniff Socks Sparky Sprout Star "
    "Stormy Sugar Sunny Taffy Tango Thunder Tinker Toffee Truffle Turbo Twix Velvet Waffles "
    "Whiskers Widget Winnie Wolfie Yoyo Zeus Ziggy Zippy"
)
_MORE: dict[str, tuple[str, ...]] = {
    "name": (*GIVEN, *NAMES),
    "pet": (*PETS, *GIVEN[::3]),
    "colour": word_list("silver violet turquoise beige cream crimson ivory lilac maroon olive"),
    "city": word_list(
        "Amsterdam Barcelona Basel Bergen Bilbao Bologna Bombay Bonn Bremen Bristol Brussels "
        "Budapest Calgary Cardiff Cologne Dallas Dresden Florence Geneva Genoa Ghent Glasgow "
        "Helsinki Houston Istanbul Kyoto Leeds Lima Liverpool Lyon Malaga Manchester Memphis Miami "
        "Montreal Moscow Munich Nairobi Naples Nice Osaka Oxford Palermo Perth Porto Riga Salzburg "
        "Seoul Sofia Stockholm Stuttgart Tampa Turin Utrecht Valencia Venice Verona York"
    ),
    "fruit": word_list("apricot fig lime papaya pineapple quince raspberry strawberry watermelon"),
    "animal": word_list("camel deer dolphin donkey giraffe goat hamster hen otter panda pig seal "
                        "sheep snake squirrel swan turtle wolf zebra"),
    "food": word_list("burgers butter chicken chips cookies curry dumplings honey lasagna noodles "
                      "peas pie potatoes sausages stew tofu waffles"),
    "sport": word_list("archery boxing climbing cycling fencing karate rowing rugby sailing "
                       "surfing volleyball wrestling yoga"),
    "drink": word_list("beer cider coke lassi mead punch smoothie wine"),
    "job": word_list("butcher carpenter clown dancer dentist fisherman gardener judge lawyer mason "
                     "nurse plumber poet sailor soldier tailor waiter"),
    "place": word_list("balcony barn bedroom bucket chest closet fridge hall oven pocket porch "
                       "shed shelf sink sofa suitcase tent tower trunk van wardrobe"),
    "day": word_list("Christmas Easter Friday Monday Saturday Thursday Tuesday"),
}  # fmt: skip
# Anything may be called anything: what is usual for a kind must not outweigh what was said.
_ANY = tuple(dict.fromkeys(w for words in _MORE.values() for w in words))
_OWNED = word_list("dog cat horse rabbit parrot hamster turtle pony snake goat pig donkey canary")
# Subjects beyond those of the recall cases; their values are always drawn here.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "self": (
        *word_list("nickname surname password hero idol rival team band street village ship star"),
        *("first name", "last name", "middle name", "stage name", "user name"),
    ),
    "people": word_list(
        "coach nephew niece roommate classmate nurse partner driver godfather godmother landlord "
        "dentist barber butcher trainer captain guest helper pupil colleague stepfather twin baby"
    ),
    "pets": word_list("canary snake goat pig donkey lizard duck guinea-pig tortoise budgie lamb"),
    "codes": tuple(
        f"{a} {b}"
        for a in word_list("card flat train table box gate member letter order garage school key")
        for b in ("number", "code")
    ),
    "favourites": word_list(
        "season book song flower toy game month tree bird dish writer singer film dress car name"
    ),
    "homes": GIVEN,
    "owners": tuple(f"{name}'s {_OWNED[i % len(_OWNED)]}" for i, name in enumerate(GIVEN)),
    "jobs": GIVEN,
    "places": word_list(
        "cup pen shoe lamp bag glove knife plate scarf wallet comb brush bell rope hammer button "
        "ticket torch candle bottle purse stamp stick flute racket pillow blanket mirror helmet"
    ),
}


def subject(rng: random.Random, pattern: str, usual: Sequence[str]) -> str:
    """A subject for a drawn value: one of the recall cases' or one that only training knows."""
    return rng.choice(SUBJECTS[pattern] if rng.random() < 0.5 else usual)


def _repeated(rng: random.Random) -> str:
    """A name in which a syllable comes again: what follows it first is not what follows it next."""
    a, b = (recall.syllable_name(rng, False)[: rng.choice((2, 3))].lower() for _ in "ab")
    return rng.choice((a + b + a, a + a + b, a + b + b, a + b + a + b)).capitalize()


def _digits(rng: random.Random) -> str:
    few = rng.sample("0123456789", rng.choice((2, 2, 3, 5)))
    size = rng.choice((2, 3, 3, 4, 4, 5, 5, 5, 6))
    return rng.choice("123456789") + "".join(rng.choice(few) for _ in range(size - 1))


def _alike(rng: random.Random, value: str) -> str:
    """Return a value that begins or goes on like a known one."""
    at = rng.randrange(1, max(2, len(value) - 1))
    if value.isdigit():
        new = rng.choice((value[at - 1], rng.choice("0123456789")))
        return value[:at] + new + value[at + rng.choice((0, 1, 1)) :]
    tail = recall.syllable_name(rng, False).lower()
    return value[: max(2, at)] + tail[-rng.choice((2, 3, 4)) :]


def draw(rng: random.Random, kind: str, subject: str = "", known: Sequence[str] = ()) -> str:
    """Return a value that training may tell of the subject.

    Args:
        rng: source of randomness.
        kind: `number`, `name`, `pet`, a key of the word lists of the recall cases, or anything.
        subject: what it is the value of; pairs on the evaluation side are not drawn.
        known: values told already, some of which it may be like.
    """
    while True:
        roll = rng.random()
        same = [v for v in known if v.isdigit() == (kind == "number")]
        if same and roll < 0.2 and kind in ("number", "name", "pet"):
            value = _alike(rng, rng.choice(same))
        elif kind == "number":
            value = _digits(rng)
        elif roll < 0.3:
            value = rng.choice(_ANY)
            if kind in ("name", "pet"):
                value = value.capitalize()
        elif roll < 0.65:
            value = rng.choice(_MORE.get(kind, GIVEN))
            if kind == "name" and rng.random() < 0.1:
                value += " " + rng.choice(GIVEN)
        elif roll < 0.77:
            value = _repeated(rng)
        else:
            value = recall.syllable_name(rng, False)
        if not recall.is_held_out(value) and not recall.is_held_out(subject, value):
            return value
