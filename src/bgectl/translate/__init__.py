"""Command lines of FlagEmbedding in bgectl's words: reading the shell's text, the launcher, and the options."""
