"""The words that generated conversations are made of. All are short and common."""


def words(text: str) -> list[str]:
    """The words between blanks."""
    return text.split()


NAMES = words(
    "Anna Ben Clara David Emma Felix Grace Hugo Ida Jonas Kate Leo Maria Noah Olga Paul Rosa Sam Tina Victor Wendy "
    "Yusuf Zoe Omar Lucy Mark Nina Oscar Petra Simon Alice Bob Carol Dan Eva Frank Gina Henry Ivan Julia Karl Laura "
    "Mia Nick Peter Ruth Sara Tom Uma Will Amir Chen Diego Elena Fatima Jack Lena Marco Priya Sofia"
)
PLACES = words(
    "Oslo Paris Rome Lima Cairo Tokyo Delhi Berlin Madrid Vienna Quito Seoul Dublin Prague Athens Lisbon Havana Kyoto "
    "Boston Geneva London Milan Lagos Sydney Denver Dallas Munich Warsaw Zurich Nairobi Accra Bergen Porto Turin Riga "
    "Tunis Amman Perth Hanoi"
)
COLOURS = words("red blue green yellow white black purple silver pink brown grey golden")
THINGS = words(
    "kite bike boat hat coat car lamp bag cup ball drum chair book ring clock table box key spoon bottle pen phone "
    "watch mirror basket blanket candle coin ladder map"
)
ANIMALS = words("dog cat horse rabbit parrot goat duck snake turtle mouse sheep cow fox bear lion frog bee whale")
JOBS = words("baker teacher doctor farmer pilot painter singer driver nurse cook writer builder dancer judge sailor")
FOODS = words("apples bread rice soup pasta cheese grapes honey nuts beans cake fish salad eggs pears lemons plums")
DRINKS = words("tea coffee milk water juice cocoa")
SPORTS = words("tennis football chess golf hockey rugby cricket handball baseball basketball")
INSTRUMENTS = words("piano violin guitar flute trumpet harp cello")
MONTHS = words("January February March April May June July August September October November December")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ROOMS = words("kitchen garden garage office cellar attic hall library bedroom")
ANY = [*COLOURS, *THINGS, *ANIMALS, *FOODS, *JOBS, *DRINKS, *SPORTS, *PLACES, *NAMES]
