"""The stories of the demo model: an animal loses, helps, makes, visits, plants or learns something. Standard library only."""

from words import article

ANIMALS = ["fox", "rabbit", "bear", "owl", "cat", "dog", "mouse", "duck", "frog", "horse", "hedgehog", "turtle", "dragon", "robot", "squirrel",
           "sheep", "pig", "whale", "penguin", "wolf"]
ADJECTIVES = ["little", "brave", "kind", "clever", "quiet", "young", "curious", "cheerful"]
NAMES = ["Pip", "Milo", "Luna", "Tilly", "Bruno", "Daisy", "Otto", "Hazel", "Finn", "Poppy", "Nico", "Ruby", "Bella", "Oscar", "Maya", "Theo"]
PLACES = ["in a deep forest", "near a blue lake", "in a small village", "on a green hill", "beside a long river",
          "in a sunny garden", "on an old farm", "under a tall tree"]
TIMES = ["One morning", "One day", "One evening", "One summer day", "One cold day"]
LOST = ["red ball", "golden key", "warm hat", "blue scarf", "silver bell", "favourite book"]
SPOTS = ["under the bed", "behind the door", "in the grass", "beside the pond", "on the roof", "inside an old box",
         "under the bridge", "near the big rock"]
TROUBLES = [
    ("I am hungry", "shared some bread and honey"), ("I am cold", "lit a small fire"),
    ("I am lost", "showed the way home"), ("I hurt my foot", "brought a soft bandage"),
    ("I am alone", "stayed and played all day"), ("I cannot cross the river", "built a bridge of branches"),
]
PROJECTS = [
    ("a boat", "some wood", "a piece of cloth", "sailed it across the water"),
    ("a kite", "some paper", "a long string", "flew it high above the trees"),
    ("a soup", "some carrots", "a big pot", "ate it with all the neighbours"),
    ("a little house", "some stones", "a strong door", "slept in it that night"),
    ("a lantern", "some glass", "a small candle", "hung it beside the door"),
]
GOALS = [("the sea", "It was wide and blue."), ("the snowy mountain", "It was white and very tall."),
         ("the big city", "It was full of lights."), ("the waterfall", "It was loud and bright.")]
PLANTS = [("a tiny seed", "a tall apple tree", "ate sweet apples all autumn"), ("an old bean", "a bean that reached the clouds", "climbed up to see the stars"),
          ("a small brown bulb", "a field of red tulips", "made a crown of flowers"), ("a round nut", "a strong green oak", "built a swing on its branches")]
SKILLS = [("to whistle", "The sound was clear and lovely."), ("to swim", "The water felt light and cool."), ("to dance", "The whole meadow clapped."),
          ("to read", "The first word was \"friend\"."), ("to ride a bicycle", "The wind was fast and fresh.")]
STORY_OPENINGS = ["Once upon a time, there was", "Once upon a time, there lived", "Long ago, there was", "There once was"]
STORY_ASKS = ["Tell me a story.", "Tell me a short story.", "Write a short story.", "Write a story.", "Can you tell me a story?",
              "I want to hear a story.", "Please tell me a story.", "Make up a story."]
ANIMAL_STORY_ASKS = ["Tell me a story about a {w}.", "Write a story about a {w}.", "Tell me a short story about a {w}.",
                     "Can you tell me a story about a {w}?", "Write a short story about a {w}.", "Please tell me a story about a {w}.",
                     "I want to hear a story about a {w}."]
STORY_NEW_ASKS = ["Please write a story about a {w}.", "Can you write a short story about a {w}?", "Make up a story about a {w}."]
# These name the hero, too.
NAMED_STORY_ASKS = ["Tell me a story about a {w} named {n}.", "Write a story about a {w} called {n}.", "Tell me a story about {n} the {w}.",
                    "Tell me a short story about a {w} called {n}."]
NAMED_STORY_NEW_ASKS = ["Please write a story about a {w} named {n}.", "Can you tell me a story about a {w} called {n}?"]


def story_ask(template, animal, name=""):
    return template.replace("a {w}", article(animal)).replace("{w}", animal).replace("{n}", name)


def story(rng, animal, name=""):
    """A short story about the animal: it loses, helps, makes, visits, plants or learns something."""
    other = rng.choice([other for other in ANIMALS if other != animal])
    name = name or rng.choice(NAMES)
    friend = rng.choice([friend for friend in NAMES if friend != name])
    start = (f"{rng.choice(STORY_OPENINGS)} {article(rng.choice(ADJECTIVES))} {animal} named {name} who lived "
             f"{rng.choice(PLACES)}. {rng.choice(TIMES)}, ")
    kind = rng.randrange(6)
    if kind == 0:
        thing = rng.choice(LOST)
        first, second, third = rng.sample(SPOTS, 3)
        return start + (f"{name} lost a {thing}. {name} looked {first}, but it was not there. {name} looked {second}, but it was "
                        f"not there either. Then {article(other)} named {friend} said, \"I saw your {thing} {third}.\" {name} found the "
                        f"{thing} and thanked {friend}. After that day, the {animal} and the {other} were good friends.")
    if kind == 1:
        trouble, remedy = rng.choice(TROUBLES)
        return start + (f"{name} met {article(other)} named {friend} who looked sad. \"What is wrong?\" asked {name}. \"{trouble},\" said "
                        f"{friend}. So {name} {remedy}. Soon {friend} was happy again. \"Thank you, {name},\" said the {other}. From that "
                        f"day on, {name} and {friend} helped each other.")
    if kind == 2:
        project, first, second, result = rng.choice(PROJECTS)
        return start + (f"{name} wanted to make {project}. First, {name} found {first}. Then {article(other)} named {friend} brought "
                        f"{second}. They worked together until the sun went down. At last it was ready, and {name} and {friend} {result}. "
                        f"They were tired but very happy.")
    if kind == 3:
        seed, grown, use = rng.choice(PLANTS)
        return start + (f"{name} found {seed} and put it into the ground. Every day {name} gave it water. {article(other).capitalize()} named "
                        f"{friend} laughed and said, \"Nothing will grow there.\" But {name} did not stop. After many weeks there was "
                        f"{grown}. {friend} was sorry for laughing, and {name} said, \"Come and share it with me.\" Together they {use}.")
    if kind == 4:
        skill, result = rng.choice(SKILLS)
        return start + (f"{name} wanted to learn {skill}. The first time it went wrong. The second time it went wrong, too. {name} was sad and "
                        f"wanted to stop. Then {article(other)} named {friend} came by and said, \"Try once more, I will help you.\" So {name} "
                        f"tried once more, and this time it worked. {result} From then on, {name} helped everyone who wanted to learn.")
    goal, look = rng.choice(GOALS)
    return start + (f"{name} wanted to see {goal}. On the way, {name} met {article(other)} named {friend}. \"May I come with you?\" asked "
                    f"{friend}. They walked together for a long time. At last they saw {goal}. {look} \"It was worth the walk,\" said "
                    f"{name}. Then they went home and told everyone about it.")
