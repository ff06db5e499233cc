"""The people, animals, places and weather that the stories draw from."""

from __future__ import annotations

GIRLS = [
    "Lily",
    "Mia",
    "Anna",
    "Rosa",
    "Emma",
    "Clara",
    "Nora",
    "Lucy",
    "Greta",
    "Vera",
    "Elsa",
    "Maya",
]
BOYS = [
    "Tom",
    "Ben",
    "Max",
    "Leo",
    "Sam",
    "Finn",
    "Jack",
    "Paul",
    "Hugo",
    "Felix",
    "Jonas",
    "David",
]
PET_GIRLS = ["Daisy", "Pearl", "Hazel", "Penny", "Bella", "Honey", "Luna", "Poppy"]
PET_BOYS = ["Pip", "Rusty", "Benny", "Toby", "Bruno", "Fluff", "Dash", "Teddy"]
ANIMALS = [
    "rabbit",
    "mouse",
    "fox",
    "bear",
    "squirrel",
    "hedgehog",
    "badger",
    "otter",
    "beaver",
    "mole",
    "cat",
    "dog",
]

TRAITS = [
    "little",
    "young",
    "small",
    "kind",
    "curious",
    "cheerful",
    "gentle",
    "clever",
    "quiet",
    "lively",
]
FRIEND_TRAITS = ["little", "small", "shy", "young", "friendly", "thin"]

CHILD_HOMES = [
    "in=in a small village by the sea; home=in a white house by the sea; go=to the beach;"
    "at=on the beach; spot=the old lighthouse; path=the sandy path",
    "in=in a small village near the forest; home=in a small house near the forest;"
    "go=into the forest; at=in the forest; spot=the old oak tree; path=the mossy path",
    "in=in a small village in the hills; home=in a little house on a green hill;"
    "go=over the hill; at=on the hill; spot=the tall pine tree; path=the winding path",
    "in=on a small farm; home=on a small farm with red roofs; go=across the meadow;"
    "at=in the meadow; spot=the old barn; path=the dusty path",
    "in=in a quiet valley; home=in a little house by the river; go=down to the river;"
    "at=by the river; spot=the stone bridge; path=the river path",
    "in=in the mountains; home=in a wooden house in the mountains; go=up the mountain;"
    "at=on the mountain; spot=the old mill; path=the stony path",
    "in=in a busy town; home=in a tall house in a busy town; go=to the park;"
    "at=in the park; spot=the stone fountain; path=the narrow street",
]
ANIMAL_HOMES = [
    "in=in a deep green forest; home=in a cosy hole under an oak tree; go=through the forest;"
    "at=in the forest; spot=the hollow log; path=the mossy path",
    "in=in a sunny meadow; home=in a warm den at the edge of a meadow; go=across the meadow;"
    "at=in the meadow; spot=the round stone; path=the grassy path",
    "in=by a wide river; home=in a little house of sticks by the river; go=down to the river;"
    "at=by the river; spot=the big willow; path=the river path",
    "in=on a green hill; home=in a snug little house on a green hill; go=over the hill;"
    "at=on the hill; spot=the tall pine tree; path=the stony path",
    "in=in a wild old garden; home=in a tiny house behind a garden wall; go=through the garden;"
    "at=in the garden; spot=the old well; path=the narrow path",
]

CHILD_ELDERS = [
    ("Grandma Rose", "she"),
    ("Grandpa Will", "he"),
    ("Aunt Martha", "she"),
    ("Uncle Fred", "he"),
    ("old Mr. Bell", "he"),
    ("old Mrs. Plum", "she"),
    ("the miller", "he"),
    ("the old fisherman", "he"),
]
ANIMAL_ELDERS = [
    ("the old owl", "she"),
    ("the wise turtle", "he"),
    ("the old goat", "he"),
    ("Grandmother Toad", "she"),
    ("the grey heron", "he"),
    ("old Mother Raven", "she"),
]

SKIES = [
    ("bright", "The sun was shining, and the birds were singing."),
    ("sunny", "The sky was blue, and the sun was warm."),
    ("warm", "The air was warm and smelled of flowers."),
    ("windy", "The wind blew the clouds across the sky."),
    ("cool", "The air was cool and fresh."),
    ("misty", "A thin mist lay over everything."),
    ("grey", "The sky was grey, but it did not rain."),
]
DAYS = [
    "One {sky} morning",
    "One {sky} day",
    "One day",
    "One morning",
    "One Sunday",
    "Early one morning",
    "On a {sky} Saturday",
    "One fine day",
]

FRIENDS = ["{his} friend", "{his} best friend", "{his} good friend"]

HABITS = [
    "{^he} had bright eyes and a loud laugh.",
    "{^he} liked to sing in the morning.",
    "Every morning {he} said hello to the sun.",
    "{^his} pockets were always full of small stones.",
    "{^he} always wore a green cap.",
    "{^he} knew every tree and every stone there.",
    "{^he} asked a hundred questions every day.",
    "{^he} could run faster than the wind.",
    "{^he} loved warm bread and funny stories.",
    "In the evening {he} liked to count the stars.",
    "{^he} lived there with {his} mother and {his} father.",
    "From {his} window {he} could see {spot}.",
]

OPENINGS_ONCE = [
    "Once upon a time there was a {hadj} {kind} named {H}. {^he} lived {home}.",
    "Once upon a time, there was a {hadj} {kind} named {H}, who lived {home}.",
    "Once upon a time there lived a {hadj} {kind} named {H}. {^he} lived {home}.",
    "Once upon a time, {in}, there lived a {hadj} {kind} named {H}.",
    "Once upon a time a {hadj} {kind} named {H} lived {home}.",
]
OPENINGS_STANDING = [
    "{^in} lived a {hadj} {kind} named {H}.",
    "{^in} there lived a {hadj} {kind}. {^his} name was {H}.",
    "{H} was a {hadj} {kind}. {^he} lived {home}.",
    "{H} was a {hadj} {kind} who lived {home}.",
    "There was once a {hadj} {kind} called {H}, who lived {home}.",
    "Long ago, {in}, there lived a {hadj} {kind} named {H}.",
    "A {hadj} {kind} named {H} lived {home}.",
    "{H} lived {home}. Everyone liked the {hadj} {kind}.",
]
OPENINGS_DAY = [
    "One day, a {hadj} {kind} named {H} was sitting by {spot}.",
    "One {sky} day, a {hadj} {kind} named {H} was walking along {path}. {skyline}",
    "It was a {sky} day. A {hadj} {kind} named {H} was playing {at}.",
    "One evening, a {hadj} {kind} named {H} looked out of the window and thought.",
]
OPENINGS = {"once": OPENINGS_ONCE, "standing": OPENINGS_STANDING, "day": OPENINGS_DAY}

MACROS = {
    "asked": ["asked", "asked", "wondered"],
    "cried": ["cried", "cried", "called", "shouted"],
}

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself", "hisown": "hers"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself", "hisown": "his"},
}
