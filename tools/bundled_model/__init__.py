"""How the bundled model is made: facts, phrasings, corpus, tokenizer, training, evaluation. See README.md."""
