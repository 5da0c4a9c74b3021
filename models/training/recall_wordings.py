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
    "Oh, ", "Can you keep a secret? ",
)  # fmt: skip
_TAILS = ("", "", "", "", "", " Please keep it in mind.", " Do you hear me?", " That is all.",
          " I will ask you later.", " Is that not nice?", " It is true.")  # fmt: skip
_TELL: dict[str, tuple[str, ...]] = {
    "self": ("I am called {v}.", "People call me {v}.", "I am {v}.", "This is {v} speaking.",
             "{v} is what they call me.", "Hi, I am {v}!", "My full {s} is {v}."),
    "people": ("My {s} has the name {v}.", "{v}, my {s}, is very kind.", "My {s} {v} is here.",
               "This is {v}. That is my {s}.", "You know {v}? That is my {s}."),
    "codes": ("My {s} must be {v}.", "Use {v} as the {s}.", "It says {v} on my {s}.",
              "I always use {v}. It is my {s}."),
    "favourites": ("I like {v} best. That is my {s}.", "My {s} of choice is {v}.",
                   "Give me {v} and I am happy: the best {s}!"),
    "homes": ("{s} is at home in {v}.", "{s} has lived in {v} for years.",
              "In {v} there is the house of {s}."),
    "owners": ("Look, that is {s}, called {v}.", "{v} is here. That is {s}."),
    "jobs": ("{s} has always been a {v}.", "As for {s}: a {v} and proud of it.",
             "{s} wanted to be a {v} and now it is so."),
    "places": ("The {s} must be in the {v}.", "In the {v} there is the {s}.",
               "If you want the {s}, go to the {v}."),
}  # fmt: skip
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
    """A question for the subject, in half of all cases one that only training knows."""
    if rng.random() < 0.5:
        return rng.choice(words.PATTERNS[pattern].ask).format(s=subject)
    wanted = rng.choice(_WANTED[pattern]).format(s=subject)
    ask = rng.choice(_FRAMES).format(w=wanted)
    return rng.choice(_BEFORE_ASK) + ask[0].upper() + ask[1:]


def not_told(pattern: str, subject: str) -> str:
    """The honest answer where nothing was said about the subject."""
    return _NOT_TOLD[pattern].format(s=subject)


def retold(rng: random.Random, fact: recall.Fact, changed: bool) -> recall.Fact:
    """The same fact in words that only training knows."""
    pattern, subject = fact.slot.split("|")
    p = words.PATTERNS[pattern]
    frames = p.change if changed else (*p.tell, *_TELL[pattern])
    told = rng.choice(frames).format(s=subject, v=fact.value)
    lead = rng.choice(_LEADS)
    if lead.endswith((", ", ": ", "And ")) and told.startswith(_CAPITAL):
        told = told[0].lower() + told[1:]
    return replace(fact, tell=lead + told + rng.choice(_TAILS), ask=question(rng, pattern, subject))
