"""ReVSI: questions as in VSI-Bench on scenes that were re-annotated, in splits by how many frames are shown (arXiv 2604.24300).

In: `test-*.parquet` and videos of one split (`16_frame`, `32_frame`, `64_frame`, `all_frame`) of
huggingface.co/datasets/3dlg-hcvc/ReVSI; texts of a model. Out: questions, verdicts, and the seven task scores with their mean, as
`lmms_eval/tasks/revsi/utils.py` of github.com/EvolvingLMMs-Lab/lmms-eval, written by the benchmark's authors, computes them at
commit 75571cf.
"""

from __future__ import annotations

from collections.abc import Mapping

from videostr.evaluate.vsi_bench import Row, VsiBench, file_name


class ReVsi(VsiBench):
    """One split of ReVSI; the root is the split's folder, for the questions of each are those that its frames can answer."""

    name: str = "revsi"
    tasks: Mapping[str, tuple[str, ...]] = {
        "object_counting": ("object_counting_single", "object_counting_multiple"),
        "object_abs_distance": ("object_abs_distance",),
        "object_size_estimation": ("object_size_estimation",),
        "room_size_estimation": ("room_size_estimation_single", "room_size_estimation_multiple"),
        "object_rel_distance": ("object_rel_distance_closest", "object_rel_distance_farthest"),
        "object_rel_direction": (
            "object_rel_direction_forward_easy",
            "object_rel_direction_backward_easy",
            "object_rel_direction_forward_hard",
            "object_rel_direction_backward_hard",
        ),
        "route_planning": ("route_planning",),
    }
    units: Mapping[str, str] = {
        "object_counting_single": "",
        "object_counting_multiple": "",
        "object_abs_distance": "m",
        "object_size_estimation": "cm",
        "room_size_estimation_single": "m2",
        "room_size_estimation_multiple": "m2",
    }
    number_form: str = "Answer the question using a single integer or decimal number."

    def first_token(self, answer: str) -> str:
        """Return what the official code reads: that of VSI-Bench, white space around the text left out first."""
        return super().first_token(answer.strip())

    def video(self, place: str, record: Row) -> str:
        """Return the video of a scene in the split's folder.

        Raises:
            DataError: `scene_id` is no name of a file; starts with `place`.
        """
        return f"{file_name(place, 'scene_id', record.scene_id)}.mp4"
