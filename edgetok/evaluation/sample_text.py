"""A text on which engines are compared: prose, dialogue, numbers, code, several languages."""

from __future__ import annotations

SAMPLE_TEXT = """\
The ferry left the harbour at seven, half an hour late, because a truck full of apples had lost a
wheel on the ramp. Nobody complained. The sea was flat, the sky had the colour of milk, and most of
the passengers were asleep before the lighthouse was out of sight. Only the engineer stayed awake,
listening to the pump that he had repaired the night before.

"Does it hold?" asked the captain.

"It holds. But I would not sail to Norway with it."

"We are not going to Norway. We carry 212 people, 38 cars and 1,450 kg of mail to the island and
back, twice a day, and on Sundays once."

A cell divides when it has copied its DNA. In 1953 the structure of that molecule was known, and by
the end of the century whole genomes could be read; the cost of reading one fell from millions of
dollars to less than 1,000. Water boils at 100 degrees at sea level and at about 93 degrees at a
height of 2,000 metres, because the pressure of the air is lower there.

def mean(values: list[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values) if values else 0.0

| month | rain (mm) | sun (h) |
|---|---:|---:|
| March | 61.5 | 112 |
| April | 48.0 | 164 |

Am Abend kochte sie Suppe und schrieb einen Brief an ihren Bruder. Mañana vuelve el tren a las
nueve. Il pleut depuis trois jours, mais le jardin en avait besoin. 今天的天气很好，我们去公园吧。

First, read the question twice. Second, write down what is given and what is asked for. Third,
choose a method; if it fails, ask which of your assumptions was wrong. Most mistakes are made in the
first step.
"""
