"""Pictures of scores: the annotated frame with its bars, and the scores over the time of a clip."""
import io
from dataclasses import dataclass

import cv2
import numpy as np

from first_impressions.common.constants import COLOURS, TRAITS
from first_impressions.prediction.scoring import FileScores, KeptPicture
from first_impressions.prediction.tables import high_means_calm

# In pixels, beside a picture that is SMALL_HEIGHT high; beside larger ones up to twice as much.
LINE, GAP, PANEL_WIDTH, BAR_LEFT, BAR_WIDTH, SMALL_HEIGHT = 26, 14, 400, 160, 120, 360
GREY, BLACK, WHITE, TRACK = (40, 40, 40), (0, 0, 0), (255, 255, 255), (225, 225, 225)
MOST_POINTS = 120   # in a plot over time; of more faces, neighbours are averaged


@dataclass
class Panel:
    """A white picture, uint8 BGR, for the bars; coordinates are multiplied by its scale."""
    picture: np.ndarray
    scale: float

    def write(self, text: str, x: float, y: float, size: float = 0.45, colour: tuple = GREY) -> None:
        """Write a line of text that begins at x and stands on y."""
        cv2.putText(self.picture, text, self._place(x, y), cv2.FONT_HERSHEY_SIMPLEX, size * self.scale, colour,
                    round(self.scale), cv2.LINE_AA)

    def fill(self, left: float, top: float, right: float, bottom: float, colour: tuple) -> None:
        """Fill a rectangle; without width or height it is a line."""
        cv2.rectangle(self.picture, self._place(left, top), self._place(right, bottom), colour, -1)

    def _place(self, x, y):
        return round(x * self.scale), round(y * self.scale)


def draw_boxes(picture: KeptPicture, numbered: bool) -> np.ndarray:
    """Return the picture, uint8 BGR, with a box around each face, and the person's number if that is asked for."""
    image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    thickness = max(1, round(image.shape[0] / 240))
    for person, (left, top, right, bottom) in picture.boxes.items():
        for colour, width in ((WHITE, 3 * thickness), (GREY, thickness)):
            cv2.rectangle(image, (left, top), (right, bottom), colour, width)
        for colour, width in ((GREY, 4 * thickness), (WHITE, 2 * thickness)) if numbered else ():
            cv2.putText(image, str(person), (left + 4 * thickness, bottom - 5 * thickness), cv2.FONT_HERSHEY_SIMPLEX,
                        0.6 * thickness, colour, width, cv2.LINE_AA)
    return image


def annotate(picture: KeptPicture, people: list[dict]) -> np.ndarray:
    """Return a uint8 BGR picture with a box around each face and, at its side, the bars of each person.

    people: rows of tables.ALL_COLUMNS. A whisker on a bar is the interval, the number behind it the percentile.
    """
    image = draw_boxes(picture, len(people) > 1)
    # The bars stand beside the picture, where they hide nothing.
    needed = (LINE * (len(TRAITS) + 1) + GAP) * len(people) + 3 * LINE
    scale = min(2, max(1, image.shape[0] / max(SMALL_HEIGHT, needed)))
    height = max(image.shape[0], round(scale * needed))
    panel = Panel(np.full((height, round(scale * PANEL_WIDTH), 3), 255, np.uint8), scale)
    _draw_people(panel, people)
    image = cv2.copyMakeBorder(image, 0, height - image.shape[0], 0, 0, cv2.BORDER_CONSTANT, value=WHITE)
    return np.hstack([image, panel.picture])


def _draw_people(panel, people):
    y = 0
    for row in people:
        y += LINE
        panel.write(f"person {row['person']}" if len(people) > 1 else "apparent personality", 12, y, 0.55, BLACK)
        for trait in TRAITS:
            y += LINE
            _draw_bar(panel, y, trait, row)
        y += GAP
    notes = ["neuroticism: high means calm"] if high_means_calm(people[0]) else []
    if "half_width_openness" in people[0]:
        notes.append("whisker: 4 of 5 judgements lie within")
    if "percentile_openness" in people[0]:
        notes.append("%: of the training clips that are judged lower")
    for number, note in enumerate(notes):
        panel.write(note, 12, y + 8 + 20 * number, 0.4)


def _draw_bar(panel, y, trait, row):
    def place(score):
        return BAR_LEFT + BAR_WIDTH * score

    panel.write(trait, 12, y)
    panel.fill(BAR_LEFT, y - 13, place(1), y + 2, TRACK)
    panel.fill(BAR_LEFT, y - 13, place(row[trait]), y + 2, COLOURS[trait][::-1])
    low, high, percentile = (row.get(f"{kind}_{trait}") for kind in ("low", "high", "percentile"))
    if low is not None:
        panel.fill(place(low), y - 5.5, place(high), y - 5, BLACK)
        for end in (low, high):
            panel.fill(place(end), y - 9, place(end) + 0.5, y - 1, BLACK)
    panel.write(f"{row[trait]:.2f}", place(1) + 8, y)
    if percentile is not None:
        panel.write(f"{percentile:.0f} %", place(1) + 60, y)


def plot_course(scores: FileScores) -> np.ndarray:
    """Return a plot, uint8 BGR, of the scores of each frame, or of each piece, over the time of a clip: one panel per
    person.

    Of more than MOST_POINTS faces of a person, each point is the mean over neighbouring ones.
    """
    from matplotlib.figure import Figure  # here, since it takes a second

    numbers = [row["person"] for row in scores.people]
    calm = " (high: calm)" if high_means_calm(scores.people[0]) else ""
    figure = Figure(figsize=(9, 0.8 + 2.4 * len(numbers)), layout="constrained")
    panels = figure.subplots(len(numbers), 1, sharex=True, squeeze=False)[:, 0]
    timed = not any(np.isnan(face["seconds"]) for face in scores.faces)
    for panel, person in zip(panels, numbers):
        pieces = [piece for piece in scores.pieces if piece["person"] == person]
        if pieces:
            rows, moments = pieces, [(piece["start"] + piece["end"]) / 2 for piece in pieces]
            panel.set_xlim(0, pieces[-1]["end"])
        else:
            rows = [face for face in scores.faces if face["person"] == person]
            moments = [face["seconds" if timed else "frame"] for face in rows]
        parts = np.array_split(np.arange(len(rows)), min(len(rows), MOST_POINTS))
        points = np.array([[row[trait] for trait in TRAITS] for row in rows])
        course = np.array([points[part].mean(0) for part in parts])
        moments = [np.mean([moments[place] for place in part]) for part in parts]
        for trait, points in zip(TRAITS, course.T, strict=True):
            panel.plot(moments, points, marker="o", markersize=3, linewidth=1.2, color=np.array(COLOURS[trait]) / 255,
                       label=f"{trait}{calm if trait == 'neuroticism' else ''}")
        words = [f"person {person}"] if len(numbers) > 1 else []
        if len(parts) < len(rows):
            unit = "pieces" if pieces else "faces"
            words.append(f"each point: the mean of about {len(rows) / len(parts):.1f} {unit}")
        elif pieces:
            words.append(f"each point: a piece of {pieces[0]['end'] - pieces[0]['start']:.0f} s")
        panel.set(ylim=(0, 1), ylabel="score", title=", ".join(words) or None)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("seconds" if timed else "frame")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(TRAITS), frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return cv2.imdecode(np.frombuffer(data.getvalue(), np.uint8), cv2.IMREAD_COLOR)
