"""JPEG files to pixels, in a process of its own that loads nothing but Pillow.

Paths on standard input, separated by NUL; uint8 [3, 64, 64] of each on standard output.
"""

import os
import sys

from PIL import Image

if __name__ == "__main__":
    for path in sys.stdin.buffer.read().split(b"\0"):
        try:
            with Image.open(path, formats=["JPEG"]) as image:
                if image.size != (64, 64):
                    raise ValueError("it has {} x {}".format(*image.size))
                channels = image.convert("RGB").split()
        except (OSError, SyntaxError, ValueError) as error:
            sys.exit(
                f"{os.fsdecode(path)} is not a readable JPEG image of 64 x 64 pixels ({error}):"
                " unpack the archive again."
            )
        sys.stdout.buffer.writelines(channel.tobytes() for channel in channels)
