"""train."""

import logging

# At its import, which peft and accelerate cause, it tells each CPU that computes in bfloat16 of a package that nothing
# here needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
