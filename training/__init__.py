"""How the bundled chat model is made: conversations, tokenizer, training, evaluation."""
