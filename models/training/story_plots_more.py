# ruff: noqa: E501 - a row of data stays on one line
"""More plots, as in `story_plots.py`; data alone."""

from __future__ import annotations

from story_plots import Plot

MORE_PLOTS = (
    Plot(
        name="noise",
        things=("any",),
        themes=("a strange noise", "the night", "being brave"),
        lesson=(
            "strange things are not always bad",
            "it is good to look before you are afraid",
            "new friends can come at night",
        ),
        steps="""
One night, {H} heard a noise. | One night, there was a strange noise outside. | {H} was in bed when {he} heard something.
"Tap, tap, tap," it went. | "Bump, bump!" it went. | It came from the garden.
"Who is there?" asked {H}. Nobody answered. | {H} was a little afraid, but {he} got up. | "I will go and look," said {H}.
{He} took {his} lamp and went outside. | {He} opened the door very slowly. | {H} looked out of the window.
?The moon was big and round. | It was dark and the wind was cold. | {He} walked on quiet feet.
There, behind {spot}, sat {Fi}. | It was {Fi}! | Something moved near {spot}. It was {Fi}.
"I am sorry that I made so much noise," said {F}. | "Please do not be afraid," said {F}. | "Hello," said {F}. "Did I wake you?"
"I am looking for {at}," said {F}. "Have you seen one?" | "I wanted to show you {at}," said {F}. | "I came to ask for {at}," said {F}.
"I know where there is one. Come with me," said {H}. | {H} laughed. "I know what to do," {he} said. | "I can help you," said {H}.
Together they went {top}. There it was: {at}! | {H} took {fhim} {top}, and they looked at {at} in the light of the moon. | They walked {top}. "There is your {n}!" said {H}.
"Thank you," said {F}. "You are very brave." | {F} was so happy that {fhe} danced. | "Good night, {H}, and thank you," said {F}.
""",
    ),
    Plot(
        name="truth",
        things=("break",),
        themes=("telling the truth", "honesty", "saying sorry"),
        lesson=(
            "it is good to tell the truth",
            "it is right to say sorry",
            "the truth makes you feel light",
        ),
        steps="""
{H}'s {M} had {at}. {H} was not allowed to touch it. | In the house there was {at}. It was the {n} of {his} {M}. | There was {at} on the table. "Do not play near it," said {his} {M}.
One day, {H} was {doing} inside. | One day, {H} wanted to look at it. | One day, {H} ran through the room.
Crash! The {n} fell down and broke. | Then {he} bumped into the table, and the {n} fell on the floor. It broke. | The {n} fell to the floor. Crash!
"Oh no!" said {H}. "What shall I do?" | {H} was afraid. {He} put the {n} behind {spot}. | {H}'s heart went boom, boom.
?{He} thought about saying nothing. | "Nobody will know," {he} thought. But {he} felt bad. | {He} could not eat and {he} could not play.
{His} friend {F}, {afk}, saw {him}. "You should tell the truth," said {F}. | {H} told {Fi} about it. "Tell your {M}," said {F}. "I will come with you." | "What is wrong?" asked {Fi}. {H} told {fhim} everything. "Be brave and say it," said {F}.
So {H} went to {his} {M}. "I broke your {n}. I am sorry," {he} said. | {H} took a deep breath. "I broke the {n}," {he} told {his} {M}. | "It was me," {H} said to {his} {M}. "I am very sorry."
{His} {M} looked at {him}. "Thank you for telling the truth," {Mhe} said. | {His} {M} was sad, but then {Mhe} smiled. "You are honest. That is more important than the {n}." | "It was only {an}," said {his} {M}. "I am proud that you told me."
Together they put the {n} back together. | They cleaned the floor together. | {H} and {F} made a new {n} for {Mhim}.
""",
        home=True,
    ),
    Plot(
        name="rescue",
        things=("tool", "food"),
        themes=("helping", "a rescue", "being brave", "kindness"),
        lesson=(
            "even the small can help the big",
            "when you help others, they will help you",
            "kindness comes back to you",
        ),
        steps="""
One day, {H} walked {inp}. | {H} was on the way {top} one day. | One day, {H} took {at} and went {top}.
Suddenly, {he} heard, "Help! Help!" | There {he} heard a small voice. "Please help me!" | Then {he} heard somebody cry.
It was {Fi}. {Fhe} was stuck in the mud. | {Fi} was stuck under {spot}. | {Fi} was in a deep hole and could not get out.
"Do not be afraid. I will help you," said {H}. | "I am here," said {H}. "Hold on!" | {H} was not afraid. "Wait, I will get you out," {he} said.
{H} pulled and pulled. At last, {F} was free. | {He} took a long stick and pulled {F} out. | {He} got a rope and pulled with all {his} might. {F} was safe.
"Thank you! You saved me," said {F}. | "I will never forget it," said {F}. | "How kind you are!" said {F}. "Maybe one day I can help you."
?{H} laughed. "How can you help me?" {he} asked. | {H} smiled and went on. | They said goodbye and went home.
Some days later, {H} lost {his} {t}. | The next week, {H} could not find {his} {t}. | One evening, {H} came home without {his} {n}. It had fallen into the river.
{F} heard about it and came. {Fhe} had the {n}! | Then {F} came running. "I have found your {n}!" | {F} looked for it all night and found it. "Here is your {n}," {fhe} said.
"Now you have helped me," said {H}. | {H} was so happy. "Thank you, {F}!" | "You are small, but you are a great friend," said {H}.
""",
    ),
    Plot(
        name="wish",
        things=("magic",),
        themes=("magic", "a wish", "a magic {n}", "a dream"),
        lesson=(
            "the best wish is one for others",
            "you need no magic to be happy",
            "it is good to think of others",
        ),
        steps="""
One day, {H} found {at} {inp}. | One day, {H} saw something shine behind {spot}. It was {at}. | Under {spot}, {H} found {at}.
{He} picked it up. Suddenly, it began to shine. | When {he} touched it, it began to speak. | {H} cleaned it with {his} hand. There was a bright light.
"I am magic. You have one wish," said the {n}. | "Make a wish," said a soft voice. | It was a magic {n}! "I can give you one wish," it said.
{H} thought and thought. "I could have a hundred cakes," {he} said. | "I want to be rich," {he} thought at first. | "I could wish for a big castle," {he} thought.
Then {he} saw {Fi}. {F} was cold and hungry. | But then {Fi} came. {F} was sad because {fhe} had no home. | Just then, {Fi} walked by. {F} could not walk well.
?{H} looked at {F} and then at the {n}. | "Poor {F}," thought {H}. | {H} forgot the cakes and the castle.
"I wish that {F} is happy," said {H}. | "I wish that {F} has all that {fhe} needs," said {H}. | "Please help {F}," {he} said.
There was a flash of light. {F} jumped up and laughed. | The {n} began to glow. {F} was happy and strong. | Stars danced in the air, and {F} smiled.
"You gave your wish to me?" asked {F}. "Thank you!" | "Nobody was ever so kind to me," said {F}. | {F} hugged {H}. "You are the best friend in the world."
""",
    ),
    Plot(
        name="rain",
        things=("food",),
        themes=("a picnic", "the rain", "a rainy day"),
        lesson=(
            "a rainy day can be fun too",
            "you can be happy in any weather",
            "the best days are those with friends",
        ),
        steps="""
One day, {H} wanted to have a picnic {inp}. | "Let us have a picnic {inp}," said {H}. | {H} planned a picnic {inp} with {Fi}.
{He} put {at} and some juice in a basket. | {He} packed {at} and a blanket. | {He} made {at} for it.
{F}, {afk}, came along. They were very happy. | {He} met {F}, {afk}, and they walked {top}. | {F} was {afk} and {his} best friend. {Fhe} was hungry.
But then the sky got dark. | Suddenly, big clouds came. | When they sat down, a drop fell on {H}'s nose.
It began to rain. Everything got wet. | Drip, drop! It rained and rained. | "Oh no, it is raining!" said {F}.
?They ran as fast as they could. | {H} was sad. "Our picnic is over," {he} said. | They hid under a big tree, but it was too wet.
"I have an idea," said {F}. "We can have the picnic at home." | "Come to my house," said {F}. | "We do not need the sun for a picnic," said {F}.
They put the blanket on the floor and sat on it. | They made a tent with a blanket and two chairs. | Inside it was warm and dry.
They ate the {n} and listened to the rain. | The {t} was so good. | They ate the {t} and told each other stories.
?Then the sun came out, and there was a rainbow. | After the rain, they jumped in the puddles. | "Look, a rainbow!" said {H}.
"This was the best picnic ever," said {F}. | "I like the rain now," said {H}. | They were happy that it had rained.
""",
    ),
    Plot(
        name="learning",
        things=("wear", "treasure"),
        themes=("learning to {skill2}", "practice", "not giving up"),
        lesson=(
            "you have to practice to learn something",
            "you should never give up",
            "everybody starts small",
        ),
        steps="""
But {H} had one wish. {He} wanted to learn to {skill2}. | {H} could do many things, but {he} could not {skill2}. | "I want to learn to {skill2}," said {H} one day.
{He} went {top} to try it. | {He} tried it {inp}. | {He} put on {his} {t} and tried. =wear= {He} took {his} {t} for luck and tried.
But it was too hard. {H} fell down. | The first time, it went all wrong. | {He} tried once, and {he} tried twice. It did not work.
?"I will never learn it," {he} said. | Some others laughed at {him}. | {H} wanted to go home.
{Fi} saw {him}. "I can show you how to {skill2}," said {F}. | Then {Fi} came. "Do not give up," said {F}. | {F}, {afk}, was very good at it. "I will teach you," said {F}.
"First go slowly," said {F}. "Then faster." | "Look at me and do the same," said {F}. | "Do not be afraid. I hold you," said {F}.
They practiced every day. | {H} tried again and again. | Each day, it was a little better.
Then one day, {H} could {skill2} all alone! | At last, it worked. {H} could {skill2}! | After a week, {he} could {skill2} as well as {F}.
"Look at me!" {H} called. "I can {skill2}!" | {H} was very proud. | "I can do it!" {he} said and laughed.
{F} gave {him} {at} because {he} had tried so hard. | "Well done!" said {F}. | {F} clapped {fhis} hands. "I knew you could do it."
""",
    ),
    Plot(
        name="first sight",
        things=("any",),
        themes=("{an}", "something new", "a surprise"),
        lesson=(
            "there is always something new to see",
            "it is good to ask questions",
            "the world is full of wonders",
        ),
        steps="""
One morning, there was {at} {inp}. Nobody knew where it came from. | Somebody had put {at} {inp}, and {H} was the first to see it. | In the middle of the way stood {at}.
{H} had never seen {an} before. | "What is that?" asked {H}. | {He} stopped and looked at the {n}. It was so {adj}.
{He} went closer. "Can I touch it?" {he} asked. | {H} walked around it once, and then once more. | {He} was a little afraid, but {he} wanted to know more.
{Fi} was there too. "This is {an}," said {F}. | "That is {an}," said {Fi}. | {He} asked {Fi}. "That is {an}," said {F}. "Do you like it?"
"It is so {adj}," said {H}. | "I like the {n}," said {H}. | "Wow, {at}! I want to tell everybody," said {H}.
?{F} told {him} everything about the {n}. | They sat down and looked at it for a long time. | {H} asked many questions, and {F} knew all the answers.
{H} made a picture of the {n}. | "I want to draw the {n}," said {H}. {F} gave {him} some paper. | {He} wanted to remember it, so {he} drew the {n} on paper.
{He} showed it to {his} {M}. "What a beautiful {n}!" {Mhe} said. | At home, {he} put the picture of the {n} on the wall. | Everybody liked the picture of the {adj} {n}.
That night, {H} dreamed about the {t}. | The next day, {he} went back to see the {n} again. | From then on, {H} and {F} visited the {n} every week.
""",
        home=True,
    ),
    Plot(
        name="find and give back",
        things=("treasure", "wear", "toy", "any"),
        themes=("finding {an}", "honesty", "a lost {n}"),
        lesson=(
            "it is right to give back what is not yours",
            "being honest brings you friends",
            "it feels good to do the right thing",
        ),
        steps="""
One day, {H} found {at} {inp}. | One day, {he} saw {at} near {spot}. | {H} was {inp} one day when {he} found {at}.
"Whose {n} is this?" {he} asked. | "What a nice {n}!" {he} said. | There was nobody around. {H} looked at the {n}.
{H} wanted to keep it. It was so {adj}. | "Now it is mine," {he} thought. | {He} took the {n} home and played with it. =toy= {He} took the {n} with {him}.
Then {he} met {Fi}. {F} looked very sad. | But then {he} saw {Fi}. {F} was crying. | On the way, {he} met {Fi}. "Have you seen my {n}?" asked {F}.
"I have lost my {t}," said {F}. "It was a gift." | "My {n} is gone," said {F}. "I miss it so much." | "I look for {at}," said {F}. "It belongs to me."
?{H} thought about it. {He} really liked the {n}. | {H} did not know what to do. | "If I say nothing, I can keep it," {he} thought.
But {he} knew what was right. "Is this your {n}?" {he} asked. | Then {H} said, "I found it. Here it is." | "Here is your {n}," said {H}. "I found it {inp}."
{F} was so happy. "Yes! Thank you, {H}!" | "My {n}!" said {F} and jumped for joy. | {F} hugged {him}. "You are so honest!"
"Come, let us play together," said {F}. | "You can visit me every day," said {F}. | "You can play with it whenever you want," said {F}. =toy= "I will bake you a cake," said {F}.
""",
    ),
)
