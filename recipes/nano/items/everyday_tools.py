"""Everyday tools: a timer, messages, lights, orders and the like, with names and wordings that vary."""

import random

from recipes.nano.items.tool_kinds import Argument, Draw, Tool, drawn, one_of, tenth, truth, whole
from recipes.nano.items.words import ANIMALS, DAYS, FOODS, INSTRUMENTS, NAMES, PLACES, ROOMS, SPORTS, THINGS

# kind, names, description, arguments by their key in `_arguments`, wordings, result, answer
_Row = tuple[str, str, str, str, tuple[str, ...], str, str]
_DO = "[|Please |Can you |Could you |I want you to |I need you to |Would you ]"
_SAY = "[What is|Tell me|I need|Give me|Do you know|I want to know|Show me|What's]"
_ROWS: tuple[_Row, ...] = (
    ("timer", "[set|start|new|create|add]_timer|timer|countdown_timer|startTimer", "[Set|Start] a timer in minutes.",
     "minutes", (_DO + "[set|start] a timer [for|of] {0} minutes", "[timer|a timer|timer please], {0} minutes",
                 "{0} minutes on the timer", "Wake me in {0} minutes", "Count down {0} minutes"),
     "timer {r} started", "Done: {out}."),
    ("message", "[send|write|post]_[message|text|sms|note]|message|sendMessage|notify", "Send a message.",
     "person text", ("[Tell|Write to|Text|Message] {0}: {1}", _DO + "send {0} [the message|this text|this]: {1}",
                     "[Message|Text|A message] [to|for] {0}: {1}", "Let {0} know: {1}"),
     "sent to {0}", "Done: {out}."),
    ("light", "light|[set|switch|control|change|toggle]_[light|lamp|lights]|lights|setLight",
     "[Switch|Set] the light of a room.", "room on",
     (_DO + "[set|switch] the light in the {0} to {1}", "Light in the {0}: {1}", "{0} light {1}", "The {0} light: {1}"),
     "light in the {0} is {1}", "Done: {out}."),
    ("order", "[order|buy|purchase|get|add]_[item|product|things]|buy|order|placeOrder", "[Order|Buy] items.",
     "item count", (_DO + "order {1} of the item {0}", "[Buy|Order|Get me] {0}, {1} pieces", 
                    "[I want to|I have to] [order|buy] {0}, {1} pieces", "{1} times the item {0}, please"),
     "order number {r}", "Ordered: {out}."),
    ("convert", "convert|[unit_|]convert[er|]|change_unit|convert_[unit|value]|toUnit", "Convert a length or weight.",
     "value unit", (_DO + "[convert|change|turn] {0} [to|into] {1}", "How much is {0} in {1}?", "{0} in {1}",
                    "What is {0} in {1}?"), "{r} {1}", "{0} is {out}."),
    ("clock", "[get_|local_|current_|]time|clock|time_in|world_clock|getTime", "[Get|Tell] the time in a city.", "city",
     ("[What time is it|How late is it|What is the time] in {0}?", "[Time|Time now|The time] in {0}",
      _SAY + " the time in {0}"), "{r} minutes past noon", "In {0} it is {out}."),
    ("table", "[book|reserve|get]_[table|seat|seats]|reserve|reservation", "Book a table for people on a day.",
     "count day", (_DO + "[book|reserve] a table for {0} people on {1}", "[I need|We need] a table for {0} on {1}",
                   "A table on {1} for {0} people"), "table {r}", "Booked: {out}."),
    ("population", "[get_|city_|]population|count_people|inhabitants|people_in", "Get the population of a city.",
     "city",
     ("How many people [live|are] in {0}?", _SAY + " the population of {0}", "[Population|Inhabitants] of {0}",
      "How [big|large] is {0}?"), "{r}", "{out} people live in {0}."),
    ("phone", "phone_number|[get|find|look_up]_[phone|number|contact]|contact|phoneBook",
     "Find the phone number of a person.", "person",
     (_SAY + " the [phone number|number|telephone number] of {0}", "[Phone number|Number] of {0}",
      "How can I call {0}?"),
     "{r}", "The phone number of {0} is {out}."),
    ("price", "[get_|find_|check_|]price|price_of|cost|getPrice", "Get the price of an item.", "item",
     ("[What does the|How much does the|What does a] {0} cost?", "How much is [a|the] {0}?", "Price of the {0}",
      _SAY + " the price of the {0}"), "{r} dollars", "The {0} costs {out}."),
    ("calendar", "[add|new|create|plan]_[event|appointment|date]|calendar|addEvent", "Add an event to the calendar.",
     "sport day", (_DO + "[add|put|write] {0} on {1} to my calendar", "[Plan|Schedule] {0} [for|on] {1}",
                   "I have {0} on {1}. Note it", "Calendar: {0} on {1}"), "event {r} added", "Done: {out}."),
    ("dice", "[roll_|throw_|]dice|random_number|roll|rollDice", "Roll dice with so many sides.", "sides",
     (_DO + "[roll|throw] a dice with {0} sides", "roll a {0} sided dice", "A number up to {0}, [please|by chance]"),
     "{r}", "The dice shows {out}."),
    ("files", "[list_|show_|all_|get_|]files|ls|dir|listFiles", "List all files.", "",
     ("[Which|What] files [are there|do I have|do you see|are here]?", _DO + "[list|show] [all|the|my] files",
      "files?"),
     "notes.txt, plan{r}.md", "The files are: {out}."),
    ("battery", "[get_|check_|]battery[|_level|_status]|power_level|charge", "Get the battery level.", "",
     ("How [full|empty|charged] is the battery?", _SAY + " the battery level", "[Battery|Battery level]?"),
     "{r}", "The battery level is {out}."),
    ("note", "[add|save|make|write|create|new]_[note|memo]|note|remember|takeNote", "Save a note.", "text",
     (_DO + "[note|write down|save|remember]: {0}", "[Note|Memo|A note]: {0}", "Do not forget: {0}"),
     "note {r} saved", "Done: {out}."),
    ("heating", "[set_|change_|]temperature|thermostat|heating|set_heating", "Set the temperature of a room.",
     "room degrees", (_DO + "[set|heat|bring] the {0} to {1} degrees", "{1} degrees in the {0}", "{0}: {1} degrees"),
     "the {0} is set to {1}", "Done: {out}."),
    ("stock", "[check_|get_|]stock|in_stock|inventory|count_items|availability", "Tell how many items are in stock.",
     "item", ("How many [pieces|items] of the {0} [are there|do we have|are left]?", "[Stock|Inventory] of {0}",
              _SAY + " the stock of {0}", "Is the {0} in stock?"), "{r} pieces", "There are {out} of the {0}."),
    ("distance", "[get_|find_|]distance|how_far|route_length|travel_distance", "Get the distance of two cities.",
     "city other", ("How far is {0} from {1}?", _SAY + " the distance [from|between] {0} and {1}",
      "{0} to {1}: how far?",
                    "Distance {0} to {1}"), "{r} kilometers", "From {0} to {1} it is {out}."),
    ("flight", "[book|find|search|get]_[flight|train|bus|ticket]|travel|bookTrip", "Book a trip to a city on a day.",
     "city day", (_DO + "book a trip to {0} [on|for] {1}", "I [want|need|have] to [go|be|travel] to {0} on {1}",
                  "A ticket to {0} on {1}", "{0}, on {1}, book it"), "ticket {r}", "Booked: {out}."),
    ("music", "play[_music|_song|_sound|]|[start_|]music|playMusic", "Play music of an instrument.", "instrument",
     (_DO + "play [some|] {0} music", "[I want to hear|Let me hear|Put on] {0} music", "Music with {0}"),
     "playing {0} number {r}", "Done: {out}."),
    ("recipe", "[get_|find_|search_|]recipe|cook_book|recipe_for|getRecipe", "Find a recipe with a food.", "food",
     ("How do I cook {0}?", _SAY + " a recipe [with|for] {0}", "[Recipe|A recipe] with {0}",
      "What can I make from {0}?"),
     "recipe {r}: {0} in the oven", "I found {out}."),
    ("feed", "feed[_animal|_pet|er|]|give_food|animal_feeder", "Feed an animal with so many grams.", "animal count",
     (_DO + "[feed|give] the {0} {1} grams", "{1} grams for the {0}", "The {0} gets {1} grams"),
     "{0} got {1} grams", "Done: {out}."),
    ("alarm", "[set_|new_|add_|]alarm|wake_up|alarmClock", "Set an alarm for an hour of a day.", "hour day",
     (_DO + "[wake me|set an alarm] at {0} on {1}", "Alarm on {1} at {0}", "I have to get up at {0} on {1}"),
     "alarm {r} set", "Done: {out}."),
    ("grade", "[get_|find_|show_|]grade|score_of|result_of|points", "Get the points of a person.", "person",
     ("How many points [has|does] {0} [|have]?", _SAY + " the [score|points] of {0}", "[Points|Score] of {0}"),
     "{r}", "{0} has {out} points."),
)  # fmt: skip


def _arguments(rng: random.Random) -> dict[str, Argument]:
    """Those of all rows, with names that are drawn."""
    units = tuple(rng.sample(("meter", "mile", "inch", "foot", "yard", "gram", "ounce", "pound"), 3))
    days = tuple(rng.sample(DAYS, 4))

    def argument(names: str, kind: str, draw: Draw, enum: tuple[str, ...] = ()) -> Argument:
        return Argument(drawn(rng, names), kind, draw, enum)

    texts = [f"see you on {day}" for day in DAYS] + [f"buy {food}" for food in FOODS] + [f"call {n}" for n in NAMES]
    return {
        "on": argument("on|state|enabled|is_on|power|active", "boolean", truth),
        "count": argument("count|amount|quantity|number|n|how_many|num", "integer", whole(1, 100)),
        "minutes": argument("minutes|duration|time|mins|length", "integer", whole(1, 120)),
        "day": argument("day|date|when|weekday|on_day", "string", one_of(days), days),
        "person": argument("person|name|recipient|to|user|contact|who", "string", one_of(NAMES)),
        "room": argument("room|where|area|room_name|zone", "string", one_of(ROOMS)),
        "city": argument("city|place|location|destination|town", "string", one_of(PLACES)),
        "other": argument("from_city|other|start|second_city|b", "string", one_of(PLACES)),
        "item": argument("item|product|article|thing|item_name", "string", one_of(THINGS)),
        "value": argument("value|x|size|measure|input_value", "number", tenth),
        "unit": argument("unit|to_unit|target|new_unit", "string", one_of(units), units),
        "text": argument("text|message|body|content|words", "string", one_of(texts)),
        "sport": argument("title|event|what|subject|activity", "string", one_of(SPORTS)),
        "sides": argument("sides|faces|max|limit", "integer", whole(2, 100)),
        "degrees": argument("degrees|temperature|celsius|level", "integer", whole(5, 30)),
        "instrument": argument("instrument|kind|genre|sound", "string", one_of(INSTRUMENTS)),
        "food": argument("food|ingredient|with|dish", "string", one_of(FOODS)),
        "animal": argument("animal|pet|which|animal_name", "string", one_of(ANIMALS)),
        "hour": argument("hour|at|clock_time|h", "integer", whole(1, 24)),
    }


def everyday(rng: random.Random) -> Tool:
    """One of the rows."""
    kind, names, about, keys, asks, tells, says = rng.choice(_ROWS)
    arguments = _arguments(rng)
    return Tool(
        kind, drawn(rng, names), drawn(rng, about), tuple(arguments[k] for k in keys.split()), asks, tells, says
    )
