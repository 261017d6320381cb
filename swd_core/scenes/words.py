"""The words of a prompt and what they mean: many words, one meaning, one token."""

from .catalogue import THINGS

TWO = "two"
# Words of a thing beside its own name; some from CLDR's keywords.
THING_WORDS = {
    "fox": "vixen",
    "cat": "kitten kitty tomcat tabby feline",
    "dog": "puppy doggy hound canine pup",
    "panda": "panda_bear",
    "koala": "koala_bear marsupial",
    "lion": "lioness leo",
    "frog": "toad froggy",
    "robot": "android droid bot",
    "bear": "teddy teddy_bear plush plushie",
    "rabbit": "bunny hare bunny_rabbit",
    "tiger": "tigress",
    "horse": "pony stallion mare racehorse",
    "cow": "calf bull",
    "pig": "piglet piggy hog swine sow",
    "giraffe": "",
    "elephant": "",
    "monkey": "ape chimp chimpanzee",
    "hedgehog": "porcupine",
    "turtle": "tortoise terrapin",
    "snail": "slug",
    "crab": "crustacean",
    "octopus": "squid",
    "dragon": "drake wyvern",
    "dinosaur": "dino t_rex trex tyrannosaurus tyrannosaur rex",
    "butterfly": "moth insect",
    "penguin": "",
    "duck": "duckling mallard drake_duck",
    "owl": "owlet",
    "flamingo": "",
    "parrot": "macaw",
    "ghost": "spirit spook phantom spectre specter",
    "snowman": "snow_man",
    "car": "automobile auto",
    "bus": "coach school_bus",
    "tractor": "",
    "train": "locomotive steam_engine steam_train railway",
    "rocket": "rocket_ship",
    "ufo": "flying_saucer saucer",
    "balloon": "red_balloon",
    "castle": "palace fortress",
}
# Plurals that no rule makes.
PLURALS = {"octopi": "octopus", "snowmen": "snowman", "cattle": "cow", "calves": "cow"}
# Wider words, each with a token of its own.
KIND_WORDS = {
    "animal": "creature beast wildlife",
    "bird": "",
    "vehicle": "",
    "pet": "",
    "farm": "farm_animal",
    "monster": "",
    "reptile": "",
    "spaceship": "spacecraft",
}
BIRDS = ("penguin", "duck", "owl", "flamingo", "parrot")
NOT_ANIMALS = ("robot", "ghost", "snowman", "balloon", "castle")
VEHICLES = ("car", "bus", "tractor", "train", "rocket", "ufo")
KINDS = {
    "animal": tuple(name for name in THINGS if name not in (*NOT_ANIMALS, *VEHICLES)),
    "bird": BIRDS,
    "vehicle": VEHICLES,
    "pet": ("cat", "dog", "rabbit"),
    "farm": ("cow", "pig", "horse"),
    "monster": ("dragon", "dinosaur", "ghost"),
    "reptile": ("turtle", "dragon", "dinosaur"),
    "spaceship": ("rocket", "ufo"),
}
PLACE_WORDS = {
    "meadow": "field fields meadows grassland pasture prairie grass flowers hills countryside lawn",
    "forest": "woods wood forests woodland jungle taiga firs trees",
    "snow": "snowy winter snowfield tundra arctic wintry snowing snowfall ice icy",
    "desert": "dunes dune sahara deserts",
    "beach": "seaside coast shore sea ocean seashore seacoast beaches tropical",
    "mountains": "mountain alps peaks peak alpine highlands highland",
    "lake": "lakeside pond lakes lakeshore lakefront",
    "town": "city street village urban downtown plaza square towns skyline cityscape",
}
TIME_WORDS = {
    "day": "daytime noon sunny midday daylight afternoon day_light blue_sky sunshine",
    "sunset": "dusk evening twilight sundown golden_hour sunsets",
    "night": "midnight moonlight nighttime night_time moonlit starry stars moon nightfall",
    "dawn": "morning fog foggy mist misty sunrise daybreak haze hazy",
}
# Words that fit two places.
EITHER_PLACE = {"sand": ("desert", "beach"), "water": ("beach", "lake")}
EITHER_WORDS = {"sand": "sandy", "water": "waterside"}
TWO_WORDS = "2 pair couple both double twin twins duo"
MORE_THAN_TWO = (
    "three four five six seven eight nine ten 3 4 5 6 7 8 9 10 many several some few group"
)
FILLERS = frozenset(
    "a an the of and with in on at by to near is are it its from under over next beside between "
    "one 1 single emoji picture image photo render drawing illustration 3d cute little small big "
    "large happy beautiful nice pretty standing sitting walking flying playing time during there "
    "this that scene landscape view background style high quality detailed".split()
)
# The characters of emoji that name a place or a time; things have their own.
EMOJI = {
    "🌲": "forest",
    "🌳": "forest",
    "❄": "snow",
    "🏜": "desert",
    "🌵": "desert",
    "🏖": "beach",
    "🌊": "beach",
    "🏝": "beach",
    "⛰": "mountains",
    "🏔": "mountains",
    "🏞": "lake",
    "🏙": "town",
    "🏘": "town",
    "🌆": "town sunset",
    "🌃": "town night",
    "☀": "day",
    "🌞": "day",
    "🌅": "sunrise",
    "🌇": "sunset",
    "🌙": "night",
    "🌕": "night",
    "🌫": "fog",
}


def _meanings() -> dict[str, tuple[str, ...]]:
    """Phrases by meaning, words of a phrase joined by spaces; the meanings in the tokens' order."""
    groups = (THING_WORDS, KIND_WORDS, PLACE_WORDS, TIME_WORDS, EITHER_WORDS)
    found = {TWO: (TWO, *TWO_WORDS.split())}
    for group in groups:
        for meaning, words in group.items():
            phrases = (word.replace("_", " ") for word in words.split())
            found[meaning] = tuple(dict.fromkeys((meaning, *phrases)))
    return found


MEANINGS = _meanings()
