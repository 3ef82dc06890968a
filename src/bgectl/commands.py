"""The names of all commands. Everything that lists commands reads this table."""

COMMANDS = {
    "init": "Write a commented bgectl.yaml to start from.",
    "data validate": "Report every defect of training files, with file, line and what to do.",
    "data stats": "Count rows, texts and lengths of training files.",
    "data convert": "Bring training data over from other tools, and to them.",
    "data split": "Hold rows out without leaks, or sort rows into files by length.",
    "mine": "Find hard negatives for training rows with an embedder.",
    "score": "Add teacher scores to training rows, for distillation.",
    "relabel": "Drop false negatives by a teacher's scores, or make them positives.",
    "train base": "Fine-tune an encoder embedder (BGE v1.5, E5, MiniLM and the like).",
    "train m3": "Fine-tune an encoder with dense, sparse and ColBERT output (BGE-M3).",
    "train llm": "Fine-tune a decoder as an embedder, by LoRA (bge-multilingual-gemma2, e5-mistral).",
    "train icl": "Fine-tune a decoder embedder that takes examples in its prompt (bge-en-icl).",
    "merge-lora": "Make a whole model of an adapter and its base.",
    "export": "Write an embedder as ONNX and check it against the model.",
    "push": "Put a model and its card on the hub, after saying what would go there.",
    "eval": "Measure retrieval with one or several models.",
    "run": "Run the stages of bgectl.yaml one after the other; what has not changed is not run again.",
    "presets": "List the presets of options for known models, or print one.",
    "translate": "Say a command line of FlagEmbedding in bgectl's words.",
    "doctor": "Check packages, GPUs, hub and disks, and say what mends them.",
    "schema": "Print the JSON schema of a command's options.",
}
"""Every command and its summary; its module is `bgectl.cli.<words joined by _>`."""

GROUPS = {"data": "Look at, convert and split training data.", "train": "Fine-tune an embedder."}
"""Commands that only hold others."""
