"""Label the tokens in a line of Python code, with the example head that comes with the package."""

from mlx_qwen3 import pipeline

tag = pipeline("token-classification", aggregation_strategy="simple")
code = "def area(radius): return 3.14 * radius ** 2  # a circle"
for entity in tag(code):
    print(f"{entity['entity_group']:10} {code[entity['start'] : entity['end']].strip()}")
