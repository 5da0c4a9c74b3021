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
    Plot(
        name="swap",
        things=("toy", "treasure", "wear"),
        themes=("a swap", "being fair", "wanting more"),
        lesson=(
            "what you have is often the best",
            "it is good to be happy with what you have",
            "a fair friend is better than a new toy",
        ),
        steps="""
{H} had {at}, but {he} did not like it any more. | {H} was tired of {his} {t}. | One day, {H} looked at {his} {t}. "It is boring," {he} said.
{He} took it {top}. There {he} met {Fi}. | {He} went to see {Fi}. | On the way {top} {he} saw {Fi}.
{F} had a big {col} box. "What is in it?" asked {H}. | {F} carried an old doll. "I want that one!" said {H}. | {F} played a small drum. "That is much better," thought {H}.
"Shall we swap?" asked {F}. | "Do you want to swap with me?" asked {H}. | "Give me your {n}, and this is yours," said {F}.
So they did, and {H} ran home. | "Yes!" said {H}. {F} took the {n} and went away. | {H} gave {fhim} the {n} and laughed.
But soon {H} was sad. {He} missed {his} {n}. | In the evening, {he} thought of {his} {n} all the time. | But at home {he} was not happy. "Where is my {n} now?" {he} thought.
?{He} could not sleep that night. | {He} looked out of the window for a long time. | "That was silly of me," {he} said.
The next day, {he} went back to {F}. "Can I have my {n} again?" {he} asked. | In the morning, {he} ran to {F}. "I miss my {n} so much," {he} said. | {H} went to find {F}. "I am sorry, but I want to swap back," said {H}.
"Of course," said {F}. "I missed my things too." | {F} laughed. "Here it is. We can play with it together." | "A friend gives it back," said {F} and gave {him} the {n}.
{H} held the {t} tight. | {H} had never loved the {n} so much. | Now the {t} was the best thing in the world.
""",
    ),
    Plot(
        name="snow",
        things=("wear",),
        themes=("the snow", "a winter day", "being cold", "a snowman"),
        lesson=(
            "a warm heart is better than a warm coat",
            "it feels good to give",
            "winter is warm with a friend",
        ),
        steps="""
One morning, everything was white. It had snowed all night. | It was winter, and the snow was deep. | "Snow!" called {H} and ran to the window.
{H} put on {his} {t} and went out. | {He} took {his} {t} and ran {top}. | {His} {M} gave {him} {at}. "It is cold outside," {Mhe} said.
{He} made a big snowman with a carrot for a nose. | {He} jumped in the snow and made big steps. | {He} threw snow into the air and laughed.
Then {he} saw {Fi}. {F} was very cold. | {Fi} sat near {spot} and was cold. | Behind {spot} {he} heard a small voice. It was {Fi}. "I am so cold," said {F}.
"Why do you have nothing warm?" asked {H}. | "Poor {F}! You have nothing warm," said {H}. | "I lost my way in the snow," said {F}.
?{H} looked at {his} {n}. It was so nice and warm. | {H} did not think for long. | "I have a warm home, and {F} has nothing," {he} thought.
"Take my {n}," said {H}. "It will keep you warm." | {H} gave {fhim} the {t}. | {He} took off the {n} and gave it to {F}.
"And come home with me," {he} said. | Then they ran to the house of {H} as fast as they could. | They held hands and went home together.
{His} {M} made hot milk for both of them. | They sat by the fire and drank something hot. | Inside it was warm, and there was soup for everybody.
"Thank you for the {n}," said {F}. | "Keep the {n}," said {H}. "It looks good on you." | "You are as warm as the sun, {H}," said {F}.
""",
        home=True,
    ),
    Plot(
        name="boat trip",
        things=("food", "tool"),
        themes=("a boat", "a trip", "the water", "an adventure"),
        lesson=(
            "you should listen to your friends",
            "it is good to stay calm",
            "every trip is better with a friend",
        ),
        steps="""
One day, {H} and {Fi} found an old boat. | {H} had a little {col} boat and a friend named {F}, {afk}. | "Let us take the boat," {H} said to {F}, {afk}.
They took {at} with them. | "I bring {at}," said {F}. | {H} put {at} into the boat.
The water was blue and quiet. | They rowed and rowed, and the land got smaller. | {F} rowed and {H} sang a song.
?They saw many fish under the boat. | A big bird sat down on the boat and looked at them. | "I want to go all around the world," said {H}.
Then the wind came, and the waves got big. | Suddenly, there was water in the boat. | But then the boat hit a stone, and there was a hole in it.
"What shall we do?" cried {H}. | {H} was afraid. "We will sink!" {he} said. | "Help!" they called, but nobody was there.
"Stay calm," said {F}. "I have an idea." | {F} thought for a moment. "Do not be afraid," {fhe} said. | "I know what to do," said {F}.
They used their hats to take the water out. | {F} put {fhis} scarf into the hole, and {H} rowed as fast as {he} could. | They held on to each other until the wind was gone.
At last, they came to a small island. | Soon they were back on land. | Then the sun came out, and they were safe.
They sat down and ate the {n}. =food= The {t} was still dry, and they were glad. | "And we still have the {n}!" said {F}. They laughed. | "Good that we have the {n}," said {H}.
""",
    ),
    Plot(
        name="tidy up",
        things=("toy", "tool", "wear"),
        themes=("a messy room", "cleaning up", "helping at home"),
        lesson=(
            "work is fun when you do it together",
            "you find things in a tidy room",
            "it is good to help at home",
        ),
        steps="""
{H}'s room was a big mess. | There were things all over the floor in {H}'s room. | {H} never put anything back.
"Please clean your room," said {his} {M}. | "You should tidy up today," {his} {M} said. | One day, {his} {M} could not open the door, there was so much on the floor.
"Not now," said {H}. "I want to play with my {n}." | But {H} wanted to go out with {his} {t}. | "Later," said {H}. {He} looked for {his} {t}.
But where was the {n}? {He} could not find it. | {He} looked and looked, but there was no {n}. | The {n} was not on the bed and not under it.
Then {Fi} came to play. "Oh, what a mess!" said {F}. | {F}, {afk}, knocked on the door. "Can you come out?" {fhe} asked. | {His} friend {F}, {afk}, wanted to see the {n}.
"I cannot find my {n}," said {H}. | "My {n} must be here somewhere," said {H}. | {H} was sad. "I have lost my {t}," {he} said.
"Then let us tidy up," said {F}. "I help you." | "We will find it when we clean," said {F}. | "I like to clean," said {F}. "Let us make a game of it!"
{F} took the books, and {H} took the socks. | They sang a song and put one thing after the other in its place. | They counted everything that they put away.
?Under the bed they found an old cookie. | "Look, my {col} sock!" said {H}. | {F} found three spoons and a shoe.
And there, behind {spot}, was the {n}! | At the very end, {H} saw something {adj}. It was the {n}! | "Here is your {t}!" called {F}.
{His} {M} came in. "How nice it looks!" {Mhe} said. | Now the room was tidy, and they could play. | "From now on I put my {n} back," said {H}.
""",
        home=True,
    ),
    Plot(
        name="letter to a friend",
        things=("treasure", "wear", "toy"),
        themes=("a letter", "missing a friend", "friends far away"),
        lesson=(
            "friends stay friends when they are far away",
            "a letter can make somebody happy",
            "you are never far from a friend",
        ),
        steps="""
{H} had a good friend, {Fi}. | {H} and {F}, {afk}, did everything together. | {H}'s best friend was {Fi}.
But one day, {F} moved far away. | Then {F} had to go and live in another town. | One day, {F} said, "I have to move away."
"I will miss you," said {H}. | {H} cried and waved for a long time. | "Please do not forget me," said {H}.
The days were long without {F}. | {H} played alone, but it was no fun. | {He} often looked at the empty place {inp}.
"Write a letter," said {his} {M}. | {His} {M} had an idea. "You can send something to {F}," {Mhe} said. | "I will write to {F}," said {H} one morning.
{H} wrote about {his} days and drew a {col} heart. | {He} wrote, "Dear {F}, I think of you every day." | {He} took paper and a pencil and wrote a long letter.
{He} put {at} in it too. | "And I send {fhim} my {t}," {he} said. | With the letter {he} sent {at}.
?Then {he} waited and waited. | Every day, {he} asked, "Is there a letter for me?" | One week went by, and then another one.
At last, a letter came. "Thank you for the {n}!" it said. | Then there was a letter from {F}. "I love the {n}," {fhe} wrote. | One day, somebody knocked. It was {F}, with the {n} in {fhis} hand!
"I will visit you in the summer," wrote {F}. =wear= {F} wanted to come and visit {him} soon. | {H} read it again and again. | {H} was so happy that {he} danced around the table.
""",
        home=True,
    ),
    Plot(
        name="contest",
        things=("baked", "build"),
        themes=("a contest", "winning", "working together"),
        lesson=(
            "two can do more than one",
            "it is better to work together",
            "a prize is nicer when you share it",
        ),
        steps="""
There was a big contest {inp}. Who could make the best {n}? | One day, everybody {inp} talked about the contest. The best {n} would win. | "Make {at} and win a prize!" said the sign.
"I will win," said {H}. | {H} wanted to make the best {n} of all. | {H} loved contests. {He} began at once.
{Fi} wanted to win as well. | {His} neighbour {F}, {afk}, had the same idea. | But {F}, {afk}, made {an} too.
{H} worked all day. {He} did not want any help. | {H} did not talk to {F}. | {H} hid {his} {n} so that {F} could not see it.
?{F} looked over the fence, but {H} closed the door. | "Mine is bigger," said {F}. "Mine is better," said {H}. | They both worked until the moon came out.
But then {H} had no more sugar. =baked= But then {H} had no more nails. | In the night, the {n} of {H} broke into two parts. =build= In the night, a mouse ate half of {H}'s {n}. | Oh no! {H} could not do it alone. It was too hard.
And {F} had trouble too. {Fhe} sat there and cried. | {F} was not happy either. The {n} of {F} was much too small. | Then {he} saw {F}. {F} was not even half done.
"Let us make one together," said {H}. | "We could put our things together," said {F}. | {H} went over to {F}. "Shall we work together?" {he} asked.
They worked side by side and laughed a lot. | {F} had good ideas, and {H} had strong arms. | Now it was much faster, and it was fun.
In the evening, they showed their {t}. Everybody clapped. | Their {n} was the best of all! | They won the prize for the best {n}.
"This prize is for both of us," said {H}. | They shared the prize. | "We are a good team," said {F}.
""",
    ),
)
