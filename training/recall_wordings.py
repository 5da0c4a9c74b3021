"""More ways of telling and asking than the recall cases know; for training alone.

A question is put together from what is wanted ("my sister's name") and a frame ("Remind me of
..."), so that the model learns that the frame does not matter. None of them is one of the
`unseen` wordings that the evaluation keeps.
"""

from __future__ import annotations

import random
from dataclasses import replace

from edgetok.evaluation import recall
from edgetok.evaluation import recall_patterns as words

_WANTED: dict[str, tuple[str, ...]] = {
    "self": ("my {s}", "my own {s}", "what my {s} is", "what I am called", "who I am"),
    "people": ("my {s}'s name", "the name of my {s}", "what my {s} is called",
               "how my {s} is called", "the name that my {s} has"),
    "codes": ("my {s}", "the {s}", "what my {s} is", "which {s} I have", "my {s}, please"),
    "favourites": ("my favourite {s}", "which {s} I like best", "what my favourite {s} is",
                   "the {s} that I like most"),
    "homes": ("where {s} lives", "the city of {s}", "in which city {s} lives",
              "where the home of {s} is", "the city where {s} lives"),
    "owners": ("the name of {s}", "what {s} is called", "how {s} is called",
               "the name that {s} has"),
    "jobs": ("the job of {s}", "what {s} works as", "which job {s} has", "what {s} does for work"),
    "places": ("where the {s} is", "where I find the {s}", "the place of the {s}",
               "where to look for the {s}", "in what place the {s} is"),
}  # fmt: skip
_WANTED["pets"] = _WANTED["people"]
_FRAMES = (
    "Tell me {w}.", "Please tell me {w}.", "Tell me again {w}.", "Could you tell me {w}?",
    "Will you tell me {w}?", "Would you say {w}?", "Do you know {w}?", "Do you remember {w}?",
    "Do you still remember {w}?", "I want to know {w}.", "I need to know {w}.", "I forgot {w}.",
    "I do not remember {w}.", "Remind me of {w}.", "Say {w}.", "Now tell me {w}.",
    "Did you keep in mind {w}?", "Have you forgotten {w}?", "Help me, I forgot {w}.",
    "Let me hear {w}.", "One question: {w}?", "And {w}?", "Quick, {w}!", "Are you sure about {w}?",
    "Somebody asks me {w}.", "Let us see if you know {w}.", "My question is {w}.", "Well, {w}?",
    "So tell me {w}.", "Then say {w}, please.", "Can you say {w}?", "Can you repeat {w}?",
)  # fmt: skip
_BEFORE_ASK = ("", "", "", "", "", "", "Thanks. ", "Hm. ", "Okay. ", "One more: ", "Now: ",
               "Good. ", "So, ", "And now? ", "Last one. ", "Something else. ")  # fmt: skip
_LEADS = (
    "", "", "", "Remember this. ", "Do you know what? ", "Have you heard? ", "It is important: ",
    "I want to say something. ", "You may not know it: ", "Hm, ", "Yes, ", "So, ", "And ", "Also, ",
    "One thing more. ", "This is new. ", "Did you know? ", "Here is something: ", "Note: ",
    "I have news. ", "Let me tell you something. ", "May I say something? ", "First of all, ",
    "Keep in mind: ", "Now listen. ", "What else? ", "Okay, ", "Look: ", "I forgot to say: ",
    "Oh, ", "Can you keep a secret? ", "Are you there? ", "Where was I? ", "Is this on? ",
    "May I go on? ", "Was that clear? ", "Good to know: ", "Sorry, one thing: ", "As I said, ",
    "Now the rest. ", "Wait, there is more. ", "And you know this? ", "Can you hear me? ",
    "Have you got it? ", "A small thing, but nice: ", "Next. ", "Is it late? ", "Write, please: ",
)  # fmt: skip
_TAILS = ("", "", "", "", "", " Please keep it in mind.", " Do you hear me?", " That is all.",
          " I will ask you later.", " Is that not nice?", " It is true.")  # fmt: skip
_TELL: dict[str, tuple[str, ...]] = {
    "self": ("I am called {v}. That is my {s}.", "People call me {v}, my {s}.", "{v} is my only "
             "{s}.", "{v} is the {s} they gave me.", "Hi, {v} is my {s}!", "My full {s} is {v}.",
             "Please note my {s}: {v}.", "My {s}? It is {v}.", "As my {s} take {v}.",
             "You may call me by my {s}: {v}.", "Put down {v} as my {s}.",
             "Everybody knows my {s}. It is {v}.", "Spell my {s} like this: {v}.",
             "I write my {s} like this: {v}.", "You may write my {s} now: {v}.",
             "Here I tell you my {s}, and that is {v}.", "Please learn my {s}, it is {v}.",
             "Please keep my {s} in your head: {v}.",
             "Please say my {s} after me: {v}.", "Take down my {s}, that is {v}."),
    "people": ("My {s} has the name {v}.", "{v}, my {s}, is very kind.", "My {s} {v} is here.",
               "This is {v}. That is my {s}.", "You know {v}? That is my {s}.",
               "{v} has always been my {s}.", "Please note my {s}'s name: {v}.",
               "My {s}? The name is {v}.", "It was {v}, my {s}, who came.",
               "I am with {v}. You know, my {s}.", "{v} and I are here; {v} is my {s}.",
               "I love my {s}, who is called {v}.", "You met my {s}, whose name is {v}.",
               "Say hello to my {s} {v}.", "As for my {s}, that is {v}."),
    "codes": ("My {s} must be {v}.", "Use {v} as the {s}.", "It says {v} on my {s}.",
              "I always use {v}. It is my {s}.", "Please note my {s}: {v}.", "My {s}? It is {v}.",
              "{v}, that is my {s}.", "{v} is the {s} that I got.", "Put down {v} as my {s}.",
              "I have a {s}, which is {v}.", "Here they give the {s}, which is {v}.",
              "You need {v}. That is the {s}.", "As {s} they wrote {v}."),
    "favourites": ("I like {v} best. That is my {s}.", "My {s} of choice is {v}.",
                   "Give me {v} and I am happy: the best {s}!", "{v} is my favourite {s}.",
                   "My favourite {s}? It is {v}.", "No {s} is as good as {v}.",
                   "{v} is the {s} that I love.", "I love {v}. It is my favourite {s}.",
                   "Please note my favourite {s}: {v}."),
    "homes": ("{s} is at home in {v}.", "{s} has lived in {v} for years.",
              "In {v} there is the house of {s}.", "In {v} lives {s}.", "{v} is home to {s}.",
              "Go to {v} if you look for {s}.", "Please note the city of {s}: {v}.",
              "If you go to {v}, visit {s}.", "{s}? You have to go to {v}."),
    "owners": ("Look, that is {s}, called {v}.", "{v} is here. That is {s}.", "{v}, that is {s}.",
               "{s} got the name {v}.", "{v} is what they call {s}.",
               "Please note the name of {s}: {v}.", "You know {v}? That is {s}."),
    "jobs": ("{s} has always been a {v}.", "As for {s}: a {v} and proud of it.",
             "{s} wanted to be a {v} and now it is so.", "A {v}, that is what {s} is.",
             "The {v} in the town is {s}.", "Please note the job of {s}: {v}.",
             "They need a {v}, so they ask {s}."),
    "places": ("The {s} must be in the {v}.", "In the {v} there is the {s}.",
               "If you want the {s}, go to the {v}.", "In the {v} I put the {s}.",
               "Please note where the {s} is: in the {v}.", "The {v} is where the {s} is.",
               "Open the {v} and you see the {s}."),
}  # fmt: skip
# Between a subject and its value anything may stand.
_BETWEEN = (
    ", as you know,", ", you see,", ", if you ask,", ", by the way,", " that everybody knows",
    " since long ago", " for you", " today", ", I say,", ", to be clear,", ", I am glad to say,",
    ", my friend,", " here", ", let me think,", ", and I mean it,", ", as far as I know,",
    ", do not forget it,", ", that you asked for,", " at the moment", ", please note,",
    ", as it says here,", ", if I am right,", ", since you want to know,", " in every way",
)  # fmt: skip
_STATED = {
    "self": "My {s}{x} is {v}.",
    "people": "My {s}{x} is called {v}.",
    "codes": "My {s}{x} is {v}.",
    "favourites": "My favourite {s}{x} is {v}.",
    "homes": "{s}{x} lives in {v}.",
    "owners": "{s}{x} is called {v}.",
    "jobs": "{s}{x} is a {v}.",
    "places": "The {s}{x} is in the {v}.",
}
_STATED["pets"] = _STATED["people"]
# The same for what is announced before it is said: a beginning, what it is, a link, the value.
_NAMED = {
    "self": "my {s}", "people": "the name of my {s}", "codes": "my {s}",
    "favourites": "my favourite {s}", "homes": "the city of {s}", "owners": "the name of {s}",
    "jobs": "the job of {s}", "places": "the place of the {s}",
}  # fmt: skip
_NAMED["pets"] = _NAMED["people"]
_ANNOUNCE = (
    "Please note", "Keep in mind", "Put on the list", "Try to learn", "Here you have", "I give you",
    "I tell you", "Let me say", "Do not forget", "Please take", "Please put on paper", "Now hear",
    "Add to your notes", "You will need", "They asked for", "Please store", "You wanted",
)  # fmt: skip
_LINKS = (": {v}.", ", it is {v}.", ", that is {v}.", ". It is {v}.", ", which reads {v}.",
          ", which sounds like {v}.", ", namely {v}.", ", and it is {v}.", ", which says {v}.",
          ", and that would be {v}.", ", I mean {v}.", ", so {v}.")  # fmt: skip
_CHANGE: dict[str, tuple[str, ...]] = {
    "self": ("From today on my {s} is {v}.", "No, {v} is my {s}.", "Sorry, my {s} is {v}.",
             "My {s} is not that any more, it is {v}.", "I have a new {s}: {v}."),
    "people": ("From today on my {s} is called {v}.", "No, my {s} is called {v}.",
               "Sorry, {v} is the name of my {s}.", "My {s} is called {v} these days.",
               "They gave my {s} a new name, and it is {v}.", "{v} is the new name of my {s}."),
    "codes": ("They changed my {s} to {v}.", "From today on my {s} is {v}.",
              "No, {v} is my {s}.", "Sorry, the {s} is {v}.", "{v} is my new {s}."),
    "favourites": ("These days my favourite {s} is {v}.", "No, {v} is my favourite {s}.",
                   "Sorry, my favourite {s} is {v}.", "Today I like {v} more than any other {s}."),
    "homes": ("{s} went to live in {v}.", "No, {s} lives in {v}.", "{v} is the new home of {s}.",
              "Sorry, {s} lives in {v}.", "{s} has a new home in {v}."),
    "owners": ("From today on {s} is called {v}.", "No, {s} is called {v}.",
               "{v} is the new name of {s}.", "Sorry, {s} is called {v}."),
    "jobs": ("These days {s} is a {v}.", "No, {s} is a {v}.", "{s} became a {v}.",
             "The new job of {s} is {v}."),
    "places": ("I took the {s} to the {v}.", "No, the {s} is in the {v}.",
               "Somebody moved the {s} to the {v}.", "Sorry, the {s} is in the {v}.",
               "From now on the {s} is in the {v}."),
}  # fmt: skip
_CHANGE["pets"] = _CHANGE["people"]
_TELL["pets"] = _TELL["people"]
_NOT_TOLD: dict[str, str] = {
    "self": "You have not told me your {s} yet.",
    "people": "You have not told me the name of your {s} yet.",
    "pets": "You have not told me the name of your {s} yet.",
    "codes": "You have not told me your {s} yet.",
    "favourites": "You have not told me your favourite {s} yet.",
    "homes": "You have not told me where {s} lives.",
    "owners": "You have not told me the name of {s} yet.",
    "jobs": "You have not told me the job of {s} yet.",
    "places": "You have not told me where the {s} is.",
}
_CAPITAL = ("My ", "The ", "You ", "If ", "They ", "This ", "Here ", "Look ", "Write ", "There ")


def question(rng: random.Random, pattern: str, subject: str) -> str:
    """Return a question for the subject, in half of all cases one that only training knows."""

    def about(frames: tuple[str, ...]) -> str:
        # "Who am I?" asks for a name without saying so, and for nothing else.
        fit = [f for f in frames if "{s}" in f or subject == "name"]
        return rng.choice(fit).format(s=subject)

    if rng.random() < 0.5:
        return about(words.PATTERNS[pattern].ask)
    ask = rng.choice(_FRAMES).format(w=about(_WANTED[pattern]))
    return rng.choice(_BEFORE_ASK) + ask[0].upper() + ask[1:]


def not_told(pattern: str, subject: str) -> str:
    """Return the honest answer where nothing was said about the subject."""
    return _NOT_TOLD[pattern].format(s=subject)


def retold(
    rng: random.Random, fact: recall.Fact, changed: bool, value_first: bool = False
) -> recall.Fact:
    """Return the same fact in words that only training knows, or in those with the value first."""
    pattern, subject = fact.slot.split("|")
    p = words.PATTERNS[pattern]
    more = _CHANGE.get(pattern, ()) if changed else _TELL[pattern]
    frames = (*(p.change if changed else p.tell), *more)
    if value_first:
        frames = tuple(f for f in frames if f.index("{v}") < f.index("{s}")) or frames
    if not changed and not value_first and rng.random() < 0.4:
        link = rng.choice(_LINKS if pattern == "self" else (*_LINKS, ", which is {v}."))
        announced = f"{rng.choice(_ANNOUNCE)} {_NAMED[pattern]}{link}"
        frames = (announced, _STATED[pattern].replace("{x}", rng.choice(_BETWEEN)))
    told = rng.choice(frames).format(s=subject, v=fact.value)
    lead = rng.choice(_LEADS)
    if lead.endswith((", ", ": ", "And ")) and told.startswith(_CAPITAL):
        told = told[0].lower() + told[1:]
    return replace(fact, tell=lead + told + rng.choice(_TAILS), ask=question(rng, pattern, subject))
