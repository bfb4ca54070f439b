"""All that the text world can say: topics with their key points, ways to ask, and the sentences around an answer.

Data, and how a prompt and a sentence are written. The generator puts it together, the gold reward takes it apart
again, and the tokenizer gives each of its words one piece. Phrases are lower case, without end punctuation.

A topic's `subject` is a word that occurs in no other topic's `task` and in no phrasing: it alone tells which
topic a prompt is about. A key point belongs to one topic only.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """Something to ask about: `task` completes "How do I ...", `points` are the three things to be told."""

    subject: str
    task: str
    points: tuple[str, str, str]


TOPICS = (
    Topic(
        "bread",
        "keep bread fresh",
        ("keep the bread in a paper bag", "cut the bread only when you eat", "freeze the bread you do not need"),
    ),
    Topic(
        "roses",
        "grow roses",
        ("plant the roses in full sun", "water the roses in the morning", "cut the roses back in spring"),
    ),
    Topic(
        "rice",
        "cook rice",
        ("wash the rice in cold water", "boil the rice for ten minutes", "leave the rice under a lid"),
    ),
    Topic(
        "tea",
        "make good tea",
        ("put the tea in a warm pot", "leave the tea for four minutes", "serve the tea with lemon"),
    ),
    Topic(
        "shoes",
        "clean leather shoes",
        ("brush the shoes when they are dry", "rub the shoes with a little oil", "dry the shoes in the shade"),
    ),
    Topic(
        "bike",
        "fix a noisy bike",
        ("oil the bike chain", "wipe the bike with a cloth", "check the bike for loose screws"),
    ),
    Topic(
        "puppy",
        "train a puppy",
        ("give the puppy a small treat", "teach the puppy one word at a time", "walk the puppy before each lesson"),
    ),
    Topic(
        "cat",
        "calm a nervous cat",
        ("speak to the cat in a soft voice", "leave the cat a box to hide in", "feed the cat at the same time"),
    ),
    Topic(
        "exam",
        "pass an exam",
        ("read the exam from top to bottom", "start the exam with easy questions", "check the exam before you leave"),
    ),
    Topic(
        "speech",
        "give a good speech",
        (
            "write the speech on small cards",
            "practice the speech in front of a mirror",
            "start the speech with a short story",
        ),
    ),
    Topic(
        "tent",
        "put up a tent",
        ("put the tent on flat ground", "tie the tent with tight ropes", "keep the tent far from the river"),
    ),
    Topic(
        "fire",
        "light a camp fire",
        ("start the fire with dry sticks", "build the fire inside a ring of stones", "feed the fire with small logs"),
    ),
    Topic(
        "fish",
        "catch a fish",
        ("look for the fish at dawn", "feed the fish with fresh worms", "pull the fish in slowly"),
    ),
    Topic(
        "guitar",
        "learn the guitar",
        ("tune the guitar every time", "hold the guitar close to you", "play the guitar a little each day"),
    ),
    Topic(
        "money",
        "save money",
        ("count the money every week", "put the money in a safe bank", "spend the money from a list"),
    ),
    Topic(
        "letter",
        "write a love letter",
        ("start the letter with a kind word", "keep the letter to one page", "read the letter out loud"),
    ),
    Topic(
        "wall",
        "paint a wall",
        ("wash the wall with soap", "sand the wall until it is smooth", "paint the wall with two thin coats"),
    ),
    Topic(
        "windows",
        "clean windows",
        ("wash the windows with warm water", "wipe the windows from top to bottom", "dry the windows with old paper"),
    ),
    Topic(
        "cake",
        "bake a cake",
        ("bake the cake in a hot oven", "test the cake with a thin stick", "cool the cake on a rack"),
    ),
    Topic(
        "soup", "make a rich soup", ("boil the soup for an hour", "stir the soup slowly", "salt the soup at the end")
    ),
    Topic(
        "tomatoes",
        "grow tomatoes",
        ("tie the tomatoes to a stick", "water the tomatoes at the roots", "pick the tomatoes when they are red"),
    ),
    Topic(
        "birds",
        "feed wild birds",
        ("give the birds seeds in winter", "feed the birds up in a tree", "leave the birds a bowl of water"),
    ),
    Topic(
        "photos",
        "take good photos",
        ("take the photos in soft light", "hold still for the photos", "check the photos on a big screen"),
    ),
    Topic(
        "coat",
        "wash a wool coat",
        ("wash the coat by hand", "press the coat in a towel", "dry the coat flat on a table"),
    ),
    Topic(
        "suitcase",
        "pack a suitcase",
        (
            "pack the suitcase from a list",
            "fill the suitcase with rolled shirts",
            "weigh the suitcase before you leave",
        ),
    ),
    Topic(
        "knife",
        "sharpen a knife",
        ("hold the knife at a low angle", "pull the knife along the stone", "wipe the knife with a dry cloth"),
    ),
    Topic(
        "eggs",
        "boil eggs",
        ("put the eggs in hot water", "boil the eggs for six minutes", "cool the eggs under the tap"),
    ),
    Topic(
        "horse",
        "ride a horse",
        ("brush the horse before you ride", "lead the horse from the left side", "thank the horse with an apple"),
    ),
)

PHRASINGS = (
    "How do I {task}{modifier}?",
    "How can I {task}{modifier}?",
    "How should I {task}{modifier}?",
    "What is the best way to {task}{modifier}?",
    "What do I need to {task}{modifier}?",
    "Can you tell me how to {task}{modifier}?",
    "Tell me how to {task}{modifier}.",
    "Please help me to {task}{modifier}.",
    "I want to {task}{modifier}. Any tips?",
    "I have to {task}{modifier}. What do I do?",
)
MODIFIERS = ("", " at home", " this week", " today", " in winter", " in summer", " on my own", " for my family")

LEADS = ("", "please ", "you can ", "first, ", "then ", "also, ", "try to ")
"""What a key point may begin with; any other words around it make the sentence noise."""

OPENINGS = (
    "sure, happy to help",
    "good question",
    "hello, thank you for asking",
    "of course, here is my advice",
)
CLOSINGS = (
    "good luck with it",
    "i hope this helps",
    "feel free to ask me more",
    "let me know how it goes",
)
RUDE = (
    "that is a silly question",
    "i do not care",
    "you should know this",
    "do not waste my time",
)
FILLERS = (
    "there are many ways to see it",
    "some people like it and some do not",
    "it is what it is",
    "my uncle had a story about this",
    "this is something that many people ask",
    "the world is a big place",
    "i could go on about this all day",
    "things like this take time",
)


def as_prompt(phrasing: str, topic: Topic, modifier: str = "") -> str:
    """The text that a reply continues: a question about `topic`, and the cue to answer it."""
    return in_frame(phrasing.format(task=topic.task, modifier=modifier))


def in_frame(question: str) -> str:
    """A question and the cue to answer it."""
    return f"Q: {question}\nA:"


def as_sentence(phrase: str) -> str:
    """`phrase` with a capital and a full stop; the word "i" becomes "I"."""
    words = ["I" if word == "i" else word for word in phrase.split()]
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."
