"""The stages of a `bgectl.yaml`, one after the other: only what has changed is run again."""
