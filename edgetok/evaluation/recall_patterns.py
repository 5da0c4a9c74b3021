"""Words and wordings of recall cases, as data.

Fields and constants named `unseen` are for evaluation; training never draws from them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


def word_list(text: str) -> tuple[str, ...]:
    """Return the words of a text, which keeps long lists readable here."""
    return tuple(text.split())


NAMES = word_list(
    "Ana Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olive Paul "
    "Rosa Sam Tina Victor Wendy Max Lucy Oscar Nina Peter Sara Tom Lily Tim Sue Anna "
    "Bob Jane Mark Ella Finn Gina Hugo Iris Jonas Karen Lena Mona Nora Otto Pia Ralf "
    "Stella Theo Uma Vera Walter Zoe Amy Bella Carl Daisy Eric Flora George Hannah Ivan "
    "Julia Kevin Laura Martin Nelly"
)
PET_NAMES = word_list(
    "Rex Bella Milo Luna Coco Max Spot Fluffy Rocky Daisy Buddy Simba Nala Oscar Ruby "
    "Toby Lola Teddy Rosie Jack Poppy Biscuit Pepper Ginger Shadow Snowy Tiger Honey "
    "Lucky Bubbles"
)
WORDS: dict[str, tuple[str, ...]] = {
    "colour": word_list("red blue green yellow purple orange pink brown black white grey gold"),
    "city": word_list(
        "Paris London Berlin Rome Oslo Madrid Vienna Prague Dublin Lisbon Cairo Tokyo "
        "Boston Chicago Sydney Athens Warsaw Zurich Hamburg Milan Denver Seattle Toronto "
        "Delhi"
    ),
    "fruit": word_list("apple banana cherry grape lemon mango melon peach pear plum kiwi berry"),
    "animal": word_list(
        "cat dog horse rabbit bear fox owl lion tiger frog duck mouse elephant monkey"
    ),
    "food": word_list("pizza soup pasta rice bread cheese cake salad fish pancakes beans eggs"),
    "sport": word_list("football tennis swimming running dancing hockey chess skating golf"),
    "drink": word_list("water milk tea coffee juice cocoa lemonade soda"),
    "job": word_list("teacher doctor baker farmer painter pilot singer driver cook writer"),
    "place": word_list(
        "kitchen garden drawer box bag car cupboard basket attic cellar bathroom garage"
    ),
    "day": word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One way of telling and asking a fact: `{s}` is the subject, `{v}` the value."""

    subjects: tuple[str, ...]
    value: str
    tell: tuple[str, ...]
    ask: tuple[str, ...]
    answer: str
    unseen_tell: tuple[str, ...]
    unseen_ask: tuple[str, ...]
    change: tuple[str, ...] = ()


_PEOPLE = word_list(
    "sister brother mother father friend aunt uncle cousin teacher neighbour boss "
    "doctor grandmother grandfather daughter son wife husband"
)
_PETS = word_list("dog cat horse rabbit parrot hamster turtle goldfish pony kitten puppy")
_CODES = tuple(
    [
        "locker code",
        "house number",
        "bus number",
        "room number",
        "door code",
        "phone code",
        "bike number",
        "safe code",
        "ticket number",
        "lucky number",
        "seat number",
        "alarm code",
    ]
)
_NAMED = Pattern(
    subjects=_PEOPLE,
    value="name",
    tell=(
        "My {s} is called {v}.",
        "My {s}'s name is {v}.",
        "I have a {s} called {v}.",
        "I have a {s} named {v}.",
        "The name of my {s} is {v}.",
        "I named my {s} {v}.",
        "{v} is the name of my {s}.",
        "{v} is my {s}.",
        "They call my {s} {v}.",
        "Here comes my {s} {v}.",
        "I have a {s}. The name is {v}.",
        "My {s} is very nice and is called {v}.",
        "I have a {s}, and the name is {v}.",
        "Meet {v}, my {s}.",
    ),
    ask=(
        "What is my {s} called?",
        "What is my {s}'s name?",
        "What is the name of my {s}?",
        "Do you remember my {s}'s name?",
        "Do you know what my {s} is called?",
        "Tell me the name of my {s}.",
        "Could you say my {s}'s name?",
        "Now what is my {s} called?",
        "Do you still know my {s}'s name?",
        "Please give me the name of my {s}.",
        "I would like to know my {s}'s name.",
        "Which name does my {s} have?",
        "What was my {s}'s name again?",
        "What did I say my {s} is called?",
        "How do I call my {s}?",
        "I forgot how my {s} is called.",
    ),
    answer="Your {s} is called {v}.",
    unseen_tell=("This is about my {s}: the name is {v}.", "You can call my {s} {v}."),
    unseen_ask=("Can you tell me my {s}'s name?", "So how is my {s} called?"),
    change=(
        "My {s} is now called {v}.",
        "My {s} has a new name: {v}.",
        "I was wrong, my {s} is called {v}.",
    ),
)
PATTERNS: dict[str, Pattern] = {
    "self": Pattern(
        subjects=("name",),
        value="name",
        tell=("My {s} is {v}.", "Hello, my {s} is {v}.", "{v} is my {s}.", "Hi! My {s} is {v}."),
        ask=(
            "What is my {s}?",
            "Do you remember my {s}?",
            "Do you know my {s}?",
            "Who am I?",
            "What was my {s} again?",
            "Tell me my {s}.",
        ),
        answer="Your {s} is {v}.",
        unseen_tell=("Please write down my {s}, which is {v}.",),
        unseen_ask=("Can you tell me my {s}?",),
        change=("My {s} is now {v}.", "I was wrong, my {s} is {v}."),
    ),
    "people": _NAMED,
    "pets": replace(_NAMED, subjects=_PETS, value="pet"),
    "codes": Pattern(
        subjects=_CODES,
        value="number",
        tell=(
            "My {s} is {v}.",
            "The {s} is {v}.",
            "Remember that my {s} is {v}.",
            "{v} is my {s}.",
            "Write it down: my {s} is {v}.",
            "For the {s} I use {v}.",
            "Here is my {s}: {v}.",
            "I chose a {s}, namely {v}.",
            "There is a {s} for me: {v}.",
            "They gave me {v} as my {s}.",
        ),
        ask=(
            "What is my {s}?",
            "What is the {s}?",
            "Do you remember my {s}?",
            "Tell me my {s}.",
            "I forgot my {s}. What is it?",
            "Could you say my {s}?",
            "Please give me my {s}.",
            "I need my {s}.",
            "What was my {s} again?",
            "I would like to know the {s}.",
            "Which {s} did I tell you?",
        ),
        answer="Your {s} is {v}.",
        unseen_tell=("I was given a {s}, it is {v}.",),
        unseen_ask=("Can you tell me my {s}?", "Which {s} do I have?"),
        change=("My {s} is now {v}.", "I have a new {s}: {v}.", "I was wrong, my {s} is {v}."),
    ),
    "favourites": Pattern(
        subjects=("colour", "city", "fruit", "animal", "food", "sport", "drink", "day"),
        value="{s}",
        tell=(
            "My favourite {s} is {v}.",
            "The {s} I like most is {v}.",
            "I think the best {s} is {v}.",
            "I like {v}, it is my favourite {s}.",
            "I say {v} is the best {s}.",
            "As a {s} I always take {v}.",
            "Of all, my favourite {s} must be {v}.",
            "Nothing beats {v} as a {s}.",
        ),
        ask=(
            "What is my favourite {s}?",
            "Which {s} do I like most?",
            "Do you remember my favourite {s}?",
            "What {s} do I like best?",
            "Could you say my favourite {s}?",
            "Now what is my favourite {s}?",
            "Please give me my favourite {s}.",
            "What was my favourite {s} again?",
            "I would like to know my favourite {s}.",
            "Which {s} did I say I like?",
        ),
        answer="Your favourite {s} is {v}.",
        unseen_tell=("If you ask me for my favourite {s}, it is {v}.",),
        unseen_ask=("Can you tell me my favourite {s}?", "So which {s} is my favourite?"),
        change=("Now my favourite {s} is {v}.", "I changed my mind, my favourite {s} is {v}."),
    ),
    "homes": Pattern(
        subjects=NAMES,
        value="city",
        tell=(
            "{s} lives in {v}.",
            "{s} has a house in {v}.",
            "The home of {s} is in {v}.",
            "{v} is where {s} lives.",
            "You can visit {s} in {v}.",
            "The city of {s} is {v}.",
            "{s} has a flat in the city of {v}.",
        ),
        ask=(
            "Where does {s} live?",
            "In which city does {s} live?",
            "Do you know where {s} lives?",
            "What city does {s} live in?",
            "Could you say where {s} lives?",
            "Please give me the city of {s}.",
            "Where did I say {s} lives?",
            "Where is {s} at home?",
            "Where is the house of {s}?",
            "Now where does {s} live?",
            "Which city is home to {s}?",
            "I would like to visit {s}. Where?",
        ),
        answer="{s} lives in {v}.",
        unseen_tell=("The city where you find {s} is {v}.",),
        unseen_ask=("Can you tell me where {s} lives?", "So where is the home of {s}?"),
        change=("{s} moved to {v}.", "Now {s} lives in {v}."),
    ),
    "owners": Pattern(
        subjects=tuple(f"{n}'s {p}" for n in NAMES[:32] for p in _PETS[:6]),
        value="pet",
        tell=(
            "{s} is called {v}.",
            "The name of {s} is {v}.",
            "{s} has the name {v}.",
            "{v} is the name of {s}.",
            "They call {s} {v}.",
        ),
        ask=(
            "What is {s} called?",
            "What is the name of {s}?",
            "Do you remember the name of {s}?",
            "Tell me the name of {s}.",
            "Could you say the name of {s}?",
            "Please give me the name of {s}.",
            "What was {s} called again?",
            "Which name does {s} have?",
            "I forgot how {s} is called.",
        ),
        answer="{s} is called {v}.",
        unseen_tell=("Everybody calls {s} {v}.",),
        unseen_ask=("Can you tell me the name of {s}?", "So how is {s} called?"),
        change=("{s} is now called {v}.", "{s} has a new name: {v}."),
    ),
    "jobs": Pattern(
        subjects=NAMES,
        value="job",
        tell=(
            "{s} is a {v}.",
            "{s} works as a {v}.",
            "{s} has the job of a {v}.",
            "{s} learned to be a {v}.",
            "Ask {s}, who is a {v}.",
            "The job of {s} is {v}.",
        ),
        ask=(
            "What is the job of {s}?",
            "What does {s} work as?",
            "Do you know the job of {s}?",
            "Could you say the job of {s}?",
            "What was the job of {s} again?",
            "Which job does {s} have?",
            "Please give me the job of {s}.",
        ),
        answer="{s} is a {v}.",
        unseen_tell=("{s} earns money as a {v}.",),
        unseen_ask=("Can you tell me the job of {s}?",),
        change=("{s} is now a {v}.", "{s} has a new job as a {v}."),
    ),
    "places": Pattern(
        subjects=word_list("key ball book hat phone doll watch coin letter spoon ring map"),
        value="place",
        tell=(
            "The {s} is in the {v}.",
            "I put the {s} in the {v}.",
            "You find the {s} in the {v}.",
            "Look in the {v} for the {s}.",
            "The {s} lies in the {v}.",
            "I saw the {s} in the {v}.",
            "Somebody put the {s} in the {v}.",
        ),
        ask=(
            "Where is the {s}?",
            "Where did I put the {s}?",
            "Do you know where the {s} is?",
            "Could you say where the {s} is?",
            "I need the {s}. Where is it?",
            "Where do I find the {s}?",
            "Now where is the {s}?",
            "In what place is the {s}?",
            "Where did I say the {s} is?",
            "Please find the {s}.",
        ),
        answer="The {s} is in the {v}.",
        unseen_tell=("I left the {s} in the {v}.",),
        unseen_ask=("Can you tell me where the {s} is?", "So where can I find the {s}?"),
        change=("I moved the {s} to the {v}.", "Now the {s} is in the {v}."),
    ),
}
PREFIXES = (
    "",
    "",
    "",
    "",
    "By the way, ",
    "Please remember: ",
    "You should know: ",
    "Well, ",
    "Guess what? ",
    "You know what? ",
    "Listen: ",
    "Another thing: ",
    "Shall I tell you? ",
)
UNSEEN_PREFIXES = ("", "Oh, and one more thing: ", "Did I say it? ")
NOTED = ("I will remember that.", "Okay, I will remember it.", "Thank you for telling me.", "Nice!")
ASK_VALUE = (
    "What is the value of {s}?",
    "Which value does {s} have?",
    "Tell me the value of {s}.",
    "Could you say the value of {s}?",
    "Please give me the value of {s}.",
    "What value belongs to {s}?",
    "What stands next to {s}?",
    "Look up {s}.",
    "I need the value of {s}.",
    "What is {s}?",
)
ASK_VARIABLE = (
    "What is {s}?",
    "Tell me {s}.",
    "How much is {s}?",
    "What is the value of {s}?",
    "Please give me {s}.",
    "What does {s} equal?",
    "What value has {s}?",
    "Now say {s}.",
)
UNSEEN_ASK_VARIABLE = ("Which value does {s} have?", "Can you tell me {s}?")
UNSEEN_ASK_VALUE = ("Can you tell me the value of {s}?",)
LISTS = ("Here is a list:", "Please remember this list:", "These are the values:")
UNSEEN_LISTS = ("Take a look at the following entries:",)
PASS_KEYS = (
    "The pass key is {v}. Remember it. {v} is the pass key.",
    "The pass key is {v}.",
    "Remember the pass key: {v}.",
    "{v} is the pass key.",
    "Here is the pass key: {v}.",
    "Keep in mind that the pass key is {v}.",
    "The number {v} is the pass key, do not lose it.",
    "The pass key of this text is {v}.",
    "Somewhere here is a pass key: {v}.",
    "It is {v}, the pass key.",
    "There is a number to remember: {v}. It is the pass key.",
    "You may need the pass key later, so here it is, {v}.",
)
UNSEEN_PASS_KEYS = ("There is a pass key here, and it is {v}. Do not forget it.",)
ASK_PASS_KEY = (
    "What is the pass key?",
    "Tell me the pass key.",
    "Do you remember the pass key?",
    "Could you say the pass key?",
    "Do you know the pass key?",
    "Now what is the pass key?",
    "Which pass key did you read?",
    "Now say the pass key.",
    "What number was the pass key?",
    "Please give me the pass key.",
    "What was the pass key?",
    "I need the pass key.",
    "Which number is the pass key?",
    "Find the pass key.",
)
UNSEEN_ASK_PASS_KEY = ("Can you tell me the pass key?", "Which pass key was in the text?")
CHATTER = (
    "Tell me something.", "What happened next?", "Go on.", "Tell me more.", "And then?",
    "What did you see today?", "Tell me about your day.", "Please continue.",
)  # fmt: skip
WHO = (
    "The old man", "A little girl", "The cat", "My neighbour", "The small bird", "A boy",
    "The farmer", "The happy dog", "A young fox", "The teacher", "The wind", "A big bear",
)  # fmt: skip
DID = (
    "walked to", "looked at", "went around", "played near", "sat down by", "ran past", "saw",
    "liked", "found", "slept near", "sang a song by", "talked about",
)  # fmt: skip
WHAT = (
    "the river", "the old tree", "a red house", "the green hill", "the park", "a small boat",
    "the garden gate", "the long road", "a quiet lake", "the tall tower", "the market", "the sea",
)  # fmt: skip
HOW = (
    "in the morning", "after lunch", "with a smile", "for a long time", "because it was warm",
    "while the sun was shining", "before it got dark", "and felt happy", "and was not afraid",
    "when the rain stopped", "every day", "all alone",
)  # fmt: skip
