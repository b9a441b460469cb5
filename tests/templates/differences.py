"""What is known to come out differently, by template, with the reason.  A comparison fails when one no longer does."""

SAFE = "`+` with a text marked safe escapes the other side in Jinja2; here it joins the two"
GENERATOR = "a filter's lazy result is a list here, which `tojson` writes; Python refuses it"
ORDER = "minijinja puts values of any two types in order; Python refuses"
INSIDE = "minijinja looks for the text of any value in a text; Python refuses"
RARE = "part of Jinja2 or of Python's str that no known chat template uses"
FLOATS = "`~` writes floats that need an exponent as minijinja does"

DIFFERENCES: dict[str, str] = {
    "llama.cpp meetkai-functionary-medium-v3.1": SAFE,
    "llama.cpp llama-cpp-deepseek-r1": GENERATOR,
    "made here, expression d.list ~ d.dict ~ d.none ~ d.float ~ d.true ~ missing": FLOATS,
    "made here, expression {1: 2, none: 3, true: 4, 1.5: 5}|tojson": "1 and true are one key in Python",
    "made here, expression \"it's o'neil 1st ßx\".title()": "title case of ß is Ss in Python, SS here",
    "made here, expression 'ßa'.capitalize()": "title case of ß is Ss in Python, SS here",
    "made here, expression 1 < 'a'": ORDER,
    "made here, expression none < 1": ORDER,
    "made here, expression d.dict|dictsort(by='value')": ORDER,
    "made here, expression none in 'abc'": INSIDE,
    "made here, expression 1 in 'abc'": INSIDE,
    "made here, expression d.rows|groupby('role')|list": "groups print as lists, not as tuples",
    "made here, expression '{!r}'.format('a')": RARE,
    "made here, expression '%r' % 'x'": RARE,
    "made here, expression lipsum is defined": RARE,
    "made here, expression 'abcdef'|truncate(4)": RARE,
    "made here, expression 'a b c d e f'|truncate(5, true, '...')": RARE,
    "made here, expression 'x'|center(5)": RARE,
    "made here, expression d|pprint|length": RARE,
    "made here, expression 'a b'|urlencode": RARE,
    "made here, expression d.numbers|random is defined": RARE,
    "made here, expression {'a': 1}|xmlattr": RARE,
    "made here, expression 'a\tb'.expandtabs(4)": RARE,
    "made here, expression 'abc'.center(7, '*')": RARE,
    "made here, expression 'Straße'.casefold()": RARE,
    "made here, macro varargs": RARE,
    "made here, macro kwargs": RARE,
    "made here, autoescape": RARE,
}
