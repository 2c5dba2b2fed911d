"""Films coloured balls in a dim, noisy room, the example of docs/data.md: `python tests/example_film.py FILM.mp4`."""

import pathlib
import subprocess
import sys

import imageio_ffmpeg
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from data_gen import physics, rendering  # noqa: E402  found from any current folder

N_FRAMES = 4000
HEIGHT, WIDTH = 120, 160
COLOURS = np.array([[24, 28, 36], [240, 180, 60], [120, 220, 110], [110, 170, 250]], np.float32)  # room, balls


def write(path, n_frames=N_FRAMES, seed=0):
    """Writes the film, H.264 with 25 frames per second; returns groups [T, H, W], which ball owns each pixel.

    Three balls bounce in a square as high as the frame, in its middle.
    """
    rng = np.random.default_rng(seed)
    radii, box = np.full((1, 3), 1.5), 12.0
    motion = physics.simulate(
        physics.place_balls(radii, box, rng),
        physics.draw_velocities(radii > 0, rng),
        radii,
        np.ones((1, 3)),
        box,
        n_frames,
    )
    groups = np.zeros((n_frames, HEIGHT, WIDTH), np.uint8)
    margin = (WIDTH - HEIGHT) // 2
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-y",
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{WIDTH}x{HEIGHT}",
        "-r",
        "25",
        "-i",
        "pipe:0",
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        "-crf",
        "20",
        "-pix_fmt",
        "yuv420p",
        str(path),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as ffmpeg:
        for t, positions in enumerate(motion.positions):
            groups[t, :, margin : margin + HEIGHT] = rendering.render_groups(positions, radii, box, HEIGHT)
            frame = COLOURS[groups[t]] + rng.normal(0, 4, (HEIGHT, WIDTH, 1))
            ffmpeg.stdin.write(frame.clip(0, 255).astype(np.uint8).tobytes())
    if ffmpeg.returncode:
        raise SystemExit(ffmpeg.returncode)
    return groups


if __name__ == "__main__":
    write(sys.argv[1])
