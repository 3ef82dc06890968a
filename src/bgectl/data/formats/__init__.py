"""Training data of other tools: a module for each format reads it as bgectl's rows and writes it from them."""
