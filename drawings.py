"""What is drawn of scores: the annotated picture with its bars, and the course of the scores over a clip."""
import io
import math

import cv2
import numpy as np

from conventions import TRAITS
from scoring import FileScores, KeptPicture

COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189))  # RGB, one a trait
LINE, PANEL_WIDTH, BAR_LEFT, BAR_WIDTH = 26, 400, 160, 120     # pixels
GREY, BLACK, TRACK = (40, 40, 40), (0, 0, 0), (225, 225, 225)
MOST_POINTS = 120   # of a course; of more faces, neighbours are averaged


def _write(image, text, place, size=0.45, colour=GREY):
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def annotate(picture: KeptPicture, people: list[dict]) -> np.ndarray:
    """Return a uint8 BGR picture with a box around each face and, at its side, five bars for each person.

    people: rows of scoring.PEOPLE_COLUMNS. A whisker on a bar is the interval; pct.: the percentile.
    """
    image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    thickness = max(1, round(image.shape[0] / 300))
    for person, (left, top, right, bottom) in picture.boxes.items():
        cv2.rectangle(image, (left, top), (right, bottom), (255, 255, 255), thickness + 2)
        cv2.rectangle(image, (left, top), (right, bottom), GREY, thickness)
        if len(people) > 1:
            cv2.putText(image, str(person), (left + 6, bottom - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2,
                        cv2.LINE_AA)
    # The bars stand beside the picture, where they hide nothing.
    height = max(image.shape[0], (LINE * 6 + 14) * len(people) + LINE)
    panel, y = np.full((height, PANEL_WIDTH, 3), 255, np.uint8), 0
    for row in people:
        y += LINE
        _write(panel, f"person {row['person']}" if len(people) > 1 else "apparent personality", (12, y), 0.55, BLACK)
        for trait, colour in zip(TRAITS, COLOURS):
            y += LINE
            _draw_bar(panel, y, trait, row, colour[::-1])
        y += 14
    if people and people[0]["half_width_openness"] is not None:
        _write(panel, "whisker: 4 of 5 judgements lie within", (12, y + 8), 0.4)
    if panel.shape[0] > image.shape[0]:
        image = cv2.copyMakeBorder(image, 0, panel.shape[0] - image.shape[0], 0, 0, cv2.BORDER_CONSTANT,
                                   value=(255, 255, 255))
    return np.hstack([image, panel])


def _draw_bar(panel, y, trait, row, colour):
    def place(score):
        return BAR_LEFT + round(BAR_WIDTH * score)

    _write(panel, trait, (12, y))
    cv2.rectangle(panel, (BAR_LEFT, y - 13), (place(1), y + 2), TRACK, -1)
    cv2.rectangle(panel, (BAR_LEFT, y - 13), (place(row[trait]), y + 2), colour, -1)
    low, high, percentile = row[f"low_{trait}"], row[f"high_{trait}"], row[f"percentile_{trait}"]
    if low is not None:
        cv2.line(panel, (place(low), y - 5), (place(high), y - 5), BLACK, 1)
        for end in (low, high):
            cv2.line(panel, (place(end), y - 9), (place(end), y - 1), BLACK, 1)
    _write(panel, f"{row[trait]:.2f}", (place(1) + 8, y))
    if percentile is not None:
        _write(panel, f"{percentile:.0f} pct.", (place(1) + 52, y))


def plot_course(scores: FileScores) -> np.ndarray:
    """Return a plot, uint8 BGR, of the scores of each frame over the time of a clip: one panel a person.

    Of more than MOST_POINTS faces of a person, each point is the mean over neighbouring ones.
    """
    from matplotlib.figure import Figure  # here, since it takes a second

    numbers = [row["person"] for row in scores.people]
    figure = Figure(figsize=(9, 0.8 + 2.4 * len(numbers)), layout="constrained")
    panels = figure.subplots(len(numbers), 1, sharex=True, squeeze=False)[:, 0]
    timed = not np.isnan(scores.faces.seconds).any()
    for panel, person in zip(panels, numbers):
        rows = np.flatnonzero(scores.faces.person == person)
        moments = (scores.faces.seconds if timed else scores.faces.frame)[rows]
        averaged = math.ceil(len(rows) / MOST_POINTS)
        starts = np.arange(0, len(rows), averaged)
        counts = np.diff([*starts, len(rows)])
        moments = np.add.reduceat(moments, starts) / counts
        course = np.add.reduceat(scores.faces.scores[rows], starts, axis=0) / counts[:, None]
        for trait, colour, points in zip(TRAITS, COLOURS, course.T):
            panel.plot(moments, points, marker="o", markersize=3, linewidth=1.2, color=np.array(colour) / 255,
                       label=trait)
        words = ([f"person {person}"] if len(numbers) > 1 else []) + (
            [f"each point: the mean of {averaged} faces"] if averaged > 1 else [])
        panel.set(ylim=(0, 1), ylabel="score", title=", ".join(words) or None)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("seconds" if timed else "frame")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(TRAITS), frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return cv2.imdecode(np.frombuffer(data.getvalue(), np.uint8), cv2.IMREAD_COLOR)
