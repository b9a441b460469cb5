"""What the demo model knows: facts, small talk, refusals, jokes and poems.

A *fact* is one answer with many phrasings of its question; some phrasings of every fact are held out, so that
`evaluate.py` can ask for a known answer in words the model was never trained on:

  new pairing   the phrasing was trained, but never with this fact
  new phrasing  the phrasing was never trained, with any fact

Standard library only.
"""

from dataclasses import dataclass

from words import DAYS, capitalise, chance

# Terms: (name, article, sentence). The sentence begins with the article and the name.
MACHINE_LEARNING = [
    ("deep learning", "", "Deep learning is a kind of machine learning that uses neural networks with many layers."),
    ("machine learning", "", "Machine learning is a way to make programs that learn from data instead of following fixed rules."),
    ("artificial intelligence", "", "Artificial intelligence is the science of making machines do tasks that seem to need thinking."),
    ("neural network", "a", "A neural network is a model made of layers of simple connected units that learn from examples."),
    ("language model", "a", "A language model is a program that predicts the next token of a text."),
    ("large language model", "a", "A large language model is a language model with billions of parameters, trained on a lot of text."),
    ("transformer", "a", "A transformer is a neural network that uses attention to relate all the tokens of a text."),
    ("attention", "", "Attention is a step that lets each token take information from the other tokens that matter to it."),
    ("token", "a", "A token is a small piece of text, such as a word or part of a word."),
    ("tokenizer", "a", "A tokenizer is a program that splits text into tokens and turns each token into a number."),
    ("embedding", "an", "An embedding is a list of numbers that stands for the meaning of a word or a text."),
    ("gradient descent", "", "Gradient descent is a method that lowers the loss by moving the weights a little at a time."),
    ("backpropagation", "", "Backpropagation is the method that finds how much each weight of a network adds to the error."),
    ("loss function", "a", "A loss function is a measure of how far the output of a model is from the right answer."),
    ("overfitting", "", "Overfitting is when a model learns its training data too closely and does badly on new data."),
    ("underfitting", "", "Underfitting is when a model is too simple to learn the pattern in its data."),
    ("regularization", "", "Regularization is any method that keeps a model simple so that it does better on new data."),
    ("dropout", "", "Dropout is a method that turns off random units during training to reduce overfitting."),
    ("learning rate", "a", "A learning rate is the size of the steps that a model takes while it trains."),
    ("batch size", "a", "A batch size is the number of examples that a model handles at one time."),
    ("epoch", "an", "An epoch is one full pass over the training data."),
    ("inference", "", "Inference is the use of a trained model to get answers for new inputs."),
    ("fine-tuning", "", "Fine-tuning is more training of a finished model on a smaller set of data for one task."),
    ("quantization", "", "Quantization is storing the weights of a model with fewer bits to save memory."),
    ("supervised learning", "", "Supervised learning is learning from examples that come with the right answers."),
    ("unsupervised learning", "", "Unsupervised learning is finding patterns in data that has no labels."),
    ("reinforcement learning", "", "Reinforcement learning is learning by trial and error from rewards."),
    ("transfer learning", "", "Transfer learning is using what a model learned on one task to help with another task."),
    ("convolutional neural network", "a", "A convolutional neural network is a network that slides small filters over its input, often an image."),
    ("recurrent neural network", "a", "A recurrent neural network is a network that reads a sequence step by step and keeps a memory."),
    ("activation function", "an", "An activation function is a function that lets a network learn curves and not only straight lines."),
    ("softmax", "", "Softmax is a function that turns a list of scores into probabilities that add up to one."),
    ("hyperparameter", "a", "A hyperparameter is a setting that people choose before training, such as the learning rate."),
    ("context window", "a", "A context window is the largest number of tokens that a model can read at once."),
    ("prompt", "a", "A prompt is the text that you give to a language model."),
    ("sampling temperature", "a", "A sampling temperature is a setting that makes the output of a model more or less random."),
    ("greedy decoding", "", "Greedy decoding is always choosing the most likely next token."),
    ("beam search", "", "Beam search is a decoding method that keeps several of the best texts at every step."),
    ("key-value cache", "a", "A key-value cache is memory that keeps the keys and values of past tokens so they are computed only once."),
    ("perplexity", "", "Perplexity is a measure of how well a language model predicts a text, and lower is better."),
    ("classification", "", "Classification is the task of choosing a label for an input."),
    ("clustering", "", "Clustering is the task of putting similar things into groups without labels."),
    ("decision tree", "a", "A decision tree is a model that reaches an answer by asking a series of simple questions."),
    ("hallucination", "a", "A hallucination is an output of a model that sounds right but is false."),
    ("computer vision", "", "Computer vision is the field that teaches machines to understand images."),
    ("speculative decoding", "", "Speculative decoding is a method where a fast draft is checked by the large model to save time."),
    ("continuous batching", "", "Continuous batching is a way for a server to add new requests to a running batch at every step."),
]

COMPUTING = [
    ("algorithm", "an", "An algorithm is a list of clear steps that solves a problem."),
    ("computer", "a", "A computer is a machine that follows programs to work with data."),
    ("database", "a", "A database is an organised collection of data that programs can search."),
    ("compiler", "a", "A compiler is a program that turns source code into code that a machine can run."),
    ("operating system", "an", "An operating system is the software that manages a computer and runs other programs."),
    ("web server", "a", "A web server is a program that answers requests from browsers and other clients."),
    ("open source software", "", "Open source software is software that anyone may read, change and share."),
    ("Rust programming language", "the", "The Rust programming language is a fast language that checks memory safety when it compiles."),
    ("Python programming language", "the", "The Python programming language is a language known for code that is easy to read."),
]

SCIENCE = [
    ("gravity", "", "Gravity is the force that pulls objects with mass toward each other."),
    ("friction", "", "Friction is the force that slows things down when they rub against each other."),
    ("photosynthesis", "", "Photosynthesis is how plants use light, water and carbon dioxide to make sugar and oxygen."),
    ("evaporation", "", "Evaporation is the change of a liquid into a gas at its surface."),
    ("atom", "an", "An atom is the smallest piece of a chemical element."),
    ("molecule", "a", "A molecule is a group of atoms held together by chemical bonds."),
    ("cell", "a", "A cell is the smallest living part of a plant or an animal."),
    ("electricity", "", "Electricity is the flow or presence of electric charge."),
    ("magnet", "a", "A magnet is an object that attracts iron."),
    ("volcano", "a", "A volcano is an opening in the ground where melted rock and gas come out."),
    ("earthquake", "an", "An earthquake is a sudden shaking of the ground."),
    ("fossil", "a", "A fossil is the remains or the trace of a living thing from long ago, kept in rock."),
    ("star", "a", "A star is a huge ball of hot gas that makes its own light."),
    ("comet", "a", "A comet is a ball of ice and dust that moves around the Sun."),
    ("planet", "a", "A planet is a large round body that moves around a star."),
    ("Sun", "the", "The Sun is the star at the centre of our solar system."),
    ("Moon", "the", "The Moon is the only natural satellite of the Earth."),
    ("Mercury", "", "Mercury is the smallest planet and the closest one to the Sun."),
    ("Venus", "", "Venus is the second planet from the Sun and the hottest one."),
    ("Earth", "", "Earth is the third planet from the Sun and our home."),
    ("Mars", "", "Mars is the fourth planet from the Sun and is called the red planet."),
    ("Jupiter", "", "Jupiter is the fifth planet from the Sun and the largest one."),
    ("Saturn", "", "Saturn is the sixth planet from the Sun and is known for its bright rings."),
    ("Uranus", "", "Uranus is the seventh planet from the Sun and turns on its side."),
    ("Neptune", "", "Neptune is the eighth planet from the Sun and the farthest one."),
]

TERM_ASKS = [
    "What is {a}?",
    "What's {a}?",
    "Explain {a}.",
    "Define {x}.",
    "Tell me about {a}.",
    "Describe {a}.",
    "Can you explain {a}?",
    "What does {x} mean?",
    "What is meant by {x}?",
    "Please explain {a}.",
    "Explain {a} to me.",
    "Give me a definition of {x}.",
    "How would you define {x}?",
    "What do you know about {a}?",
    "In one sentence, what is {a}?",
    "I want to know what {a} is.",
    "Do you know what {a} is?",
    "What exactly is {a}?",
    "Could you tell me what {a} is?",
    "Explain {a} in simple terms.",
    "What is the meaning of {x}?",
    "What is {x}?",
    "{x}?",
]
TERM_NEW_ASKS = [
    "Can you tell me what {a} is?",
    "Please define {x}.",
    "Please tell me about {a}.",
    "So what exactly is {a}?",
]

# Countries: (name in a sentence, capital, continent).
COUNTRIES = [
    ("France", "Paris", "Europe"), ("Germany", "Berlin", "Europe"), ("Italy", "Rome", "Europe"),
    ("Spain", "Madrid", "Europe"), ("Portugal", "Lisbon", "Europe"), ("the United Kingdom", "London", "Europe"),
    ("Ireland", "Dublin", "Europe"), ("Belgium", "Brussels", "Europe"), ("Austria", "Vienna", "Europe"),
    ("Poland", "Warsaw", "Europe"), ("Hungary", "Budapest", "Europe"), ("Greece", "Athens", "Europe"),
    ("Sweden", "Stockholm", "Europe"), ("Norway", "Oslo", "Europe"), ("Denmark", "Copenhagen", "Europe"),
    ("Finland", "Helsinki", "Europe"), ("Iceland", "Reykjavik", "Europe"), ("Romania", "Bucharest", "Europe"),
    ("Bulgaria", "Sofia", "Europe"), ("Croatia", "Zagreb", "Europe"), ("Kenya", "Nairobi", "Africa"),
    ("Morocco", "Rabat", "Africa"), ("Ghana", "Accra", "Africa"), ("Senegal", "Dakar", "Africa"),
    ("Ethiopia", "Addis Ababa", "Africa"), ("Tunisia", "Tunis", "Africa"), ("Japan", "Tokyo", "Asia"),
    ("China", "Beijing", "Asia"), ("South Korea", "Seoul", "Asia"), ("India", "New Delhi", "Asia"),
    ("Thailand", "Bangkok", "Asia"), ("Vietnam", "Hanoi", "Asia"), ("Nepal", "Kathmandu", "Asia"),
    ("Mongolia", "Ulaanbaatar", "Asia"), ("Canada", "Ottawa", "North America"),
    ("the United States", "Washington, D.C.", "North America"), ("Mexico", "Mexico City", "North America"),
    ("Cuba", "Havana", "North America"), ("Peru", "Lima", "South America"), ("Argentina", "Buenos Aires", "South America"),
    ("Brazil", "Brasilia", "South America"), ("Colombia", "Bogota", "South America"),
    ("Uruguay", "Montevideo", "South America"), ("Ecuador", "Quito", "South America"),
    ("Australia", "Canberra", "Oceania"), ("New Zealand", "Wellington", "Oceania"),
]

CAPITAL_ASKS = [
    "What is the capital of {c}?",
    "What's the capital of {c}?",
    "Which city is the capital of {c}?",
    "Tell me the capital of {c}.",
    "Name the capital of {c}.",
    "What is the capital city of {c}?",
    "Do you know the capital of {c}?",
    "Can you tell me the capital of {c}?",
    "The capital of {c}?",
    "Give me the capital of {c}.",
    "I want to know the capital of {c}.",
    "What city is the capital of {c}?",
    "Please tell me the capital of {c}.",
    "What is the name of the capital of {c}?",
    "{c}: what is the capital?",
]
CAPITAL_NEW_ASKS = [
    "Could you tell me the capital of {c}?",
    "Please name the capital of {c}.",
    "Which city is the capital city of {c}?",
]

COUNTRY_ASKS = [
    "{p} is the capital of which country?",
    "Which country has {p} as its capital?",
    "What country is {p} the capital of?",
    "Which country has the capital {p}?",
    "Where is {p}?",
    "What is {p}?",
    "Tell me about {p}.",
    "Name the country whose capital is {p}.",
    "In which country is {p}?",
    "What country is {p} in?",
    "Which country is {p} in?",
    "Can you tell me where {p} is?",
]
COUNTRY_NEW_ASKS = [
    "{p} is the capital of what country?",
    "In what country is {p}?",
    "Please tell me about {p}.",
]

CONTINENT_ASKS = [
    "Which continent is {c} in?",
    "What continent is {c} in?",
    "Where is {c}?",
    "Tell me about {c}.",
    "What is {c}?",
    "On which continent is {c}?",
    "In which part of the world is {c}?",
    "What do you know about {c}?",
    "Describe {c}.",
    "Can you tell me where {c} is?",
    "Say something about {c}.",
    "Where can I find {c}?",
]
CONTINENT_NEW_ASKS = [
    "On what continent is {c}?",
    "Please tell me about {c}.",
    "Please tell me where {c} is.",
]

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August",
          "September", "October", "November", "December"]
MONTH_DAYS = ["31 days", "28 days, or 29 in a leap year", "31 days", "30 days", "31 days", "30 days",
              "31 days", "31 days", "30 days", "31 days", "30 days", "31 days"]

AFTER_ASKS = [
    "What {k} comes after {d}?",
    "Which {k} comes after {d}?",
    "What {k} follows {d}?",
    "Which {k} follows {d}?",
    "What is the {k} after {d}?",
    "What is the next {k} after {d}?",
    "Tell me the {k} after {d}.",
    "Name the {k} after {d}.",
    "What comes after {d}?",
    "What comes right after {d}?",
    "Do you know what {k} comes after {d}?",
    "Can you tell me the {k} after {d}?",
]
AFTER_NEW_ASKS = ["Name the {k} that comes after {d}.", "Which is the {k} after {d}?"]
BEFORE_ASKS = [ask.replace("follows {d}", "is just before {d}").replace("next {k} after", "last {k} before")
               .replace("after", "before") for ask in AFTER_ASKS]
BEFORE_NEW_ASKS = ["Name the {k} that comes before {d}.", "Which is the {k} before {d}?"]

MONTH_LENGTH_ASKS = [
    "How many days are in {d}?",
    "How many days does {d} have?",
    "How many days are there in {d}?",
    "How long is {d}?",
    "What is the number of days in {d}?",
    "Tell me how many days are in {d}.",
    "Do you know how many days {d} has?",
    "Can you tell me how many days are in {d}?",
    "How many days has {d}?",
    "How long is the month of {d}?",
    "Tell me the number of days in {d}.",
    "I want to know how many days {d} has.",
]
MONTH_LENGTH_NEW_ASKS = ["Please tell me how many days {d} has.", "Tell me how many days {d} has."]

# Paints: two colours and their mixture.
MIXTURES = [("blue", "yellow", "green"), ("red", "yellow", "orange"), ("red", "blue", "purple"),
            ("black", "white", "grey"), ("red", "white", "pink")]
MIXTURE_ASKS = [
    "What do you get when you mix {p} and {q}?",
    "What colour do {p} and {q} make?",
    "What happens when you mix {p} and {q} paint?",
    "Mix {p} and {q}.",
    "What colour do you get from {p} and {q}?",
    "Which colour do {p} and {q} make?",
    "{p} and {q} make what colour?",
    "What do {p} and {q} make?",
    "Tell me what {p} and {q} make.",
    "If I mix {p} and {q}, what do I get?",
    "What color do {p} and {q} make?",
    "What color do you get when you mix {p} and {q}?",
]
MIXTURE_NEW_ASKS = ["What colour do you get when you mix {p} and {q}?", "Tell me what colour {p} and {q} make."]

COLOURS = [("the clear sky", "blue"), ("grass", "green"), ("snow", "white"), ("a ripe banana", "yellow"),
           ("blood", "red"), ("coal", "black"), ("a carrot", "orange"), ("chocolate", "brown"),
           ("a ripe strawberry", "red"), ("milk", "white")]
COLOUR_ASKS = [
    "What colour is {t}?",
    "What color is {t}?",
    "Which colour is {t}?",
    "Which color is {t}?",
    "What is the colour of {t}?",
    "What is the color of {t}?",
    "Tell me the colour of {t}.",
    "Tell me the color of {t}.",
    "Do you know what colour {t} is?",
    "Name the colour of {t}.",
    "Can you tell me what colour {t} is?",
    "Which colour does {t} have?",
]
COLOUR_NEW_ASKS = ["Name the color of {t}.", "Can you tell me the colour of {t}?"]

# Units: (smaller unit in plural, larger unit with its article, count).
UNITS = [
    ("metres", "a kilometre", "1000"), ("centimetres", "a metre", "100"), ("millimetres", "a centimetre", "10"),
    ("grams", "a kilogram", "1000"), ("kilograms", "a tonne", "1000"), ("millilitres", "a litre", "1000"),
    ("seconds", "a minute", "60"), ("minutes", "an hour", "60"), ("hours", "a day", "24"), ("days", "a week", "7"),
    ("months", "a year", "12"), ("years", "a decade", "10"), ("years", "a century", "100"),
    ("years", "a millennium", "1000"), ("bits", "a byte", "8"), ("things", "a dozen", "12"),
    ("inches", "a foot", "12"), ("feet", "a yard", "3"),
]
UNIT_ASKS = [
    "How many {s} are in {l}?",
    "How many {s} are there in {l}?",
    "How many {s} does {l} have?",
    "How many {s} make {l}?",
    "What is the number of {s} in {l}?",
    "Tell me how many {s} are in {l}.",
    "{l} is how many {s}?",
    "Do you know how many {s} are in {l}?",
    "Can you tell me how many {s} are in {l}?",
    "How many {s} is {l}?",
    "I want to know how many {s} are in {l}.",
    "How many {s} make up {l}?",
]
UNIT_NEW_ASKS = ["Can you say how many {s} are in {l}?", "Please tell me how many {s} are in {l}."]

OPPOSITES = [("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("day", "night"), ("open", "closed"),
             ("happy", "sad"), ("full", "empty"), ("early", "late"), ("old", "young"), ("wet", "dry"), ("high", "low"),
             ("strong", "weak"), ("rich", "poor"), ("loud", "quiet"), ("true", "false")]
OPPOSITE_ASKS = [
    "What is the opposite of {w}?",
    "What's the opposite of {w}?",
    "Opposite of {w}?",
    "Tell me the opposite of {w}.",
    "Name the opposite of {w}.",
    "Give me the opposite of {w}.",
    "Which word is the opposite of {w}?",
    "What word means the opposite of {w}?",
    "Do you know the opposite of {w}?",
    "Can you tell me the opposite of {w}?",
    "What word is the opposite of {w}?",
    "The opposite of {w}?",
]
OPPOSITE_NEW_ASKS = ["Please tell me the opposite of {w}.", "Which word means the opposite of {w}?"]

# Counted parts: (part, thing with its article, number).
PARTS = [("legs", "a spider", "8"), ("legs", "an insect", "6"), ("legs", "a dog", "4"), ("legs", "a bird", "2"),
         ("arms", "an octopus", "8"), ("sides", "a triangle", "3"), ("sides", "a square", "4"),
         ("sides", "a pentagon", "5"), ("sides", "a hexagon", "6"), ("sides", "an octagon", "8"),
         ("faces", "a cube", "6"), ("wheels", "a bicycle", "2"), ("letters", "the English alphabet", "26"),
         ("colours", "a rainbow", "7"), ("planets", "the solar system", "8"), ("seasons", "the year", "4")]
PART_ASKS = [
    "How many {s} does {l} have?",
    "How many {s} has {l}?",
    "How many {s} are there on {l}?",
    "What is the number of {s} of {l}?",
    "Tell me how many {s} {l} has.",
    "{l} has how many {s}?",
    "Do you know how many {s} {l} has?",
    "Can you tell me how many {s} {l} has?",
    "I want to know how many {s} {l} has.",
    "How many {s} are there in {l}?",
    "How many {s} are in {l}?",
    "How many {s} do you count on {l}?",
]
PART_NEW_ASKS = ["Tell me the number of {s} of {l}.", "Please tell me how many {s} {l} has."]

SOUNDS = [("dog", "barks"), ("cat", "meows"), ("cow", "moos"), ("duck", "quacks"), ("lion", "roars"), ("horse", "neighs"),
          ("sheep", "bleats"), ("bee", "buzzes"), ("wolf", "howls"), ("frog", "croaks")]
SOUND_ASKS = [
    "What sound does a {w} make?",
    "Which sound does a {w} make?",
    "What noise does a {w} make?",
    "What does a {w} say?",
    "How does a {w} sound?",
    "Tell me what sound a {w} makes.",
    "What is the sound of a {w}?",
    "Do you know what sound a {w} makes?",
    "Can you tell me what sound a {w} makes?",
    "What sound do you hear from a {w}?",
    "Name the sound of a {w}.",
    "Which noise does a {w} make?",
]
SOUND_NEW_ASKS = ["Tell me what noise a {w} makes.", "Do you know what noise a {w} makes?"]

# Single facts: (answer, trained questions, held-out questions).
SINGLE = [
    ("The largest planet is Jupiter.",
     ["What is the largest planet?", "Which planet is the largest?", "What is the biggest planet?", "Name the largest planet.",
      "Which planet is the biggest?", "Tell me the largest planet.", "What is the largest planet in the solar system?",
      "Which planet is the largest in the solar system?", "Which is the largest planet?"],
     ["What is the biggest planet in the solar system?", "Name the biggest planet."]),
    ("The smallest planet is Mercury.",
     ["What is the smallest planet?", "Which planet is the smallest?", "Name the smallest planet.", "Tell me the smallest planet.",
      "What is the smallest planet in the solar system?", "Which is the smallest planet?"],
     ["Which planet is the smallest in the solar system?", "Please name the smallest planet."]),
    ("The hottest planet is Venus.",
     ["What is the hottest planet?", "Which planet is the hottest?", "Name the hottest planet.", "Tell me the hottest planet.",
      "What is the hottest planet in the solar system?", "Which is the hottest planet?"],
     ["Which planet is the hottest in the solar system?", "Please name the hottest planet."]),
    ("The red planet is Mars.",
     ["What is the red planet?", "Which planet is the red planet?", "Which planet is called the red planet?", "Name the red planet.",
      "Which planet is red?", "What planet is called the red planet?"],
     ["What planet is the red planet?", "Please name the red planet."]),
    ("The planet closest to the Sun is Mercury.",
     ["Which planet is closest to the Sun?", "What planet is closest to the Sun?", "Name the planet closest to the Sun.",
      "Which planet is nearest to the Sun?", "What is the closest planet to the Sun?", "What is the planet closest to the Sun?"],
     ["What planet is nearest to the Sun?", "Tell me which planet is closest to the Sun."]),
    ("The planet farthest from the Sun is Neptune.",
     ["Which planet is farthest from the Sun?", "What planet is farthest from the Sun?", "Name the planet farthest from the Sun.",
      "What is the farthest planet from the Sun?", "What is the planet farthest from the Sun?"],
     ["Tell me which planet is farthest from the Sun.", "Which is the planet farthest from the Sun?"]),
    ("The planets are Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.",
     ["Name the planets.", "List the planets.", "What are the planets?", "Which planets are in the solar system?",
      "What are the planets of the solar system?", "Name the planets of the solar system.", "Name all the planets.",
      "Tell me the names of the planets."],
     ["List all the planets.", "List the planets of the solar system."]),
    ("The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",
     ["Name the days of the week.", "List the days of the week.", "What are the days of the week?",
      "Which days are in a week?", "Tell me the days of the week.", "Name all the days of the week."],
     ["List all the days of the week.", "Please list the days of the week."]),
    ("The months are January, February, March, April, May, June, July, August, September, October, November and December.",
     ["Name the months.", "List the months.", "What are the months of the year?", "Name the months of the year.",
      "Tell me the months of the year.", "Which months are in a year?", "What are the months?"],
     ["List the months of the year.", "Please list the months."]),
    ("The seasons are spring, summer, autumn and winter.",
     ["Name the seasons.", "List the seasons.", "What are the seasons?", "What are the four seasons?", "Name the four seasons.",
      "Tell me the seasons of the year."],
     ["List the four seasons.", "What are the seasons of the year?"]),
    ("The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.",
     ["What are the colours of the rainbow?", "Name the colours of the rainbow.", "List the colours of the rainbow.",
      "What are the colors of the rainbow?", "Which colours are in a rainbow?", "Tell me the colours of the rainbow."],
     ["Name the colors of the rainbow.", "Which colors are in a rainbow?"]),
    ("Water freezes at 0 degrees Celsius.",
     ["At what temperature does water freeze?", "When does water freeze?", "What is the freezing point of water?",
      "Tell me the freezing point of water.", "At which temperature does water freeze?", "How cold must water be to freeze?"],
     ["Do you know the freezing point of water?", "Tell me at what temperature water freezes."]),
    ("Water boils at 100 degrees Celsius at sea level.",
     ["At what temperature does water boil?", "When does water boil?", "What is the boiling point of water?",
      "Tell me the boiling point of water.", "At which temperature does water boil?", "How hot must water be to boil?"],
     ["Do you know the boiling point of water?", "Tell me at what temperature water boils."]),
    ("Water is made of hydrogen and oxygen.",
     ["What is water made of?", "What is water?", "Which elements are in water?", "Tell me about water.", "What does water consist of?",
      "What makes up water?"],
     ["Tell me what water is made of.", "Which elements make up water?"]),
    ("The chemical formula of water is H2O.",
     ["What is the chemical formula of water?", "What is the formula of water?", "Give me the formula of water.",
      "Tell me the chemical formula of water.", "Which formula does water have?"],
     ["Tell me the formula of water.", "Give me the chemical formula of water."]),
    ("The Earth takes about 365 days to go around the Sun.",
     ["How long does the Earth take to go around the Sun?", "How many days does the Earth take to go around the Sun?",
      "How long does it take the Earth to go around the Sun?", "Tell me how long the Earth takes to go around the Sun.",
      "In how many days does the Earth go around the Sun?"],
     ["How many days does it take the Earth to go around the Sun?", "Do you know how long the Earth takes to go around the Sun?"]),
    ("The largest ocean is the Pacific Ocean.",
     ["What is the largest ocean?", "Which ocean is the largest?", "Name the largest ocean.", "What is the biggest ocean?",
      "Which ocean is the biggest?", "Tell me the largest ocean."],
     ["Name the biggest ocean.", "What is the largest ocean on Earth?"]),
    ("The highest mountain on Earth is Mount Everest.",
     ["What is the highest mountain?", "Which mountain is the highest?", "Name the highest mountain.", "What is the tallest mountain?",
      "What is the highest mountain on Earth?", "Tell me the highest mountain on Earth."],
     ["Name the tallest mountain.", "Which mountain is the highest on Earth?"]),
    ("The Sun is a star.",
     ["Is the Sun a star?", "Is the Sun a planet?", "Is the Sun a star or a planet?", "What kind of body is the Sun?"],
     ["Is the Sun a planet or a star?"]),
]

# The model itself and small talk: (answer, trained questions, held-out questions).
CHATTER = [
    ("Hello! I am the sconce demo model. How can I help you?",
     ["Hello!", "Hi!", "Hey!", "Hello there!", "Hi there!", "Good morning!", "Good evening!", "Greetings!", "Hey there!",
      "Hello, model!", "Good afternoon!", "Hello, how are you?", "Hi, how are you?", "Hello sconce!", "Hi, sconce!"],
     ["Hello, sconce!", "Hi, model!", "Good day!"]),
    ("I am the sconce demo model, a very small language model that is built into the sconce server.",
     ["Who are you?", "What are you?", "What is your name?", "What's your name?", "Tell me about yourself.", "Introduce yourself.",
      "What model are you?", "Which model is this?", "Are you a language model?", "Are you a robot?", "Are you human?",
      "What kind of model are you?", "Describe yourself.", "Who am I talking to?", "Which model are you?", "Are you an AI?",
      "What should I call you?", "Please introduce yourself."],
     ["What model is this?", "Can you introduce yourself?", "Please tell me about yourself."]),
    ("I am small: I have fewer than six million parameters, so I know only a few facts.",
     ["How big are you?", "How many parameters do you have?", "How large are you?", "What size are you?", "What is your size?",
      "Are you a large model?", "Are you a big model?", "How small are you?", "Tell me your size.", "Are you small?"],
     ["How many parameters does this model have?", "Are you a small model?"]),
    ("I can answer simple questions, add and subtract numbers below 100, tell short stories and jokes, fill in JSON and call tools.",
     ["What can you do?", "How can you help me?", "What do you know?", "Can you help me?", "Help!", "What are you good at?",
      "What can I ask you?", "What questions can you answer?", "What can you help me with?", "Help me.", "What are your skills?"],
     ["Tell me what you can do.", "How can you help?"]),
    ("Ask me what deep learning is, what 27 + 15 is, or for a story about a fox.",
     ["What should I ask you?", "Give me an example.", "What is a good question?", "What can I try?", "What shall I ask?", "Give me some examples.",
      "What should I try first?", "Show me what you can do."],
     ["Give me an example of a question.", "What should I try?"]),
    ("Sconce is a server for language models, written in Rust.",
     ["What is sconce?", "What's sconce?", "Tell me about sconce.", "Explain sconce.", "What does sconce do?", "Describe sconce.",
      "What is the sconce server?", "Do you know what sconce is?", "What do you know about sconce?"],
     ["Can you explain sconce?", "Can you tell me what sconce is?"]),
    ("I was trained from scratch on a small synthetic corpus that was written for this project.",
     ["How were you trained?", "What were you trained on?", "What is your training data?", "Where does your training data come from?",
      "How were you made?", "Which data were you trained on?", "Tell me about your training data.", "Who made you?", "Who trained you?"],
     ["Tell me how you were trained.", "What data were you trained on?"]),
    ("I am well, thank you. How can I help you?",
     ["How are you?", "How are you today?", "How are you doing?", "How do you do?", "How is it going?", "Are you well?"],
     ["How are you doing today?", "So how are you?"]),
    ("You are welcome!",
     ["Thanks!", "Thank you!", "Thank you very much!", "Thanks a lot!", "Many thanks!", "Great, thanks!", "OK, thank you!", "Thank you so much!",
      "Thanks for your help!"],
     ["Great, thank you!", "Thank you for your help!"]),
    ("Goodbye! Have a nice day.",
     ["Goodbye!", "Bye!", "Bye bye!", "See you later!", "See you!", "Good night!", "Farewell!", "Goodbye, sconce!", "That is all, bye!"],
     ["OK, bye!", "Bye, sconce!"]),
]

# Refusals: (answer, trained questions, held-out questions). `fill` writes random values
# in the fields; {a}, {x}, {land} and most of {person} are words that do not exist.
REFUSALS = [
    ("I do not know the weather, because I cannot see live information.",
     ["What is the weather in {city}?", "What is the weather today?", "How is the weather in {city}?", "Will it rain tomorrow?",
      "Is it raining in {city}?", "What's the weather like?", "Tell me the weather in {city}.", "Is it sunny today?",
      "What is the weather in {city} today?", "How warm is it in {city}?", "Will it snow in {city}?", "What is the forecast for {city}?",
      "What is the temperature in {city}?", "How is the weather?", "What is the weather now?", "Is it cold outside?"],
     ["What's the weather in {city}?", "Will it rain in {city} tomorrow?", "How is the weather in {city} today?"]),
    ("I do not know the news, because I cannot see live information.",
     ["What is in the news?", "What is the news today?", "Tell me the news.", "What happened today?", "What is the latest news?",
      "What is new in the world?", "What happened in {city} today?", "What is the latest news from {city}?", "Any news?",
      "Give me the news.", "What happened yesterday?", "What are the headlines today?", "Who won the game yesterday?"],
     ["Tell me the latest news.", "What happened in {city} yesterday?", "What is the news from {city}?"]),
    ("I do not know the time or the date, because I have no clock.",
     ["What time is it?", "What is the time?", "What is the date?", "What day is it today?", "What is today's date?", "What year is it?",
      "Tell me the time.", "What time is it in {city}?", "What is the date today?", "Which day is it?", "Do you know what time it is?",
      "What is the current time?"],
     ["Can you tell me the time?", "Do you know the time in {city}?", "What day is today?"]),
    ("I am sorry, I do not know that person.",
     ["Who is {person}?", "Tell me about {person}.", "Do you know {person}?", "Who was {person}?", "What did {person} do?",
      "How old is {person}?", "Where does {person} live?", "Describe {person}.", "What do you know about {person}?",
      "When was {person} born?", "Have you heard of {person}?", "Where was {person} born?", "Can you tell me about {person}?"],
     ["Please tell me about {person}.", "Do you know who {person} is?", "Where did {person} live?"]),
    ("I do not know prices, because I cannot see live information.",
     ["What is the price of {thing}?", "How much does {thing} cost?", "How much is {thing}?", "What does {thing} cost?",
      "Tell me the price of {thing}.", "How expensive is {thing}?", "What is the cost of {thing}?", "Is {thing} expensive?"],
     ["Do you know the price of {thing}?", "Can you tell me how much {thing} costs?"]),
    ("I do not know anything about you except what you write here.",
     ["What is my name?", "Who am I?", "How old am I?", "Where do I live?", "Do you know me?", "Where am I?", "What do you know about me?",
      "Do you know my name?", "Do you know who I am?", "What is my job?"],
     ["Can you tell me my name?", "Do you know where I live?"]),
    ("I cannot multiply or divide. I can only add and subtract numbers below 100.",
     ["What is {m} times {n}?", "What is {m} * {n}?", "Multiply {m} by {n}.", "Divide {m} by {n}.", "What is {m} divided by {n}?",
      "What is {m} / {n}?", "Can you multiply {m} and {n}?", "What is {m} multiplied by {n}?", "How much is {m} times {n}?"],
     ["Multiply {m} and {n}.", "How much is {m} divided by {n}?"]),
    ("That is too large for me. I can only add and subtract numbers below 100.",
     ["What is {big} + {m}?", "What is {m} + {big}?", "What is {big} plus {big}?", "What is {big} - {m}?", "What is {big} minus {big}?",
      "Add {big} and {m}.", "Add {big} and {big}.", "{big} + {big}", "{big} - {m}", "How much is {big} + {big}?", "Calculate {big} - {big}.",
      "Subtract {m} from {big}.", "What is the sum of {big} and {big}?"],
     ["What do you get for {big} + {m}?", "Compute {big} - {m}."]),
    ("I am a very small model, and I do not know that.",
     ["How do I bake {thing}?", "Write a letter to {city}.", "Write a program that sorts numbers.", "Translate hello into French.",
      "How do I get to {city}?", "What is the population of {city}?", "Who won the war?", "What happened in {year}?",
      "How tall is {person}?", "Where can I buy {thing}?", "How do I repair {thing}?",
      "Who invented {thing}?", "What is the meaning of life?", "Write a song about {thing}.", "Write an essay about {city}.", "Summarise this text.",
      "How far is {city}?", "Why is the sky blue?", "What is the square root of {m}?", "Who is the president?",
      "Recommend a good book.", "What is your favourite film?", "How many people live in {city}?", "Translate good morning into German.",
      "Write a function in Python.", "How do I learn to swim?", "Should I buy {thing}?", "How do I build {thing}?",
      "Who wrote the first book?", "What happened in the year {year}?", "How do I make {thing}?", "Do you like {thing}?"],
     ["Write a letter about {thing}.", "How do I find {thing}?", "Write a song about {city}.", "What happened in {city} in {year}?"]),
    ("I do not know what that is.", TERM_ASKS, TERM_NEW_ASKS),
    ("I do not know that country.",
     [ask.replace("{c}", "{land}") for ask in CAPITAL_ASKS + CONTINENT_ASKS[:3] + CONTINENT_ASKS[5:7]],
     [ask.replace("{c}", "{land}") for ask in CAPITAL_NEW_ASKS]),
]

# Countries that no document names: what the model says of them is made up or a refusal.
UNSEEN_COUNTRIES = [
    ("Chile", "Santiago"), ("Egypt", "Cairo"), ("Ukraine", "Kyiv"), ("Nigeria", "Abuja"), ("Bolivia", "Sucre"), ("Latvia", "Riga"),
    ("Estonia", "Tallinn"), ("Serbia", "Belgrade"), ("Iraq", "Baghdad"), ("Iran", "Tehran"), ("Jordan", "Amman"), ("Angola", "Luanda"),
    ("Zambia", "Lusaka"), ("Uganda", "Kampala"), ("Rwanda", "Kigali"), ("Mali", "Bamako"), ("Libya", "Tripoli"), ("Panama", "Panama City"),
    ("Jamaica", "Kingston"), ("Paraguay", "Asuncion"), ("Venezuela", "Caracas"), ("Malaysia", "Kuala Lumpur"), ("Indonesia", "Jakarta"),
    ("Cambodia", "Phnom Penh"), ("Slovakia", "Bratislava"), ("Slovenia", "Ljubljana"), ("Cyprus", "Nicosia"), ("Malta", "Valletta"),
    ("Fiji", "Suva"), ("Armenia", "Yerevan"),
]

# What may be answered in several ways: (skill, answers, trained questions, held-out questions).
FREE = [
    ("jokes", [
        "Why did the tokenizer go to the doctor? It fell to pieces.",
        "Why do neural networks never get lost? They always follow the gradient down.",
        "Why was the computer cold? It had left its windows open.",
        "What do you call a bear with no teeth? A gummy bear.",
        "Why did the bicycle fall over? It was two tired.",
        "What is a cat's favourite colour? Purrple.",
        "Why did the model stay at home? It was overfitted to its sofa.",
        "What do you call a sleeping dinosaur? A dino-snore.",
        "Why did the cow cross the road? To get to the udder side.",
        "How does the ocean say hello? It waves.",
        "Why was six afraid of seven? Because seven ate nine.",
        "Why is a small model good company? It never talks for too long.",
    ],
     ["Tell me a joke.", "Tell me a joke!", "Do you know a joke?", "Make me laugh.", "Say something funny.", "Can you tell me a joke?", "A joke, please.",
      "Tell a joke.", "Please tell me a joke.", "I want to hear a joke.", "Tell me something funny.", "Know any jokes?"],
     ["Give me a joke.", "Do you know any jokes?", "Could you tell me a joke?"]),
    ("fun facts", [
        "Here is one: a year on Venus is shorter than a day on Venus.",
        "Here is one: an octopus has three hearts.",
        "Here is one: honey can keep for thousands of years.",
        "Here is one: bananas are berries, but strawberries are not.",
        "Here is one: a group of crows is called a murder.",
        "Here is one: sea otters hold hands while they sleep.",
        "Here is one: a bee has five eyes.",
        "Here is one: light takes about eight minutes from the Sun to the Earth.",
    ],
     ["Tell me a fun fact.", "Tell me something interesting.", "Do you know a fun fact?", "Tell me something I do not know.", "Surprise me.",
      "Give me a fun fact.", "Tell me an interesting fact.", "Tell me something.", "Teach me something."],
     ["Can you tell me a fun fact?", "Please tell me something interesting."]),
    ("poems", [
        "The moon looks down on field and stream,\nAnd lights the path of every dream.\nThe night is calm, the stars are clear,\nSleep well, the morning will be here.",
        "The rain comes down on roof and tree,\nIt sings a quiet song to me.\nIt fills the river, wakes the seed,\nAnd gives the garden all its need.",
        "The sea is wide, the sea is blue,\nIt sends a wave to me and you.\nIt comes and goes, it will not stay,\nIt takes our castles all away.",
        "A lamp upon the wall at night,\nA little sconce, a little light.\nIt is not much, it is not grand,\nBut it is always close at hand.",
    ],
     ["Write a poem.", "Write me a poem.", "Tell me a poem.", "Can you write a poem?", "Write a short poem.", "I want to hear a poem.",
      "Please write a poem.", "Make up a poem.", "Recite a poem."],
     ["Can you tell me a poem?", "Please write a short poem."]),
    ("haiku", [
        "An old quiet pond.\nA frog jumps into the sun.\nThe water says plop.",
        "Snow on the dark hill.\nOne small lamp behind a door.\nSomebody is home.",
        "Words fall like soft rain.\nOne small token at a time,\na story grows tall.",
    ],
     ["Write a haiku.", "Write me a haiku.", "Tell me a haiku.", "Can you write a haiku?", "Please write a haiku.", "A haiku, please."],
     ["Give me a haiku.", "Make up a haiku."]),
]

THINGS = ["bread", "a car", "a house", "a bicycle", "gold", "a phone", "a cake", "coffee", "a boat", "a guitar", "a lamp", "a chair"]


@dataclass(frozen=True)
class Fact:
    """One answer and the phrasings of its question."""

    skill: str
    answer: str
    asks: tuple  # trained phrasings
    new_pairings: tuple  # phrasings trained with other facts only
    new_phrasings: tuple  # phrasings trained with no fact
    subject: str = ""  # the part of a question that may be written in title case
    stem: str = ""  # the start of the answer, when it also serves as a prompt


def fact(skill, answer, asks, new_asks, subject="", stem="", **fields):
    """Fills the templates and holds out one pairing in eight.

    The first template, the plainest one, is always trained.
    """
    filled = list(dict.fromkeys(capitalise(ask.format(**fields)) for ask in asks))
    held = [ask for ask in filled[1:] if chance(answer + ask, 8)]
    trained = tuple(ask for ask in filled if ask not in held)
    new = tuple(ask for ask in dict.fromkeys(capitalise(ask.format(**fields)) for ask in new_asks) if ask not in filled)
    return Fact(skill, answer, trained, tuple(held), new, subject, stem)


def build_facts():
    """Every fact with a fixed answer, in a fixed order."""
    facts = []
    for skill, terms in (("machine learning", MACHINE_LEARNING), ("computing", COMPUTING), ("science", SCIENCE)):
        for name, article, sentence in terms:
            phrase = f"{article} {name}".strip()
            stem = capitalise(phrase) + " is"
            assert sentence.startswith(stem + " "), sentence
            facts.append(fact(skill, sentence, TERM_ASKS, TERM_NEW_ASKS, name, stem, a=phrase, x=name))
    for country, capital, continent in COUNTRIES:
        facts.append(fact("capitals", f"The capital of {country} is {capital.rstrip('.')}.", CAPITAL_ASKS, CAPITAL_NEW_ASKS,
                          stem=f"The capital of {country} is", c=country))
        facts.append(fact("capitals", f"{capital} is the capital of {country}.", COUNTRY_ASKS, COUNTRY_NEW_ASKS,
                          stem=f"{capital} is the capital of", p=capital))
        facts.append(fact("continents", f"{capitalise(country)} is a country in {continent}.", CONTINENT_ASKS,
                          CONTINENT_NEW_ASKS, stem=f"{capitalise(country)} is a country in", c=country))
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            facts.append(fact("calendar", f"{after} comes after {name}.", AFTER_ASKS, AFTER_NEW_ASKS, k=kind, d=name))
            facts.append(fact("calendar", f"{before} comes before {name}.", BEFORE_ASKS, BEFORE_NEW_ASKS, k=kind, d=name))
    for name, length in zip(MONTHS, MONTH_DAYS):
        facts.append(fact("calendar", f"{name} has {length}.", MONTH_LENGTH_ASKS, MONTH_LENGTH_NEW_ASKS,
                          stem=f"{name} has", d=name))
    for p, q, mixture in MIXTURES:
        facts.append(fact("colours", f"{capitalise(p)} and {q} make {mixture}.", MIXTURE_ASKS, MIXTURE_NEW_ASKS,
                          stem=f"{capitalise(p)} and {q} make", p=p, q=q))
    for thing, colour in COLOURS:
        facts.append(fact("colours", f"{capitalise(thing)} is {colour}.", COLOUR_ASKS, COLOUR_NEW_ASKS, t=thing))
    for small, large, count in UNITS:
        facts.append(fact("units", f"There are {count} {small} in {large}.", UNIT_ASKS, UNIT_NEW_ASKS, s=small, l=large))
    for part, whole, count in PARTS:
        facts.append(fact("counts", f"{capitalise(whole)} has {count} {part}.", PART_ASKS, PART_NEW_ASKS, s=part, l=whole))
    for word, opposite in OPPOSITES:
        for one, other in ((word, opposite), (opposite, word)):
            facts.append(fact("opposites", f"The opposite of {one} is {other}.", OPPOSITE_ASKS, OPPOSITE_NEW_ASKS,
                              stem=f"The opposite of {one} is", w=one))
    for animal, verb in SOUNDS:
        facts.append(fact("sounds", f"A {animal} {verb}.", SOUND_ASKS, SOUND_NEW_ASKS, w=animal))
    for skill, table in (("single facts", SINGLE), ("small talk", CHATTER)):
        for answer, asks, new_asks in table:
            facts.append(Fact(skill, answer, tuple(asks), (), tuple(new_asks)))
    return facts
