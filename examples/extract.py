"""Extract fields from ten texts with the bundled model.

The bundled model knows only names of Python's standard library, so many values are wrong. They are always valid.

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
    "json.loads parses a JSON string and returns the value.",
    "re.compile compiles a pattern into a regular expression object.",
    "math.pi is the ratio of a circle's circumference to its diameter.",
    "random.randint returns a random integer between two bounds.",
    "time.sleep waits for a number of seconds.",
    "pathlib.Path represents a path of the file system.",
    "sys.argv contains the command-line arguments.",
    "os.getcwd returns the current folder.",
    "collections.Counter counts hashable objects.",
]

if __name__ == "__main__":
    for text, value in zip(TEXTS, mlx_qwen3.extract(TEXTS, SCHEMA), strict=True):
        print(json.dumps(value), "<-", text)
