"""The people and things that invented stories are about; data alone."""

from __future__ import annotations

from edgetok.evaluation.recall_patterns import word_list

GIRLS = word_list(
    "Lily Sue Anna Mia Lucy Sara Jane Amy Emma Ella Molly Daisy Kate Anne Mary Jill Sarah Emily "
    "Bella Rosie Clara Nina Ida Zoe Flora Tina Lena Grace Olive Stella Nora Vera Iris Gina Mona "
    "Ruby Poppy Luna Nala Lola Coco Pia Uma Wendy Hannah Julia Laura Karen"
)
BOYS = word_list(
    "Tim Tom Ben Max Sam Jack John Bob Billy Timmy Tommy Joe Mark Jim Leo Fred Peter Johnny Spot "
    "Paul Oscar Felix Hugo Finn Otto Carl Theo David Henry Noah Victor Jonas Ralf Walter Eric "
    "George Ivan Kevin Martin Milo Rex Rocky Buddy Toby Teddy Lucky Simba"
)
ANIMALS = word_list(
    "bunny rabbit cat dog bird bear fox frog fish duck mouse lion tiger monkey elephant horse cow "
    "pig owl bee ant butterfly squirrel turtle puppy kitten hedgehog wolf sheep goat chicken "
    "penguin deer bat snail crab whale dolphin parrot pony lamb zebra giraffe panda koala camel "
    "donkey goose swan mole beaver seal shark spider worm ladybug raccoon badger crow dinosaur"
)
FANTASY = word_list("dragon robot fairy ghost monster elf unicorn mermaid snowman dwarf troll")
# Grown up: no mother or father in their stories. The second letter says he or she.
ADULTS = (
    ("king", "m"), ("queen", "f"), ("farmer", "m"), ("farmer", "f"), ("pirate", "m"),
    ("pirate", "f"), ("wizard", "m"), ("witch", "f"), ("giant", "m"), ("baker", "m"),
    ("baker", "f"), ("teacher", "f"), ("teacher", "m"), ("doctor", "f"), ("doctor", "m"),
    ("knight", "m"), ("sailor", "m"), ("painter", "f"), ("driver", "m"), ("cook", "m"),
)  # fmt: skip
CHILDREN = (("girl", "f"), ("boy", "m"), ("princess", "f"), ("prince", "m"))
ADJECTIVES = word_list(
    "little little little small young brave kind shy clever happy funny friendly cheerful curious "
    "nice sweet tiny gentle quiet"
)
MOODS = word_list("kind happy nice friendly brave clever funny gentle cheerful polite")
COLOURS = word_list("red blue green yellow purple orange pink brown black white silver golden")
HOBBIES = (
    ("play", "playing"), ("run", "running"), ("jump", "jumping"), ("sing", "singing"),
    ("dance", "dancing"), ("draw", "drawing"), ("play games", "playing games"),
    ("look for stones", "looking for stones"), ("play with a ball", "playing with a ball"),
)  # fmt: skip
SKILLS = (
    "swim", "dance", "sing", "paint", "read", "write", "skate", "climb", "cook", "ride a bike",
    "fly a kite", "play the drum", "play the guitar", "jump over the river", "whistle", "sew",
    "catch a ball", "count to ten", "row a boat", "tell jokes", "juggle", "bake bread", "ski",
)  # fmt: skip
PARENTS = (("mother", "f"), ("mom", "f"), ("mommy", "f"), ("father", "m"), ("dad", "m"),
           ("grandmother", "f"), ("grandfather", "m"), ("aunt", "f"), ("uncle", "m"))  # fmt: skip
PLACES = (
    ("the park", "in the park", "to the park"),
    ("the forest", "in the forest", "to the forest"),
    ("the garden", "in the garden", "to the garden"),
    ("the beach", "on the beach", "to the beach"),
    ("the lake", "by the lake", "to the lake"),
    ("the river", "by the river", "to the river"),
    ("the sea", "by the sea", "to the sea"),
    ("a hill", "on the hill", "up the hill"),
    ("a mountain", "on the mountain", "up the mountain"),
    ("the meadow", "in the meadow", "to the meadow"),
    ("the village", "in the village", "to the village"),
    ("the town", "in the town", "to the town"),
    ("the farm", "on the farm", "to the farm"),
    ("a castle", "near the castle", "to the castle"),
    ("the market", "at the market", "to the market"),
    ("the school", "at school", "to school"),
    ("the woods", "in the woods", "to the woods"),
    ("a cave", "near the cave", "to the cave"),
    ("the zoo", "at the zoo", "to the zoo"),
    ("the playground", "on the playground", "to the playground"),
    ("the harbor", "at the harbor", "to the harbor"),
    ("the desert", "in the desert", "to the desert"),
    ("the valley", "in the valley", "to the valley"),
    ("an island", "on the island", "to the island"),
)
SPOTS = ("a bush", "a bench", "a big stone", "an old tree", "a box", "a wall", "a rose bush",
         "a pile of leaves", "the gate", "a basket", "a log", "the fence")  # fmt: skip
THINGS: dict[str, tuple[str, ...]] = {
    "toy": word_list(
        "ball doll kite car boat train drum puzzle bear robot bike balloon swing block guitar "
        "plane truck book wagon horn whistle puppet"
    ),
    "treasure": word_list(
        "key coin ring shell stone feather crown necklace medal star bell pearl map button gem "
        "bracelet flag trophy marble"
    ),
    "wear": word_list("hat scarf coat shirt cap dress sweater jacket belt bag backpack mask"),
    "tool": word_list(
        "lamp lantern map basket umbrella cup blanket mirror clock pillow candle bucket brush "
        "pencil spoon rope flashlight teddy watch bottle letter"
    ),
    "food": word_list(
        "apple cake cookie pie sandwich carrot pear banana muffin melon pizza peach pancake "
        "cupcake candy bun orange mango lemon tart"
    ),
    "baked": word_list("cake pie pizza cookie soup bread pancake muffin salad tart pudding stew"),
    "high": word_list("kite ball hat balloon scarf cap ribbon plane letter umbrella paper"),
    "build": word_list(
        "house boat castle tower bridge hut raft nest fence snowman swing tent cart ship robot"
    ),
    "plant": word_list("flower tree rose sunflower pumpkin tomato bean daisy tulip carrot melon"),
    "break": word_list("vase cup lamp plate mirror clock pot bowl glass bottle jar window"),
    "magic": word_list(
        "lamp ring stone key mirror shell book wand hat feather crown bell box flower star"
    ),
    "any": word_list(
        "lantern rainbow balloon kite bridge boat train clock cloud tower piano drum camera "
        "mirror volcano rocket spaceship moon star statue fountain flower tree cactus waterfall "
        "machine telescope bicycle bus tractor ship airplane ladder tent carpet violin trumpet "
        "nest egg feather shell pearl treasure map book letter picture mask puppet castle windmill "
        "lighthouse pumpkin mushroom cake candle snowflake icicle puddle river garden computer "
        "phone radio hammer wheel chair table sofa window door rope box basket bag hat crown cape "
        "boot glove sock button coin key ring necklace"
    ),
}
LOOKS: dict[str, tuple[str, ...]] = {
    "food": word_list("big sweet red yellow round little golden fresh yummy green"),
    "baked": word_list("big sweet little tasty round warm delicious"),
    "build": word_list("big small tall strong little red beautiful"),
    "plant": word_list("big beautiful tall red yellow lovely huge"),
    "magic": word_list("shiny old golden silver strange little magic"),
    "break": word_list("beautiful old blue white big pretty expensive"),
}
USUAL = word_list(
    "red blue green yellow pink purple orange white black brown big small little new old shiny "
    "pretty golden silver beautiful soft round tiny"
)
MASS = word_list("soup bread candy salad pudding stew paper")
