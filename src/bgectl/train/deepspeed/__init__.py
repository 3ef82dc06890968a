"""DeepSpeed configurations for `--deepspeed 0` to `--deepspeed 3`."""
