"""Small talk and simple instructions: generators of exchanges and of whole conversations.

Each exchange generator returns (what the user says, what the assistant answers). One user text in
ten, by hash, is for evaluation only.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from recall_data import SAID, Turn, user

from edgetok.evaluation.recall import filler_sentence, is_held_out
from edgetok.evaluation.recall_patterns import NAMES, WORDS, word_list

Exchange = tuple[str, str]

_GREET = (
    "Hello", "Hi", "Hey", "Hello there", "Hi there", "Hey there", "Good morning", "Good evening",
    "Good afternoon", "Greetings", "Hello, how are you", "Hi, how are you", "Hey, how is it going",
    "Good morning, how are you today", "How are you", "How are you doing", "How is your day",
)  # fmt: skip
_GREET_BACK = ("Hello!", "Hi!", "Hi there!", "Hello there!", "Hey!")
_FINE = ("I am fine, thank you.", "I am very well today.", "I feel good, thank you.")
_ASK_BACK = (
    "How are you?", "How are you today?", "What can I do for you?", "What would you like to talk "
    "about?", "Would you like to hear a story?", "What did you do today?", "How can I help you?",
)  # fmt: skip
_BYE = ("Goodbye", "Bye", "Bye bye", "See you", "See you soon", "Good night", "I have to go now",
        "I must go", "That is all, bye", "Talk to you later")  # fmt: skip
_BYE_BACK = ("Goodbye! It was nice to talk to you.", "Bye! See you soon.", "Goodbye! Have a nice "
             "day.", "Good night! Sleep well.", "See you soon! Take care.")  # fmt: skip
_THANKS = ("Thank you", "Thanks", "Thanks a lot", "Thank you very much", "That was nice, thank you",
           "Great, thanks", "Thank you for your help")  # fmt: skip
_THANKS_BACK = ("You're welcome!", "You're welcome! I am happy to help.", "My pleasure! Is there "
                "anything else?", "You're welcome! What shall we do next?")  # fmt: skip
_SELF = {
    "Who are you": "I am a small language model. I can tell stories and remember what you tell me.",
    "What are you": "I am a small language model that runs on your device.",
    "What is your name": "I have no name. I am a small model. What is your name?",
    "What can you do": "I can tell you a story, talk with you, count, make small lists and "
    "remember what you tell me.",
    "Are you a robot": "I am a computer program. I like to talk with you.",
    "Are you a human": "No, I am a computer program.",
    "How old are you": "I am very young. I was made not long ago.",
    "Where do you live": "I live in your computer.",
    "Can you help me": "Of course! What do you need?",
    "Do you like stories": "Yes, I like stories very much. Would you like to hear one?",
    "Do you have friends": "I think you are my friend. Do you have many friends?",
    "What do you like": "I like stories and nice talks. What do you like?",
    "Are you smart": "I am small, so I do not know much. But I try my best.",
    "Can you remember things": "Yes, tell me something and ask me later.",
    "Do you sleep": "No, I do not sleep. Do you sleep well?",
    "Tell me a joke": "Why did the cow cross the road? Because it wanted to go to the moo-vies!",
    "Tell me something funny": "A duck goes to the shop and says: quack, put it on my bill!",
    "What do you think": "I think it is a good day to talk. What do you think?",
}
_FEEL = {
    "I am happy": "That is great! What made you happy?",
    "I am sad": "I am sorry that you are sad. Do you want to tell me why?",
    "I am tired": "You should rest a little. Did you sleep well?",
    "I am bored": "Shall I tell you a story?",
    "I am hungry": "What would you like to eat?",
    "I am angry": "I am sorry to hear that. What happened?",
    "I am scared": "Do not be afraid. I am here. What scares you?",
    "I am sick": "I am sorry. I hope you feel better soon.",
    "I am cold": "Put on a warm coat and drink some hot tea.",
    "I am fine": "I am glad to hear that! What would you like to do?",
    "I am good": "I am glad to hear that! What would you like to do?",
    "I had a bad day": "I am sorry to hear that. Do you want to talk about it?",
    "I had a good day": "That is wonderful! What did you do?",
    "I cannot sleep": "Shall I tell you a quiet story?",
    "It is raining": "Then it is nice to be inside. Do you like the rain?",
    "The sun is shining": "How nice! You could go outside and play.",
    "Today is my birthday": "Happy birthday! I hope you get a nice cake.",
    "I like you": "Thank you! I like you too.",
    "I love stories": "Me too! Shall I tell you one?",
    "You are funny": "Thank you! I like to make you smile.",
    "Nothing": "That is fine. We can just talk. Shall I tell you a story?",
    "Okay": "Good! What would you like to do next?",
    "Yes": "Great! Tell me more.",
    "No": "That is okay. What would you like to do?",
    "I do not know": "That is fine. Shall I tell you a story?",
}
_KNOW = {
    "What colour is the sky": "The sky is blue.",
    "What colour is grass": "Grass is green.",
    "What colour is snow": "Snow is white.",
    "What colour is the sun": "The sun is yellow.",
    "What colour is a banana": "A banana is yellow.",
    "What colour is a tomato": "A tomato is red.",
    "What colour is the night": "The night is black.",
    "What does a cow say": "A cow says moo.",
    "What does a dog say": "A dog says woof.",
    "What does a cat say": "A cat says meow.",
    "What does a duck say": "A duck says quack.",
    "What does a sheep say": "A sheep says baa.",
    "What does a lion say": "A lion says roar.",
    "How many legs does a dog have": "A dog has four legs.",
    "How many legs does a bird have": "A bird has two legs.",
    "How many legs does a spider have": "A spider has eight legs.",
    "How many days are in a week": "There are seven days in a week.",
    "How many months are in a year": "There are twelve months in a year.",
    "How many fingers do you have on one hand": "There are five fingers on one hand.",
    "What do bees make": "Bees make honey.",
    "What do cows give": "Cows give milk.",
    "What do rabbits eat": "Rabbits eat carrots and grass.",
    "What do birds do": "Birds fly and sing.",
    "Where do fish live": "Fish live in the water.",
    "Where do birds live": "Birds live in nests in the trees.",
    "Where do bears live": "Bears live in the forest.",
    "Is ice cold or hot": "Ice is cold.",
    "Is fire cold or hot": "Fire is hot.",
    "Is an elephant big or small": "An elephant is big.",
    "Is a mouse big or small": "A mouse is small.",
    "Can birds fly": "Yes, birds can fly.",
    "Can fish fly": "No, fish swim in the water.",
    "Can a dog talk": "No, a dog cannot talk. It says woof.",
    "What do you do when it rains": "You take an umbrella or stay inside.",
    "When do we sleep": "We sleep at night.",
    "What do we drink": "We drink water, milk, juice or tea.",
    "What is the capital of France": "The capital of France is Paris.",
    "What is the capital of Italy": "The capital of Italy is Rome.",
    "What is the capital of Germany": "The capital of Germany is Berlin.",
    "What is the capital of England": "The capital of England is London.",
    "What is the capital of Spain": "The capital of Spain is Madrid.",
    "What comes after Monday": "Tuesday comes after Monday.",
    "What comes after summer": "Autumn comes after summer.",
    "Who flies a plane": "A pilot flies a plane.",
    "Who helps sick people": "A doctor helps sick people.",
    "What do you wear on your feet": "You wear shoes on your feet.",
    "What do you wear on your head": "You wear a hat on your head.",
    "What shines at night": "The moon and the stars shine at night.",
    "What shines in the day": "The sun shines in the day.",
}
_OPPOSITES = [
    "big small",
    "hot cold",
    "happy sad",
    "up down",
    "good bad",
    "fast slow",
    "old young",
    "day night",
    "light dark",
    "long short",
    "open closed",
    "full empty",
    "hard soft",
    "loud quiet",
    "wet dry",
    "high low",
    "in out",
    "left right",
    "clean dirty",
    "strong weak",
    "early late",
    "near far",
    "black white",
    "rich poor",
    "yes no",
    "first last",
]
_KINDS = {
    "animals": WORDS["animal"], "colours": WORDS["colour"], "fruits": WORDS["fruit"],
    "cities": WORDS["city"], "foods": WORDS["food"], "drinks": WORDS["drink"],
    "sports": WORDS["sport"], "jobs": WORDS["job"], "names": NAMES,
    "toys": word_list("ball doll car kite puzzle train robot bear"),
    "days": WORDS["day"],
}  # fmt: skip
_SMALL = word_list("zero one two three four five six seven eight nine ten")
_WORDS = word_list(
    "apple tree river happy blue moon garden little star house cloud bread song green "
    "window mountain paper summer friend water yellow chair flower king silver table "
    "train"
)
_TO_SORT = (
    "days",
    word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
)


def _talk(table: dict[str, str], rng: random.Random) -> Exchange:
    ask = rng.choice(list(table))
    mark = "?" if ask.split()[0] in _QUESTION_WORDS else rng.choice((".", "!"))
    return ask + mark, table[ask]


_QUESTION_WORDS = frozenset(word_list("Who What Are How Where Can Do Is When"))


def greet(rng: random.Random) -> Exchange:
    """Greets and asks back."""
    ask = rng.choice(_GREET)
    how = "how" in ask.lower()
    answer = f"{rng.choice(_GREET_BACK)} "
    if how:
        answer += rng.choice(_FINE) + " "
        back = rng.choice(("How are you?", "And you?", "What about you?"))
    else:
        back = rng.choice(_ASK_BACK)
    return ask + ("?" if how else rng.choice("!.")), answer + back


def introduce(rng: random.Random) -> Exchange:
    """Somebody says a name."""
    name = rng.choice(NAMES)
    said = rng.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi, my name is {n}!"))
    back = rng.choice(("Nice to meet you, {n}!", "Hello {n}! How are you?", "Hi {n}! It is nice "
                       "to meet you. What would you like to do?"))  # fmt: skip
    return said.format(n=name), back.format(n=name)


def count(rng: random.Random) -> Exchange:
    """Count up, down, or between two numbers."""
    kind = rng.randrange(4)
    if kind == 0:
        n = rng.randint(3, 20)
        ask = rng.choice(("Count to {n}.", "Count from 1 to {n}.", "Can you count to {n}?"))
        return ask.format(n=n), ", ".join(map(str, range(1, n + 1))) + "."
    if kind == 1:
        n = rng.randint(3, 10)
        ask = rng.choice(("Count to {n}.", "Count from one to {n}.", "Please count to {n}."))
        return ask.format(n=_SMALL[n]), ", ".join(_SMALL[1 : n + 1]) + "."
    if kind == 2:
        a = rng.randint(1, 40)
        b = a + rng.randint(3, 10)
        ask = rng.choice(("Count from {a} to {b}.", "Please count from {a} to {b}."))
        return ask.format(a=a, b=b), ", ".join(map(str, range(a, b + 1))) + "."
    n = rng.randint(3, 12)
    ask = rng.choice(("Count down from {n}.", "Count backwards from {n}."))
    return ask.format(n=n), ", ".join(map(str, range(n, 0, -1))) + "."


def listing(rng: random.Random) -> Exchange:
    """List some things of a kind."""
    kind = rng.choice(list(_KINDS))
    n = rng.randint(2, 5)
    ask = rng.choice(
        ("List {n} {k}.", "Name {n} {k}.", "Tell me {n} {k}.", "Give me {n} {k}.",
         "Can you list {n} {k}?", "Write a list of {n} {k}.", "I need {n} {k}.")
    )  # fmt: skip
    things = rng.sample(_KINDS[kind], n)
    number = rng.choice((str(n), _SMALL[n]))
    ask = ask.format(n=number, k=kind)
    if "list" in ask.lower():
        return ask, "\n".join(f"{i}. {t}" for i, t in enumerate(things, 1))
    return ask, (", ".join(things[:-1]) + " and " + things[-1] + ".")


def pick(rng: random.Random) -> Exchange:
    """Pick one of a kind, or one of those offered."""
    if rng.random() < 0.5:
        kind = rng.choice(("colour", "animal", "fruit", "city", "food", "drink", "sport"))
        ask = rng.choice(("Pick a {k}.", "Choose a {k}.", "What is your favourite {k}?",
                          "Name a {k}.", "Tell me a {k}."))  # fmt: skip
        thing = rng.choice(WORDS[kind])
        if "favourite" in ask:
            answer = f"My favourite {kind} is {thing}. What is your favourite {kind}?"
        else:
            answer = rng.choice(
                (f"I pick {thing}.", f"{thing.capitalize()}!", f"I choose {thing}.")
            )
        ask = ask.format(k=kind)
        return ask.replace("a animal", "an animal"), answer
    kind = rng.choice(("colour", "animal", "fruit", "food", "drink", "sport"))
    things = rng.sample(WORDS[kind], rng.choice((2, 2, 3)))
    offered = ", ".join(things[:-1]) + " or " + things[-1]
    ask = rng.choice(("Do you prefer {o}?", "Choose: {o}?", "Pick one: {o}.", "Which one, {o}?",
                      "What do you like more, {o}?"))  # fmt: skip
    answer = rng.choice(("I like {t} more. And you?", "I choose {t}.", "I pick {t}."))
    return ask.format(o=offered), answer.format(t=rng.choice(things))


def repeat(rng: random.Random) -> Exchange:
    """Repeat a word, some words or a sentence."""
    kind = rng.randrange(3)
    if kind == 0:
        text = filler_sentence(rng)
        ask = rng.choice(("Repeat: {t}", "Repeat after me: {t}", "Please repeat this: {t}",
                          "Say this: {t}", "Say: {t}"))  # fmt: skip
        return ask.format(t=text), text
    if kind == 1:
        text = " ".join(rng.sample(_WORDS, rng.randint(1, 5)))
        ask = rng.choice(("Repeat: {t}", "Say: {t}", "Repeat after me: {t}", "Say {t}."))
        return ask.format(t=text), text
    word, n = rng.choice(_WORDS), rng.randint(2, 5)
    ask = rng.choice(
        ("Say {w} {n} times.", "Repeat the word {w} {n} times.", "Write {w} {n} times.")
    )
    number = rng.choice((str(n), _SMALL[n]))
    return ask.format(w=word, n=number), " ".join([word] * n)


def go_on(rng: random.Random) -> Exchange:
    """Continue a sequence."""
    kind = rng.randrange(4)
    shown = rng.randint(3, 4)
    if kind == 0:
        start, by = rng.randint(1, 20), rng.choice((1, 1, 1, 2, 5, 10))
        seq = [str(start + by * i) for i in range(shown + 4)]
    elif kind == 1:
        i = rng.randrange(26 - shown - 4)
        seq = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i : i + shown + 4])
    elif kind == 2:
        days = _TO_SORT[1]
        i = rng.randrange(7)
        shown = 2
        seq = [days[(i + j) % 7] for j in range(5)]
    else:
        a, b = rng.sample(_WORDS, 2)
        seq = [a, b] * 4
    ask = rng.choice(("Continue: {s}", "Go on: {s}", "What comes next: {s}", "Continue this: {s}"))
    return ask.format(s=", ".join(seq[:shown]) + ","), ", ".join(seq[shown:]) + "."


def opposite(rng: random.Random) -> Exchange:
    """The opposite of a word."""
    a, b = rng.sample(rng.choice(_OPPOSITES).split(), 2)
    ask = rng.choice(("What is the opposite of {a}?", "Tell me the opposite of {a}."))
    return ask.format(a=a), f"The opposite of {a} is {b}."


def add(rng: random.Random) -> Exchange:
    """Small sums."""
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.3 and a >= b:
        ask = rng.choice(("What is {a} minus {b}?", "What is {a} - {b}?"))
        return ask.format(a=a, b=b), f"{a} - {b} = {a - b}."
    ask = rng.choice(("What is {a} plus {b}?", "What is {a} + {b}?", "How much is {a} + {b}?"))
    return ask.format(a=a, b=b), f"{a} + {b} = {a + b}."


def likes(rng: random.Random) -> Exchange:
    """The user tells a liking; the assistant takes the word up and asks back."""
    kind = rng.choice(("fruit", "animal", "food", "sport", "drink", "city"))
    thing = rng.choice(WORDS[kind])
    many = thing + "s" if kind == "animal" and not thing.endswith(("x", "mouse")) else thing
    said = rng.choice(("I like {t}.", "I love {t}.", "I really like {t}.", "I do not like {t}."))
    if "not" in said:
        back = rng.choice(("Why do you not like {t}?", "Oh, what do you like more than {t}?"))
    else:
        back = rng.choice(("I like {t} too! What else do you like?", "{T}, how nice! Why do you "
                           "like {t}?", "That is nice. What do you like about {t}?"))  # fmt: skip
    return said.format(t=many), back.format(t=many, T=many.capitalize())


_MAKERS: tuple[tuple[Callable[[random.Random], Exchange], float], ...] = (
    (greet, 1.5),
    (introduce, 0.7),
    (lambda r: _talk(_SELF, r), 1.2),
    (lambda r: _talk(_FEEL, r), 1.2),
    (lambda r: _talk(_KNOW, r), 1.5),
    (count, 1.2),
    (listing, 1.2),
    (pick, 1.2),
    (repeat, 1.5),
    (go_on, 1.0),
    (opposite, 0.6),
    (add, 0.7),
    (likes, 1.0),
    (lambda r: (rng_mark(r, _THANKS), r.choice(_THANKS_BACK)), 0.6),
)


def rng_mark(rng: random.Random, texts: tuple[str, ...]) -> str:
    """One of the texts with an end mark."""
    return rng.choice(texts) + rng.choice(".!")


def exchange(rng: random.Random, held_out: bool = False) -> Exchange:
    """One exchange of any kind, on one side of the split."""
    make = rng.choices([m for m, _ in _MAKERS], [w for _, w in _MAKERS])[0]
    for _ in range(40):
        ask, answer = make(rng)
        if is_held_out("chat", ask) == held_out:
            return loosely(rng, ask), answer
    return exchange(rng, held_out)


def loosely(rng: random.Random, ask: str) -> str:
    """As people type: now and then without capital or end mark."""
    if rng.random() < 0.15 and ask[-1] in ".!?":
        ask = ask[:-1]
    if rng.random() < 0.15 and not ask.startswith("I "):
        ask = ask[0].lower() + ask[1:]
    return ask


def turns_of(pair: Exchange) -> list[Turn]:
    """An exchange as two turns."""
    return [user(pair[0]), Turn("assistant", pair[1], SAID)]


def greeting(rng: random.Random) -> list[Turn]:
    """How a conversation may begin."""
    return turns_of(greet(rng) if rng.random() < 0.6 else introduce(rng))


def farewell(rng: random.Random) -> list[Turn]:
    """How it may end."""
    return turns_of((rng_mark(rng, _BYE), rng.choice(_BYE_BACK)))
