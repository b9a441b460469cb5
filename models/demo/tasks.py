"""Skills of the demo model that work on what the prompt says: JSON, tools, names, repeating, comparing.

Nothing here is knowledge. Values are drawn at random, half of them words that do not exist, so that the model must
read them from the prompt; what is held out for `evaluate.py` are phrasings, and for tools their names, too.

A call and its result are written as the chat template of `export.py` writes them; `export.py --check` holds the two
against each other. Standard library only.
"""

import json

from words import DAYS, article, capitalise, city, first_name, listed, made_up

# --- JSON --------------------------------------------------------------------

GOODS = ["apples", "books", "lamps", "chairs", "pens", "tickets", "cakes", "cups", "shirts", "plants", "maps", "candles"]
EVENTS = ["concert", "meeting", "party", "workshop", "lecture", "race", "market", "dinner", "wedding", "exhibition"]
PETS = ["dog", "cat", "rabbit", "horse", "parrot", "hamster", "turtle", "goat"]
PRODUCTS = ["lamp", "table", "jacket", "bicycle", "phone", "guitar", "chair", "bag", "clock", "tent"]
PAINTS = ["red", "blue", "green", "yellow", "black", "white", "grey", "brown", "orange", "purple"]
SIGHTS = ["puppy", "cat", "raccoon", "squirrel", "duck", "fox", "deer", "swan", "owl", "hedgehog", "heron", "frog"]
ACTIVITIES = ["bike ride", "walk", "run", "picnic", "hike", "swim", "boat trip"]
LOCATIONS = ["park", "forest", "garden", "city", "mountains", "zoo", "valley", "harbour"]


def some_word(rng, words):
    """One of the words, or as often one that does not exist."""
    return rng.choice(words) if rng.random() < 0.5 else made_up(rng)


def person(rng):
    return {"name": first_name(rng), "age": rng.randrange(1, 100), "city": city(rng)}


def order(rng):
    goods = rng.choice(GOODS) if rng.random() < 0.5 else made_up(rng) + "s"
    return {"customer": first_name(rng), "quantity": rng.randrange(2, 100), "item": goods}


def event(rng):
    return {"event": some_word(rng, EVENTS), "day": rng.choice(DAYS), "place": city(rng)}


def trip(rng):
    return {"from": city(rng), "to": city(rng), "day": rng.choice(DAYS)}


def pet(rng):
    return {"name": first_name(rng), "animal": some_word(rng, PETS), "age": rng.randrange(1, 20)}


def product(rng):
    return {"product": some_word(rng, PRODUCTS), "colour": rng.choice(PAINTS), "price": rng.randrange(1, 1000)}


def sight(rng):
    animals = rng.sample(SIGHTS, rng.randrange(1, 5))
    return {"location": some_word(rng, LOCATIONS), "activity": rng.choice(ACTIVITIES), "animals_seen": len(animals), "animals": animals}


# (what draws the values, trained sentences, held-out sentences)
SENTENCES = [
    (person,
     ["{name} is {age} and has a flat in {city}.", "Meet {name} ({age}) of {city}.", "{name} comes from {city} and is {age} years old.",
      "{name} is {age} years old and lives in {city}.", "{name}, {age}, lives in {city}.",
      "{name} lives in {city} and is {age} years old.", "My name is {name}, I am {age} years old and I live in {city}.",
      "At {age}, {name} moved to {city}.", "{name} from {city} is {age}.", "In {city} there is {an_age} year old called {name}.",
      "{name} is {age}. {name} lives in {city}."],
     ["In {city} lives {name}, who is {age} years old.", "{name}, who lives in {city}, is {age}."]),
    (order,
     ["{customer} ordered {quantity} {item}.", "{customer} would like {quantity} {item}.", "Please send {quantity} {item} to {customer}.",
      "{quantity} {item} for {customer}, please.", "{customer} bought {quantity} {item} yesterday.",
      "An order of {quantity} {item} came from {customer}.", "{customer} needs {quantity} {item}.", "Bring {quantity} {item} to {customer}."],
     ["{customer} wants {quantity} {item}.", "There is an order of {quantity} {item} for {customer}."]),
    (event,
     ["The {event} is on {day} in {place}.", "{day}: {event} in {place}.", "There is {an_event} in {place} on {day}.",
      "We meet in {place} on {day} for the {event}.", "On {day} the {event} takes place in {place}.",
      "The {event} in {place} is on {day}.", "You are invited to the {event} in {place} on {day}.", "In {place} a {event} begins on {day}."],
     ["Come to the {event} in {place} on {day}.", "The {event} in {place} starts on {day}."]),
    (trip,
     ["The train from {from} to {to} leaves on {day}.", "I travel from {from} to {to} on {day}.",
      "On {day} we fly from {from} to {to}.", "{day}: bus from {from} to {to}.", "We go to {to} from {from} on {day}.",
      "The flight to {to} leaves {from} on {day}.", "Drive me from {from} to {to} on {day}.", "A boat sails from {from} to {to} on {day}."],
     ["A ship goes from {from} to {to} on {day}.", "Take me from {from} to {to} on {day}."]),
    (pet,
     ["{name} is {an_age} year old {animal}.", "My {animal} is called {name} and is {age} years old.",
      "The {animal} {name} is {age} years old.", "{name} the {animal} is {age}.", "I have {an_animal}, {name}, who is {age}.",
      "They own {an_animal} called {name}, {age} years old.", "Her {animal} is {name}, aged {age}."],
     ["We have {an_animal} named {name}, aged {age}.", "Our {animal} {name} is {age}."]),
    (product,
     ["The {colour} {product} costs {price} euros.", "For sale: {a_colour} {product} for {price} euros.",
      "For {price} euros you get {a_colour} {product}.", "The {product} is {colour} and costs {price} euros.",
      "I paid {price} euros for {a_colour} {product}.", "That {colour} {product} is {price} euros.", "They sell {a_colour} {product} for {price} euros."],
     ["We sell {a_colour} {product} at {price} euros.", "This {colour} {product} costs {price} euros."]),
    (sight,
     ["I saw {seen} during my {activity} in the {location}.", "During my {activity} in the {location} I saw {seen}.",
      "On a {activity} in the {location} we saw {seen}.", "I saw {seen} during my {activity} in the {location}",
      "We found {seen} on our {activity} in the {location}.", "There were {seen} in the {location} on my {activity}."],
     ["We met {seen} on our {activity} in the {location}."]),
]
WHOLE_ASKS = ["Fill in a JSON object from this sentence: {s}", "Turn this sentence into JSON: {s}", "Extract the data as JSON: {s}",
              "JSON: {s}", "Write this as JSON: {s}", "Make a JSON object of this: {s}", "{s}\nJSON:", "Convert to JSON: {s}",
              "{s} Write that as JSON.", "{s}", "Please convert this to JSON: {s}", "Read this sentence and write JSON: {s}",
              "Please make JSON of this sentence: {s}", "What is this as JSON? {s}", "Give me the JSON of this: {s}"]
WHOLE_NEW_ASKS = ["Please turn this sentence into a JSON object: {s}", "Read this and give me the JSON: {s}"]
# These name the keys, some or all, in an order of their own.
KEYED_ASKS = ["Extract {keys} as JSON: {s}", "Give me {keys} as JSON. {s}", "{s} Extract {keys} as JSON.",
              "Fill in this JSON: {empty}\n{s}", "{s}\nFill in this JSON: {empty}", "{s} Give me JSON with {keys}.",
              "Write {keys} of this as JSON: {s}", "From this sentence extract {keys} as JSON: {s}"]
KEYED_NEW_ASKS = ["Extract {keys} from this sentence as JSON: {s}", "Make JSON with {keys} from this: {s}"]


def json_exchange(rng, new=False):
    """A (question, answer): a sentence, and the object that says the same. `new` draws held-out phrasings."""
    draw, trained, held = rng.choice(SENTENCES)
    values = draw(rng)
    with_article = {f"an_{key}": article(str(values[key])) for key in ("age", "event", "animal") if key in values}
    spoken = dict(values, **with_article, a_colour=article(values.get("colour", "red")),
                  seen=listed([article(animal) for animal in values.get("animals", ["none"])]))
    sentence = rng.choice(held if new else trained).format(**spoken)
    if rng.random() < 0.6:
        ask = rng.choice(WHOLE_NEW_ASKS if new else WHOLE_ASKS).format(s=sentence)
        return ask, json.dumps(values)
    keys = rng.sample(list(values), rng.randrange(1, len(values) + 1))
    empty = json.dumps({key: type(values[key])() for key in keys})
    ask = rng.choice(KEYED_NEW_ASKS if new else KEYED_ASKS).format(s=sentence, keys=listed(keys), empty=empty)
    return ask, json.dumps({key: values[key] for key in keys})


# --- What was just said ------------------------------------------------------

NAME_TELLS = ["My name is {v}.", "I am {v}.", "I'm {v}.", "Call me {v}.", "Hello, my name is {v}.", "Hi, I am {v}."]
NAME_NEW_TELLS = ["Hello, I am {v}.", "You can call me {v}."]
HOME_TELLS = ["I live in {v}.", "My home is in {v}.", "I come from {v}.", "I am from {v}."]
HOME_NEW_TELLS = ["My home is {v}."]
PET_TELLS = ["My {a} is called {v}.", "I have a {a} called {v}.", "The name of my {a} is {v}."]
PET_NEW_TELLS = ["I have a {a} named {v}."]
REPEAT_ASKS = ["Repeat: {v}", "Repeat after me: {v}", "Say: {v}", "Say {v}", "Write: {v}", "Please say: {v}", "Repeat this: {v}", "Can you say {v}?", "Please repeat {v}."]
REPEAT_NEW_ASKS = ["Please repeat: {v}", "Repeat {v}"]
COMPARE_ASKS = ["Which is larger, {m} or {n}?", "Which number is larger, {m} or {n}?", "What is larger, {m} or {n}?", "Is {m} or {n} larger?"]
COMPARE_NEW_ASKS = ["Which is the larger number, {m} or {n}?"]


def phrase(rng):
    """One to four words to repeat."""
    words = [made_up(rng) if rng.random() < 0.5 else rng.choice(GOODS + EVENTS + PAINTS + SIGHTS) for _ in range(rng.randrange(1, 5))]
    return " ".join(words)


def repeat_exchange(rng, new=False):
    value = phrase(rng)
    return rng.choice(REPEAT_NEW_ASKS if new else REPEAT_ASKS).format(v=value), value


def compare_exchange(rng, new=False):
    limit = rng.choice((20, 100, 1000))
    m, n = rng.sample(range(limit), 2)
    return rng.choice(COMPARE_NEW_ASKS if new else COMPARE_ASKS).format(m=m, n=n), f"{max(m, n)} is larger than {min(m, n)}."


def told(rng, new=False):
    """A (statement, answer to it, question about it, answer to that)."""
    kind = rng.randrange(3)
    if kind == 0:
        value = first_name(rng)
        tell = rng.choice(NAME_NEW_TELLS if new else NAME_TELLS).format(v=value)
        ask = rng.choice(["What is my name?", "What's my name?", "Do you know my name?", "Who am I?"])
        return tell, f"Nice to meet you, {value}!", ask, f"Your name is {value}."
    if kind == 1:
        value = city(rng)
        tell = rng.choice(HOME_NEW_TELLS if new else HOME_TELLS).format(v=value)
        return tell, f"I hope that {value} is a nice place.", rng.choice(["Where do I live?", "Where am I from?"]), f"You live in {value}."
    value, animal = first_name(rng), rng.choice(PETS)
    tell = rng.choice(PET_NEW_TELLS if new else PET_TELLS).format(v=value, a=animal)
    ask = rng.choice(["What is the name of my {a}?", "What is my {a} called?"]).format(a=animal)
    return tell, f"{value} is a lovely name for a {animal}.", ask, f"Your {animal} is called {value}."


# --- Tools -------------------------------------------------------------------

ROOMS = ["kitchen", "bedroom", "bathroom", "office", "hall", "garden", "living room"]
TOPICS = ["the history of bread", "cheap flights", "old maps", "the best pizza", "solar panels", "wild birds", "garden plants",
          "electric cars", "the first computer", "good books", "mountain huts", "tea from Japan"]
NEWS = ["dinner is ready", "I am late", "the train is delayed", "the meeting is over", "we are at home", "the car is here", "I found the keys"]
LANGUAGES = ["French", "German", "Spanish", "Italian", "Japanese", "Greek"]
STATES = ["Texas", "Maine", "Ohio", "New York", "CA"]


def place(rng):
    """A city, at times with its state."""
    return f"{city(rng)}, {rng.choice(STATES)}" if rng.random() < 0.2 else city(rng)


def whole(low, high):
    return lambda rng: rng.randrange(low, high)


def text(words):
    return lambda rng: rng.choice(words) if rng.random() < 0.5 else phrase(rng)


# Arguments: (names, held-out names, type, what draws the value).
PLACE = (["city", "location", "place"], ["town"], "string", place)
UNIT = (["unit", "format"], ["scale"], "string", lambda rng: rng.choice(("celsius", "fahrenheit")))
DAYS_AHEAD = (["days", "num_days", "n"], ["day_count"], "integer", whole(2, 15))
FIRST = (["a", "x", "first"], ["left"], "integer", whole(2, 1000))
SECOND = (["b", "y", "second"], ["right"], "integer", whole(2, 1000))
QUERY = (["query", "q", "text"], ["words"], "string", text(TOPICS))
PERSON = (["to", "name", "person"], ["recipient"], "string", first_name)
MESSAGE = (["message", "text", "body"], ["content"], "string", text(NEWS))
MINUTES = (["minutes", "duration"], ["length"], "integer", whole(1, 100))
ROOM = (["room", "place"], ["where"], "string", lambda rng: rng.choice(ROOMS))
STATE = (["state", "value"], ["mode"], "string", lambda rng: rng.choice(("on", "off")))
ITEM = (["item", "product"], ["goods"], "string", lambda rng: article(some_word(rng, PRODUCTS)))
LANGUAGE = (["language", "target"], ["into"], "string", lambda rng: rng.choice(LANGUAGES))
WORDS = (["text", "sentence"], ["phrase"], "string", phrase)

# (names, held-out names, descriptions, arguments, trained questions, held-out questions). A question takes the values
# in the order of the arguments; one that does not name a unit means celsius.
TOOLS = [
    (["get_weather", "weather", "current_weather", "get_current_weather"], ["fetch_weather"],
     ["Get the weather in a city.", "Get the current weather", "Says what the weather is like."], [PLACE],
     ["What is the weather in {0}?", "How is the weather in {0}?", "What's the weather like in {0}?", "What is the weather like in {0}?",
      "Tell me the weather in {0}.", "Is it raining in {0}?", "What is the weather in {0} today?"],
     ["How is the weather in {0} today?"]),
    (["get_weather", "weather", "current_weather", "get_current_weather"], ["fetch_weather"],
     ["Get the weather in a city.", "Get the current weather", "Says how warm it is."], [PLACE, UNIT],
     ["What is the weather in {0} in {1}?", "What is the temperature in {0} in {1}?", "How warm is it in {0} in {1}?",
      "What is the weather in {0}?", "What's the weather like in {0}?", "How warm is it in {0}?", "What is the weather like in {0}?"],
     ["Tell me the temperature in {0} in {1}."]),
    (["get_forecast", "forecast", "get_n_day_weather_forecast"], ["predict_weather"],
     ["Get the weather of the next days.", "Get an N-day weather forecast"], [PLACE, DAYS_AHEAD],
     ["What will the weather be in {0} in the next {1} days?", "What is the forecast for {0} for {1} days?",
      "Give me the forecast for {0} for the next {1} days."],
     ["Tell me the forecast for {0} for {1} days."]),
    (["get_time", "time_in", "current_time", "clock"], ["local_time"],
     ["Get the time in a city.", "Says what time it is in a place."], [PLACE],
     ["What time is it in {0}?", "What is the time in {0}?", "Tell me the time in {0}."], ["Can you tell me the time in {0}?"]),
    (["multiply", "times", "product_of"], ["mul"], ["Multiply two numbers.", "Gives the product of two numbers."], [FIRST, SECOND],
     ["What is {0} times {1}?", "Multiply {0} by {1}.", "What is {0} * {1}?", "How much is {0} times {1}?"], ["Multiply {0} and {1}."]),
    (["add", "plus", "sum_of"], ["sum"], ["Add two numbers.", "Gives the sum of two numbers."], [FIRST, SECOND],
     ["What is {0} plus {1}?", "Add {0} and {1}.", "What is {0} + {1}?", "How much is {0} plus {1}?"], ["Find the sum of {0} and {1}."]),
    (["search", "web_search", "find", "lookup"], ["search_web"], ["Search the web.", "Finds pages about something."], [QUERY],
     ["Search for {0}.", "Look up {0}.", "Find {0} on the web.", "Search the web for {0}."], ["Look for {0}."]),
    (["send_message", "message", "send_email", "write_to"], ["notify"], ["Send a message to a person.", "Writes to somebody."],
     [PERSON, MESSAGE],
     ["Tell {0} that {1}.", "Write to {0} that {1}.", "Send {0} a message that {1}.", "Let {0} know that {1}."], ["Inform {0} that {1}."]),
    (["set_timer", "timer", "start_timer"], ["countdown"], ["Start a timer.", "Rings after some minutes."], [MINUTES],
     ["Set a timer for {0} minutes.", "Wake me in {0} minutes.", "Start a timer of {0} minutes."], ["Ring in {0} minutes."]),
    (["set_light", "light", "switch_light"], ["lamp"], ["Switch the light in a room.", "Turns a light on or off."], [ROOM, STATE],
     ["Turn the light in the {0} {1}.", "Switch the light in the {0} {1}.", "Light {1} in the {0}."], ["Turn {1} the light in the {0}."]),
    (["get_price", "price", "price_of"], ["find_price"], ["Get the price of a product.", "Says what something costs."], [ITEM],
     ["What does {0} cost?", "How much is {0}?", "What is the price of {0}?", "How much does {0} cost?"], ["Find out what {0} costs."]),
    (["translate", "translate_text"], ["to_language"], ["Translate a text.", "Gives the text in another language."], [WORDS, LANGUAGE],
     ["Translate {0} into {1}.", "Translate {0} to {1}.", "Say {0} in {1}."], ["Please translate {0} into {1}."]),
]
# Words of names that are put together; none of a held-out name is among them.
VERBS = ["get", "show", "check", "query", "request", "load", "call", "ask", "run", "do", "open", "list", "make", "compute", "use", "try"]
NOUNS = ["data", "value", "input", "item", "key", "code", "number", "subject", "topic", "target", "source", "user", "date", "level", "kind",
         "size", "unit", "area", "state", "amount", "entry", "label", "field", "person", "report", "index", "page", "group", "market", "stock"]
RESULT_WORDS = ["sunny", "cloudy", "rain", "done", "not found", "windy", "snow", "ok", "sent", "closed"]

TOOLS_HEAD = "You may call these tools:\n<tools>\n"
TOOLS_TAIL = ("\n</tools>\nTo call a tool, write:\n<tool_call>\n{\"name\": \"its name\", \"arguments\": {\"an argument\": \"its value\"}}\n"
              "</tool_call>")


def invented_tool(rng):
    """A tool for a property that does not exist, of which nothing is known but its description."""
    word = made_up(rng)
    argument = (["name", "thing", "item", "id"], ["object"], "string", lambda rng: made_up(rng))
    return ([f"get_{word}", f"{word}_of", word], [f"read_{word}"], [f"Get the {word} of a thing.", f"Says what {word} something has."], [argument],
            [f"What is the {word} of {{0}}?", f"Tell me the {word} of {{0}}.", f"Which {word} does {{0}} have?"], [f"Give me the {word} of {{0}}."])


def tool_name(rng, names):
    """One of the usual names, or as often one that must be read: with a made-up part, or made up altogether."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(names)
    if draw < 0.75:
        return rng.choice([f"{rng.choice(VERBS)}_{made_up(rng)}", f"{made_up(rng)}_{rng.choice(names)}", f"{made_up(rng)}_{made_up(rng)}"])
    if draw < 0.9:
        return f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    return rng.choice([made_up(rng), rng.choice(VERBS) + rng.choice(NOUNS).capitalize()])


def argument_name(rng, names):
    """One of the usual names, or as often one that must be read."""
    draw = rng.random()
    if draw < 0.5:
        return rng.choice(names)
    if draw < 0.75:
        return rng.choice(NOUNS)
    return rng.choice([made_up(rng), f"{rng.choice(NOUNS)}_{rng.choice(NOUNS)}", f"{rng.choice(names)}_{made_up(rng)}"])


def named(rng, kind, new):
    """(specification as the prompt shows it, argument names) of a tool kind under one of its names."""
    names, new_names, descriptions, arguments, _, _ = kind
    keys = []
    for trained, held, _, _ in arguments:
        key = rng.choice(held) if new else argument_name(rng, trained)
        while key in keys:
            key = rng.choice(held) if new else argument_name(rng, trained)
        keys.append(key)
    spec = {"name": rng.choice(new_names) if new else tool_name(rng, names), "description": rng.choice(descriptions),
            "arguments": {key: argument[2] for key, argument in zip(keys, arguments)}}
    return spec, keys


def call_text(name, arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def tools_text(specs):
    """The part of a system message that describes tools."""
    return TOOLS_HEAD + "\n".join(json.dumps(spec) for spec in specs) + TOOLS_TAIL


def result(rng):
    """(what a tool returned, the sentence that reports it)."""
    if rng.random() < 0.4:
        words = some_word(rng, RESULT_WORDS) if rng.random() < 0.5 else str(rng.randrange(-20, 2000))
        return words, f"The answer is {words}."
    keys = rng.sample(["temperature", "sky", "time", "price", "result", "status", "wind", "text"], rng.randrange(1, 4))
    values = {key: rng.randrange(0, 2000) if rng.random() < 0.5 else some_word(rng, RESULT_WORDS) for key in keys}
    return json.dumps(values), "The answer is " + ", ".join(f"{key} {value}" for key, value in values.items()) + "."


def tool_turns(rng, new=False):
    """(specifications, [(role, text)]): a question that a tool answers, the call, at times its result and the report."""
    kind = rng.choice(TOOLS) if rng.random() < 0.75 else invented_tool(rng)
    names, new_names, _, arguments, asks, new_asks = kind
    spec, keys = named(rng, kind, new)
    specs = [spec] + other_tools(rng, rng.choice((0, 0, 1, 2)), taken=names)
    rng.shuffle(specs)
    ask = rng.choice(new_asks if new else asks)
    values = [argument[3](rng) for argument in arguments]
    if UNIT in arguments and "{1}" not in ask:
        values[1] = "celsius"
    calls = [values]
    if arguments in ([PLACE],) and not new and rng.random() < 0.15:
        calls.append([place(rng)])
        ask = ask.replace("{0}", "{0} and {1}")
        spoken = ask.format(values[0], calls[1][0])
    else:
        spoken = ask.format(*values)
    answer = "\n".join(call_text(spec["name"], dict(zip(keys, each))) for each in calls)
    turns = [("user", capitalise(spoken)), ("assistant", answer)]
    if len(calls) == 1 and rng.random() < 0.5:
        returned, report = result(rng)
        turns += [("tool", returned), ("assistant", report)]
    return specs, turns


def other_tools(rng, count, taken=()):
    """Specifications of so many tools of different kinds, of which none may bear one of the names that are taken."""
    taken, specs = set(taken), []
    while len(specs) < count:
        kind = rng.choice(TOOLS)
        if not taken & set(kind[0]):
            specs.append(named(rng, kind, new=False)[0])
            taken |= set(kind[0])
    return specs
