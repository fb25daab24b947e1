"""Extract fields from ten texts with the bundled model.

The demonstration model knows only names of Python's standard library, so the values are poor; they are always valid.

    python examples/extract.py
"""

import json

import mlx_qwen3

SCHEMA = {
    "type": "object",
    "properties": {
        "module": {"enum": ["os", "sys", "json", "re", "math", "random", "time", "pathlib", "other"]},
        "kind": {"enum": ["function", "class", "constant"]},
        "arguments": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["module", "kind", "arguments"],
    "additionalProperties": False,
}

TEXTS = [
    "os.path.join joins two or more components of a path.",
    "json.loads takes a text and returns what it holds.",
    "re.compile turns a pattern into an object that matches.",
    "math.pi is the ratio of a circle's circumference to its diameter.",
    "random.randint returns a whole number between two others.",
    "time.sleep waits for a number of seconds.",
    "pathlib.Path stands for a path of the file system.",
    "sys.argv holds the words of the command line.",
    "os.getcwd returns the current folder.",
    "collections.Counter counts how often things occur.",
]

if __name__ == "__main__":
    for text, value in zip(TEXTS, mlx_qwen3.extract(TEXTS, SCHEMA), strict=True):
        print(json.dumps(value), "<-", text)
