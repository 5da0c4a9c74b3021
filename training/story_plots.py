# ruff: noqa: E501 - a row of data stays on one line
"""Plots of invented stories, as data; `story_data.py` fills in the parts in braces.

A step is a line, the ways to say it are separated by ` | `, `?` begins a step that a short story
leaves out, and `A =food= B` is A where the thing is food and B otherwise.

    {H} hero, {k} its kind, {he} {him} {his};  {F} friend, {Fi} "a fox named Max", {fhe} ...
    {t} thing with its adjective, {at} with an article, {n} the noun;  {M} mother, father ...
    {p} place, {inp} "in the park", {top} "to the park";  {spot} where things are found
    {skill} {doing} what the hero likes to do, {skill2} what is learnt;  {adj} {mood} {col} {col2}
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot.

    Attributes:
        name: what the split goes by.
        things: kinds of things that it may be about.
        themes: what one may ask for instead of naming anybody.
        home: whether the hero has a parent in it.
        lesson: what is learnt, as an answer to "What did {H} learn?".
        steps: the text, see above.
    """

    name: str
    things: tuple[str, ...]
    themes: tuple[str, ...]
    lesson: tuple[str, ...]
    steps: str
    home: bool = False


OPENINGS = (
    "Once upon a time, there was {ak} named {H}.",
    "Once upon a time, there was {ak} called {H}.",
    "Once there was {ak} named {H}.",
    "There once was {ak}. {His} name was {H}.",
    "Long ago, {ak} named {H} lived near {p}.",
    "{H} was {ak}. {He} lived near {p}.",
    "Near {p} lived {ak} named {H}.",
    "In a small house lived {ak} named {H}.",
)
TRAITS = (
    "{H} loved to {skill}.",
    "{H} liked {doing} more than anything.",
    "Every day, {he} went out to {skill}.",
    "{He} was {mood} and had a big heart.",
    "Everybody liked {H} because {he} was so {mood}.",
    "{He} had a warm bed and {acol} blanket.",
    "{He} lived with {his} {M}.",
    "{He} often sang a little song.",
)
WEATHER = (
    "It was a sunny day.", "The sun was shining and the birds were singing.", "It was a cold day.",
    "The wind was blowing.", "It was a warm and quiet morning.", "The sky was blue.",
    "It was a lovely day.", "There were white clouds in the sky.",
)  # fmt: skip
ENDINGS = (
    "From that day on, {H} and {F} were best friends.",
    "They played together until the sun went down.",
    "{H} went to bed with a smile.",
    "That night, {H} slept very well.",
    "And they all lived happily ever after.",
    "It was the best day ever.",
    "{H} and {F} laughed all the way home.",
    "{H} never forgot that day.",
    "The end.",
)

PLOTS = (
    Plot(
        name="lost thing",
        things=("toy", "treasure", "wear", "tool"),
        themes=("a lost {n}", "helping", "friendship"),
        lesson=(
            "a good friend always helps",
            "it is better to look together",
            "you should take care of your things",
        ),
        steps="""
{H} had {at}. {He} took it everywhere. | {H}'s favourite thing was {at}. | {H} owned {at} and loved it very much.
One day, {H} went {top}. When {he} came home, the {n} was gone. | One day, {he} played {inp}. Then {he} saw that the {n} was not there. | One morning, {H} woke up and could not find the {n}.
?{He} looked under the bed and behind the door, but it was not there. | {He} looked here and there, but {he} could not find it. | {He} looked in every box and under every chair. There was no {n}.
{H} was very sad. | {H} began to cry. | {H} sat down on a stone and felt sad.
Then {Fi} came by. "What is wrong?" asked {F}. | Then {H} met {Fi}. "Why are you sad?" asked {F}. | {H} saw {Fi}. "Why do you cry?" asked {F}.
"I have lost my {n}," said {H}. | "My {n} is gone," said {H}. "I cannot find it anywhere." | "I cannot find my {t}," said {H}.
"Do not be sad. I will help you," said {F}. | "Let us look for it together," said {F}. | "Two can look better than one," said {F}.
?They looked {inp} for a long time. | They walked {top} and looked on the ground. | {H} looked on the left and {F} looked on the right.
At last, {F} saw something behind {spot}. It was the {t}! | "Look!" said {F}. There, under {spot}, was the {t}. | Then {H} saw something {col2} near {spot}. It was the {n}!
{H} was so happy that {he} hugged {F}. "Thank you!" {he} said. | "You found it! Thank you, {F}!" said {H}. | {H} took the {n} and jumped for joy. "Thank you for your help!"
""",
    ),
    Plot(
        name="too high",
        things=("high",),
        themes=("a tall tree", "helping", "working together"),
        lesson=(
            "together we can do more",
            "it is good to ask for help",
            "a friend can help you up",
        ),
        steps="""
One day, {H} played with {at} {inp}. | {H} got {at} and took it {top}. | One day, {H} went {top} with {at}.
Then a strong wind came. It took the {n} up into a tall tree. | The wind blew and the {n} flew up into a tree. | Suddenly, the {n} flew up and landed in a high tree.
{H} jumped and jumped, but {he} could not reach it. | {He} jumped as high as {he} could, but the {n} was too high. | {H} was too small to reach it.
?{He} tried with a long stick, but the stick broke. | {He} climbed on a stone, but that did not help. | {He} threw a stone, but the {n} did not move.
"Oh no! How will I get my {n} back?" said {H}. | {H} was sad. "My {n} is up there," {he} said. | "I need help," said {H}.
Just then, {Fi} came along. "I can help you," said {F}. | {Fi} heard {him}. "What happened?" asked {F}. {H} showed {fhim} the {n} in the tree. | {H} called {his} friend {F}, {afk}. {F} came at once.
"Stand on my back," said {F}. {H} climbed up and took the {n}. | {F} climbed up the tree. {Fhe} took the {n} and threw it down. | They put one box on top of another. {H} climbed up and reached the {n}.
"Hooray! We did it!" they said. | "Thank you, {F}! You are a good friend," said {H}. | {H} held the {n} tight and smiled.
Then they played with the {n} together. | After that, {H} let {F} play with the {t} too. | Now they both laughed and played.
""",
    ),
    Plot(
        name="sharing",
        things=("food", "toy"),
        themes=("sharing", "being kind", "friendship"),
        lesson=("sharing makes everybody happy", "it is more fun to share", "sharing is caring"),
        steps="""
One day, {H}'s {M} gave {him} {at}. | One day, {H} got {at} from {his} {M}. | {H} had {at}. It was all {his} own.
{H} was very happy. {He} took the {n} {top}. | "This is mine!" said {H}. {He} went {top} with it. | {He} sat down {inp} with the {n}.
There {he} met {Fi}. | Then {Fi} came. | Soon {Fi} walked by.
"What a nice {n}! Can I have some of it?" asked {F}. =food= "What a nice {n}! Can I play too?" asked {F}. | "May I have a little bit?" asked {F}. =food= "May I play with it too?" asked {F}.
"No! It is mine," said {H}. {F} looked sad and walked away. | {H} did not want to share. "No," {he} said. So {F} went away. | "No, I want it all for me," said {H}. {F} began to cry.
?{H} was alone with {his} {n}. It was not nice at all. | But {H} was not happy. It is no fun to be alone. | {H} looked at the {n}. {He} did not feel good.
{He} thought about {F}. "I was not kind," {he} said. | "I should have been nice to {F}," {H} thought. | {H} felt sorry. "{F} is my friend," {he} thought.
{H} ran after {F}. "I am sorry. Let us share the {n}," {he} said. | {He} went to find {F}. "Please come back. We can share," said {H}. | "Wait!" {H} called. "Half of it is for you!" =food= "Wait!" {H} called. "You can play with it too!"
{F} smiled. "Thank you, {H}!" | {F} was happy again. "That is very kind of you," {fhe} said. | "Thank you! You are a good friend," said {F}.
They ate the {n} together, and it was very good. =food= They played with the {n} all day long. | Together they ate the {t}. It tasted even better than before. =food= Together they played with the {t}. It was much more fun than before.
""",
        home=True,
    ),
    Plot(
        name="afraid",
        things=("tool", "toy"),
        themes=("being brave", "the dark", "the night"),
        lesson=(
            "it is fine to be afraid",
            "you can be brave when you have a friend",
            "the dark is not so bad",
        ),
        steps="""
But {H} had a secret. {He} was afraid of the dark. | There was one thing that {he} did not like: the dark. | When night came, {H} was always afraid.
One night, there was a strange noise. "What is that?" {he} asked. | One night, {H} saw a big shadow on the wall. | One night, {he} could not sleep because it was so dark.
{H} hid under the blanket. | {He} held {his} blanket tight. | {H} called for help in a small voice.
{His} friend {F}, {afk}, came to {him}. "What is wrong?" asked {F}. | {Fi} heard {him} and came. "Why are you afraid?" asked {F}. | Then {F} came. {F} was {afk} and {his} best friend.
"I am scared," said {H}. "It is so dark." | "There is a monster in my room!" said {H}. | "I do not like the dark," said {H}.
"I will stay with you. And look, I have {at}," said {F}. | {F} gave {him} {at}. "Hold this. It makes you brave," {fhe} said. | "Take my {t}. It always helps me," said {F}.
?{H} took the {n}. It was soft and nice to hold. =toy= {H} held the {n} in {his} hands. {He} felt a little better. | Together they looked around. There was no monster. It was only a coat on a chair. | They looked under the bed and behind the door. There was nothing there.
"See? There is nothing to fear," said {F}. | {F} smiled. "You are very brave, {H}." | "The dark is just the day with its eyes closed," said {F}.
{H} was not afraid anymore. | Now {H} felt brave. | {H} smiled and closed {his} eyes.
""",
    ),
    Plot(
        name="building",
        things=("build",),
        themes=("building {an}", "not giving up", "working together"),
        lesson=(
            "you should never give up",
            "together you can build anything",
            "you can always try again",
        ),
        steps="""
One day, {H} wanted to build {at}. | {H} had an idea. "I want to build {at}!" {he} said. | "I will make {at}," said {H} one day.
{He} went {top} and looked for wood and stones. | {He} looked for sticks and leaves {inp}. | {He} took a box, some wood and a rope.
{H} worked all morning. But then the {n} fell down. | It was hard work. When it was almost done, it broke. | {He} worked and worked. But a strong wind came and the {n} fell over.
"Oh no! All my work is gone," said {H}. | {H} was sad and wanted to stop. | "I cannot do it," said {H}. {He} sat down.
{Fi} saw it. "Do not give up," said {F}. | Then {Fi} came by. "Let me help you," said {F}. | {F}, {afk}, was {his} friend. "Let us try again," said {F}.
?"You hold the wood and I tie the rope," said {F}. | "We have to make it strong," said {F}. | First they made a plan. Then they began again.
They worked together. {H} held the wood and {F} put it in place. | {F} brought big stones, and {H} put them on top of each other. | They helped each other all day.
At last, the {n} was done. It was big and strong. | In the evening, the {t} was ready. | Now the {n} did not fall. It stood there and looked great.
"We did it!" said {H}. | "What a beautiful {n}!" they said. | {H} was very proud. "I could not do it without you, {F}," {he} said.
""",
    ),
    Plot(
        name="birthday",
        things=("toy", "treasure", "wear", "tool", "food", "any"),
        themes=("a birthday", "a gift", "a party", "a surprise"),
        lesson=(
            "a gift from the heart is the best",
            "giving is as nice as getting",
            "friends are the best gift",
        ),
        steps="""
One day, it was the birthday of {F}, {afk}. | {H} had a friend named {F}, {afk}. It was {fhis} birthday. | {F}, {afk}, had a birthday, and {H} was invited.
"What can I give to {F}?" {H} thought. | {H} wanted to find a good gift. | But {H} had no gift yet.
{He} went {top} to look for something nice. | {He} asked {his} {M} for help. | {He} thought about it for a long time.
?First {he} found a flower, but it was too small. | {He} had only a little money. | "It must be something special," {he} said.
Then {he} had an idea. {He} made {at}. | At last, {he} found {at}. "That is it!" {he} said. | Then {he} saw {at}. It was just right.
{He} put it in a box with {acol} bow. | {He} put it in {col} paper. | {He} put it in a bag and ran to the party.
"Happy birthday, {F}!" said {H}. | {H} gave the box to {F}. "This is for you!" | "Surprise!" said {H}.
{F} opened it. "{AT}! I love it!" {fhe} said. | {F} saw the {n} and jumped for joy. | "Oh, {at}! That is what I always wanted," said {F}.
?Then they ate cake and danced. | There was cake and music, and everybody was happy. | They played games and sang songs.
""",
        home=True,
    ),
    Plot(
        name="race",
        things=("treasure",),
        themes=("a race", "winning", "being kind"),
        lesson=(
            "being kind is better than winning",
            "it is not important to win",
            "helping is the best prize",
        ),
        steps="""
One day, there was a big race {inp}. The prize was {at}. | There was a race {inp}. The winner would get {at}. | "Who is the fastest?" they asked. So there was a race {inp}, and the prize was {at}.
{H} wanted to win. | "I will win the {n}!" said {H}. | {H} really wanted to have the {n}.
{F}, {afk}, was in the race too. | {Fi} wanted to win too. | {H} stood next to {Fi}.
"One, two, three, go!" Everybody ran. | They all ran as fast as they could. | The race began, and {H} ran very fast.
?{H} was first. {F} was just behind {him}. | First {F} was ahead, then {H}. | {H} ran past the tree and over the bridge.
Then {F} fell and hurt {fhis} leg. | Suddenly, {F} fell down. "Ouch!" {fhe} said. | But {F} fell over a stone and could not get up.
{H} stopped. {He} wanted to win, but {he} wanted to help more. | {H} looked at the finish and then at {F}. {He} turned around. | "I have to help {F}," {H} thought, and {he} went back.
"Are you hurt? Come, hold on to me," said {H}. | {He} helped {F} to stand up. "We go together," {he} said. | {H} gave {F} {his} hand. "I will help you."
They walked to the end together. They were the last. | They came in last, but everybody clapped for them. | Side by side they came to the finish.
But they got the {n} for being so kind. | "You two are the real winners," said the others and gave them the {n}. | "{H}, you have a good heart. The {n} is for you," said the old judge.
""",
    ),
    Plot(
        name="lost way",
        things=("treasure", "tool"),
        themes=("getting lost", "finding the way home", "a long walk", "an adventure"),
        lesson=(
            "you should not go too far away alone",
            "it is good to stay near home",
            "kind friends show you the way",
        ),
        steps="""
One day, {H} went for a walk {inp}. | One day, {H} wanted to see the world. {He} walked {top}. | One morning, {he} followed a butterfly {top}.
"Do not go too far," said {his} {M}. | {His} {M} said, "Come home before it is dark." | {He} did not tell anybody where {he} went.
On the way, {he} found {at}. "How pretty!" {he} said. | {He} saw {at} on the ground and picked it up. | {He} took {his} {t} along.
{H} walked and walked. Then {he} did not know the way home. | {He} went farther and farther. Soon {he} was lost. | When {he} looked around, {he} did not know where {he} was.
?It got dark, and {H} was cold. | "Where is my home?" {he} cried. | All the trees looked the same.
Then {he} met {Fi}. "Are you lost?" asked {F}. | {Fi} heard {him}. "Why do you cry?" asked {F}. | {H} saw a light. It was {Fi}. "Can I help you?" asked {F}.
"Yes, I want to go home," said {H}. | "I do not know the way," said {H}. | "I am lost. I want to go to my {M}," said {H}.
"I know the way. Follow me," said {F}. | "I know every path here," said {F}. "Come with me." | {F} took {him} by the hand. "This way," {fhe} said.
?They walked over a bridge and up a hill. | They went past the big tree and along the river. | {F} told {him} funny stories on the way.
Soon {H} saw {his} house. {His} {M} hugged {him}. | At last, they came to the house. "There you are!" said {his} {M}. | {His} {M} was so glad to see {him}.
{H} gave {F} the {n} to say thank you. | "Thank you, {F}," said {H}. "This {n} is for you." | {H} showed {his} {M} the {n} and told {Mhim} all about {F}.
""",
        home=True,
    ),
    Plot(
        name="baking",
        things=("baked",),
        themes=("baking {an}", "cooking", "helping"),
        lesson=(
            "food tastes best with friends",
            "it is good to ask for help",
            "cooking together is fun",
        ),
        steps="""
One day, {H} wanted to make {at}. | "Today I will make {at}," said {H}. | {H} was hungry. {He} wanted to make {at}.
{He} took a big bowl and some flour. | {He} put milk and flour in a bowl. | {He} went to the kitchen and looked for everything.
But there was no sugar. | But there were no eggs left. | "Oh no, there is no butter!" {he} said.
{H} went to {Fi}. | {H} knocked on the door of {Fi}. | So {he} went to see {Fi}.
"Can you help me? I want to make {at}," said {H}. | "Hello, {F}! I need something for my {n}," said {H}. | "Do you have some for me? It is for {at}," asked {H}.
"Of course! I will come with you," said {F}. | "Yes, and I can help you," said {F}. | {F} gave {him} what {he} needed. "May I help?" {fhe} asked.
They mixed everything together. | {H} mixed, and {F} read the book. | There was flour on the floor and on {F}'s nose. They laughed.
?They put it in the oven and waited. | Soon the whole house smelled good. | "Is it ready?" asked {F}. "Not yet," said {H}.
Then the {n} was ready. It was warm and sweet. | At last, the {t} was done. It looked very good. | When the {n} was ready, they put it on the table.
They ate it together. "This is the best {n} ever!" said {F}. | {H} gave the biggest part to {F}. | "Yum!" they both said.
""",
    ),
    Plot(
        name="new friend",
        things=("toy", "food"),
        themes=("making friends", "a new friend", "friendship", "being kind"),
        lesson=(
            "it is easy to make a friend",
            "a kind word can change a day",
            "everybody needs a friend",
        ),
        steps="""
One day, {H} went {top}. {He} had {at} with {him}. | {H} was {inp} with {his} {t}. | One morning, {H} took {his} {t} and went {top}.
There {he} saw {Fi}. {F} was all alone. | {Fi} sat there alone. | Near {spot} sat {Fi}. {Fhe} looked sad.
"Hello! My name is {H}. What is your name?" asked {H}. | "Hi! I am {H}. Who are you?" {he} asked. | {H} went closer. "Hello, I am {H}," {he} said.
"I am {F}," said {F}. "I am new here." | "My name is {F}," {fhe} said in a small voice. | "I am {F}. I have no friends here," said {F}.
?{F} was very shy. | "Nobody wants to play with me," said {F}. | {H} thought about what to do.
"Would you like some of my {n}?" asked {H}. =food= "Would you like to play with my {n}?" asked {H}. | "Here, I have {at}. It is for both of us," said {H}. | "Look, this is my {t}. Do you want to try it?" asked {H}. =toy= "Look, this is my {t}. We can have it together," said {H}.
{F} smiled. "Yes, please!" | "Oh, yes! Thank you!" said {F}. | {F}'s eyes got big. "I would love to," {fhe} said.
They ate and talked for a long time. =food= They played and laughed for a long time. | {F} told {H} about {fhis} old home. | They had so much fun together.
"Will you come back tomorrow?" asked {H}. "Yes!" said {F}. | "You are my first friend here," said {F}. | "Now we are friends," said {H}.
""",
    ),
    Plot(
        name="sick friend",
        things=("food", "wear", "tool"),
        themes=("a sick friend", "helping", "being kind", "caring"),
        lesson=(
            "friends take care of each other",
            "a visit can make you feel better",
            "kindness is the best medicine",
        ),
        steps="""
{H} had a friend named {F}, {afk}. They played every day. | Every day, {H} played with {F}, {afk}. | {H}'s best friend was {Fi}.
But one day, {F} did not come. | One day, {F} was not there. "Where is {F}?" asked {H}. | One morning, {H} waited {inp}, but {F} did not come.
{H} went to {F}'s house. {F} was in bed. | {He} ran to the house of {F} and knocked. {F} was sick. | So {H} went to see {F}. {F} was in bed with a red nose.
"I am sick. I cannot play," said {F}. | "I do not feel well," said {F}. | "My head is hot," said {F}.
"Poor {F}! I will help you," said {H}. | {H} wanted to make {fhim} happy. | "Do not worry. I will take care of you," said {H}.
{He} ran home and got {at}. | {He} went {top} and came back with {at}. | {He} thought for a while. Then {he} brought {at}.
"This is for you," said {H}. | {He} gave the {n} to {F}. | "Look, I have {at} for you."
?Then {H} told {fhim} a funny story. | {He} sat by the bed and sang a song. | They looked at a book together.
{F} ate it all up and felt better. =food= {F} smiled and felt better. | "You are so kind," said {F}. | {F} slept well that night.
The next day, {F} was well again. | Soon {F} could play outside again. | After two days, {F} was strong again. "Thank you, {H}!" {fhe} said.
""",
    ),
    Plot(
        name="seed",
        things=("plant",),
        themes=("a seed", "a garden", "waiting"),
        lesson=(
            "good things take time",
            "you need to wait for good things",
            "with care everything grows",
        ),
        steps="""
One day, {H} found a small seed {inp}. | {H}'s {M} gave {him} a little seed. | One day, {H} got a seed from {his} {M}.
"What will it be?" {he} asked. | "I will plant it," said {H}. | {He} looked at it. It was very small.
{He} put it in the ground and gave it water. | {He} made a hole in the garden and put the seed in. | {H} planted the seed in a pot.
The next day, {he} looked, but there was nothing. | Every morning, {he} looked at it. Nothing happened. | {He} waited and waited, but nothing came up.
"Why does it not grow?" {H} asked {Fi}. | {H} was sad. {He} told {Fi} about it. | {Fi} came to look. "It does not grow," said {H}.
"You have to wait," said {F}. "And give it water every day." | "Good things take time," said {F}. | {F} smiled. "It is still sleeping. Wait a little," {fhe} said.
?So {H} gave it water every day, and the sun was warm. | {H} and {F} gave it water together. | It rained, and then the sun came out again.
Then one morning, there was something green! | One day, {H} saw a small green leaf. | At last, a little plant came out of the ground.
It grew and grew. Soon it was {at}! | It got bigger every day. In summer, it was {at}. | After some weeks, there was {at}.
"Look, {F}! We did it!" said {H}. | {H} was very proud of {his} {n}. | {H} showed the {n} to {F}. They danced around it.
""",
        home=True,
    ),
)
