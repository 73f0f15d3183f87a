# ruff: noqa: SIM905 - word lists read best as text
"""Word lists of our own, and invented words, so that any word can be spelled and copied."""

from __future__ import annotations

import random

COMMON = """
apple apricot banana berry cherry grape lemon lime mango melon olive orange papaya peach pear plum
strawberry raspberry blueberry coconut pineapple kiwi fig date avocado tomato potato carrot onion
garlic pepper cucumber lettuce spinach cabbage broccoli celery pumpkin bean pea corn rice wheat
bread butter cheese milk cream yogurt honey sugar salt flour pasta pizza soup salad sandwich cake
cookie chocolate candy coffee tea juice water wine beer breakfast lunch dinner kitchen spoon fork
knife plate bowl cup glass bottle oven stove fridge table chair sofa couch bed pillow blanket lamp
candle mirror window door wall floor roof ceiling garden fence gate bridge road street path river
lake ocean sea beach island mountain hill valley forest jungle desert meadow field farm barn horse
cow sheep goat pig chicken duck goose turkey dog cat rabbit mouse rat hamster squirrel fox wolf bear
lion tiger leopard elephant giraffe zebra monkey gorilla kangaroo koala panda deer moose camel
donkey crocodile snake lizard turtle frog toad fish shark whale dolphin octopus crab lobster shrimp
eagle hawk falcon owl parrot pigeon sparrow swan penguin butterfly spider ant bee beetle mosquito
worm snail flower rose tulip daisy lily orchid tree leaf root branch seed grass moss fern oak pine
maple willow birch cedar bamboo cactus sun moon star planet comet galaxy rocket satellite sky cloud
rain snow storm thunder lightning wind fog ice fire smoke ash stone rock sand mud clay metal iron
steel gold silver copper bronze diamond ruby emerald pearl crystal wood paper plastic rubber cotton
wool silk leather linen shirt jacket coat dress skirt trousers jeans sweater scarf glove hat cap
helmet shoe boot sock sandal belt pocket button zipper ring necklace bracelet watch clock calendar
pencil pen eraser notebook book magazine newspaper letter envelope stamp postcard library school
teacher student pupil professor lesson exam grade doctor nurse patient hospital pharmacy medicine
lawyer judge police soldier sailor pilot driver farmer baker butcher cook waiter barber tailor
plumber carpenter painter sculptor singer dancer actor writer poet artist musician guitar piano
violin cello flute trumpet drum harp organ melody rhythm song opera theatre cinema museum gallery
castle palace tower church temple village town country king queen prince princess knight wizard
dragon giant fairy ghost monster pirate treasure sword shield arrow bow cannon flag crown throne car
bus train tram truck bicycle motorcycle boat ship ferry canoe airplane helicopter balloon engine
wheel brake pedal ticket station airport harbor hotel restaurant market shop store bakery bank
office factory garage computer keyboard screen printer camera phone radio television robot machine
battery cable switch hammer nail screw saw drill ladder rope chain bucket broom brush soap towel
shampoo toothbrush comb scissors needle thread basket box bag suitcase backpack wallet purse key
lock umbrella toy doll puzzle kite football tennis hockey cricket rugby golf chess poker archery
swimming running climbing skiing sailing fishing hunting camping hiking travel journey adventure
holiday vacation summer winter spring autumn birthday wedding party festival concert parade circus
brother sister mother father uncle aunt cousin nephew niece grandmother grandfather baby child
friend neighbor stranger enemy hero leader captain president minister mayor citizen freedom justice
peace war love hate anger fear hope joy sadness courage wisdom knowledge science history geography
chemistry physics biology mathematics algebra geometry triangle circle square rectangle cube sphere
pyramid angle curve line point shape color red green blue yellow purple brown black white grey pink
happy sad angry tired hungry thirsty brave clever quick slow strong weak tall short heavy light
bright dark loud quiet sweet sour bitter salty hot cold warm cool wet dry clean dirty rich poor
young old new ancient modern simple complex easy hard soft rough smooth sharp narrow wide deep
shallow empty full open closed early late fast gentle wild tame proud humble honest polite rude walk
run jump climb swim fly drive ride sleep dream wake eat drink laugh cry smile whisper shout sing
dance paint draw write read learn teach build break fix push pull throw catch kick carry lift drop
find lose hide seek buy sell pay borrow lend give take send receive begin finish start stop python
server cluster tensor kernel matrix vector memory cache token model network packet router database
program compiler function variable pointer thread process signal socket buffer queue stack
mississippi bookkeeper rhythmic syllable alphabet dictionary sentence paragraph chapter question
committee success assess address balloons coffee hello world welcome goodbye banana anything
""".split()

TEMPLATE_WORDS = """
the and what number letters word name city email sort first last day today tomorrow ridgeline monday
friday january answer please thanks list words count spell month year
""".split()

FIRST_NAMES = """
Anna Ben Carla David Emma Felix Grace Hugo Irene Jack Karen Leo Maria Noah Olivia Peter Quentin Rosa
Samuel Tina Ulrich Vera Walter Xenia Yusuf Zoe Alice Bob Charlie Diana Edward Fiona George Hannah
Ivan Julia Kevin Laura Martin Nina Oscar Paula Robert Sarah Thomas Ursula Victor Wendy Adam Bella
Chloe Daniel Elena Frank Gina Henry Isabel James Kate Liam Mona Nathan Omar Petra Ralph Sofia Tom
Amara Bilal Chen Dmitri Esra Farid Goran Haruki Ingrid Jonas Kofi Lars Mei Nadia Olga Priya Ravi
Sven Tariq Wei Yuki Zara Aisha Bruno Clara Diego Eva Fatima Gustav Hiro Ines Jorge Klara Luca Mateo
Nora Pablo Rita Simon Theo Uma Vikram Amy Brian Cindy Derek Ella Fred Gloria Harry Ida Jane Kyle
Lucy Mike Nick Otto Pam Ruth Steve Tara Vince Will John Mary Paul Mark Linda Susan Lisa Max Sam Tim
""".split()

LAST_NAMES = """
Smith Miller Brown Jones Garcia Weber Rossi Novak Kim Lee Tanaka Singh Khan Silva Costa Meyer
Fischer Schmidt Larsen Berg Olsen Moreau Dubois Laurent Kowalski Nowak Petrov Ivanov Haddad Mensah
Okafor Walker Turner Parker Cooper Hughes Carter Reed Wood Bennett Foster Murphy Kelly Ryan Quinn
Lopez
""".split()

CITIES = """
Berlin Paris London Madrid Rome Vienna Prague Warsaw Lisbon Dublin Oslo Stockholm Helsinki
Copenhagen Amsterdam Brussels Zurich Geneva Munich Hamburg Cologne Milan Naples Venice Athens
Istanbul Ankara Cairo Tunis Casablanca Lagos Nairobi Accra Johannesburg Mumbai Delhi Chennai Kolkata
Karachi Lahore Dhaka Bangkok Hanoi Jakarta Manila Singapore Tokyo Osaka Kyoto Seoul Busan Beijing
Shanghai Taipei Sydney Melbourne Perth Auckland Toronto Montreal Vancouver Ottawa Boston Chicago
Houston Dallas Denver Seattle Portland Atlanta Miami Detroit Phoenix Austin Lima Bogota Quito
Santiago Caracas Havana Budapest Belgrade Zagreb Sofia Bucharest Kyiv Riga Tallinn Vilnius Krakow
Porto Seville Lyon Nice Marseille Turin Ghent Basel Salzburg Leipzig Dresden Bremen Leeds Bristol
Glasgow Oxford York
""".split()

_ONSETS = """b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr pl pr sh sk sl sm sn sp
st str sw th tr y qu""".split()
_NUCLEI = "a e i o u a e i o u ai ea ee oa oo ou ie".split()
_CODAS = ["", "", "", "", *"b d g k l m n p r s t x ck ll nd ng nt rd rk rn rt sh ss st th".split()]


def pseudo_word(rng: random.Random, syllables: int | None = None) -> str:
    """An invented lower-case word of 1 to 4 syllables."""
    count = syllables or rng.choices((1, 2, 3, 4), weights=(2, 5, 3, 1))[0]
    while True:
        word = "".join(
            rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS) for _ in range(count)
        )
        if 2 < len(word) <= 13:
            return word


def random_letters(rng: random.Random) -> str:
    """A string of letters that no rule made."""
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))


def any_word(rng: random.Random) -> str:
    """A lower-case word: common, invented, or just letters."""
    choice = rng.random()
    if choice < 0.5:
        return rng.choice(COMMON)
    return pseudo_word(rng) if choice < 0.9 else random_letters(rng)


def any_name(rng: random.Random) -> str:
    """A first name, sometimes an invented one."""
    if rng.random() < 0.6:
        return rng.choice(FIRST_NAMES)
    return pseudo_word(rng, rng.choice((1, 2, 2, 3))).capitalize()


def any_city(rng: random.Random) -> str:
    """A city, sometimes an invented one, sometimes of two words."""
    choice = rng.random()
    if choice < 0.65:
        return rng.choice(CITIES)
    city = pseudo_word(rng).capitalize()
    prefix = rng.choice(("New", "San", "Port", "Los", "Saint", "Bad")) if choice > 0.93 else ""
    return f"{prefix} {city}".strip()


def content_words() -> set[str]:
    """Words that the tokenizer leaves in letters, in lower case."""
    lists = (COMMON, FIRST_NAMES, LAST_NAMES, CITIES)
    return {word.lower() for words in lists for word in words}
